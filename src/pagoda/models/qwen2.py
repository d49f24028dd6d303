"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, and rotary pairs half a head apart in either file kind."""

from __future__ import annotations

from pagoda.models.family import Family, ModelFile
from pagoda.models.layers import Decoder
from pagoda.models.reader import DecoderReader, LayerKind, Sizes, read_layer_types, read_sizes, read_window
from pagoda.models.rope import read_rope


def build(file: ModelFile) -> Decoder:
    sizes = read_sizes(file)
    return DecoderReader(file, sizes).decoder(layer_kinds(file, sizes))


def layer_kinds(file: ModelFile, sizes: Sizes) -> list[LayerKind]:
    """Windows are off unless config.json turns them on, then for the layers from `max_window_layers` up."""
    rope = read_rope(file, sizes.head_dim)
    if file.is_gguf or not file.settings.flag("use_sliding_window"):
        return [LayerKind(rope)] * sizes.num_layers
    window = read_window(file, sizes.max_context)
    slides = read_layer_types(file, sizes.num_layers)
    if slides is None:
        first = file.settings.integer("max_window_layers", sizes.num_layers, low=0, high=1 << 12)
        slides = [layer >= first for layer in range(sizes.num_layers)]
    return [LayerKind(rope, window if sliding else None) for sliding in slides]


FAMILY = Family(
    name="qwen2",
    gguf="qwen2",
    hf_class="Qwen2ForCausalLM",
    build=build,
    usual_context=32_768,
    qkv_bias=True,
    windows=False,
)
