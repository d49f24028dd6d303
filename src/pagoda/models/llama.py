"""Llama 2 and 3, and what was built like it: SmolLM2, TinyLlama, Mistral but for its window.

GGUF files hold the rows of q and k reordered so that a rotary pair lies side by side; Hugging Face files do not.
"""

from __future__ import annotations

from pagoda.models.family import Family, ModelFile
from pagoda.models.layers import Decoder
from pagoda.models.reader import DecoderReader, LayerKind, read_sizes
from pagoda.models.rope import read_rope
from pagoda.text.builtin_templates import LLAMA2


def build(file: ModelFile) -> Decoder:
    sizes = read_sizes(file)
    return DecoderReader(file, sizes).decoder([LayerKind(read_rope(file, sizes.head_dim))] * sizes.num_layers)


FAMILY = Family(
    name="llama",
    gguf="llama",
    hf_class="LlamaForCausalLM",
    build=build,
    interleaved=True,
    windows=False,
    chat_template=LLAMA2,
)
