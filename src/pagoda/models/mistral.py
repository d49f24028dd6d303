"""Mistral: Llama with a sliding window in every layer. GGUF calls it a Llama."""

from __future__ import annotations

from pagoda.models.family import SENSES, Family, ModelFile
from pagoda.models.layers import Decoder
from pagoda.models.reader import DecoderReader, LayerKind, read_sizes, read_window
from pagoda.models.rope import read_rope
from pagoda.text.builtin_templates import LLAMA2


def build(file: ModelFile) -> Decoder:
    sizes = read_sizes(file)
    kind = LayerKind(read_rope(file, sizes.head_dim), read_window(file, sizes.max_context))
    return DecoderReader(file, sizes).decoder([kind] * sizes.num_layers)


FAMILY = Family(
    name="mistral",
    gguf="llama",
    gguf_key="attention.sliding_window",
    hf_class="MistralForCausalLM",
    build=build,
    usual_context=131_072,
    defaults={"sliding_window": 4096},  # one that says null has none
    interleaved=True,
    left_out=SENSES,
    chat_template=LLAMA2,
)
