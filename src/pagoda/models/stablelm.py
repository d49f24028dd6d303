"""StableLM 3B and StableLM 2 1.6B: Llama with layer norms, of whose heads a quarter is turned. StableLM 2 12B has
attention and feed-forward side by side; it normalizes heads in a way of its own, and is refused.
"""

from __future__ import annotations

from typing import Any

from pagoda.formats.gguf_writer import Value, boolean
from pagoda.models.family import Family, ModelFile
from pagoda.models.layers import Decoder
from pagoda.models.reader import DecoderReader, LayerKind, read_sizes
from pagoda.models.rope import read_rope
from pagoda.models.source import Checkpoint, Settings


def build(file: ModelFile) -> Decoder:
    sizes = read_sizes(file)
    reader = DecoderReader(file, sizes)
    layers = range(sizes.num_layers)
    reader.parallel = not any(file.has_tensor("ffn_norm", layer) for layer in layers)
    reader.qkv_bias = any(file.has_tensor(role, i, suffix="bias") for i in layers for role in ("attn_q", "attn_k"))
    return reader.decoder([LayerKind(read_rope(file, sizes.head_dim))] * sizes.num_layers)


def _extra_config(checkpoint: Checkpoint, decoder: Decoder) -> dict[str, Any]:
    block = decoder.blocks[0]
    return {
        "attention_bias": False,  # which would have one in the output, too
        "use_qkv_bias": decoder.attention.q.bias is not None,
        "use_parallel_residual": block.parallel,
    }


def _extra_values(settings: Settings, decoder: Decoder) -> dict[str, Value]:
    return {"use_parallel_residual": boolean(decoder.blocks[0].parallel)}


FAMILY = Family(
    name="stablelm",
    gguf="stablelm",
    hf_class="StableLmForCausalLM",
    build=build,
    compared=("llama.cpp 0.3.36: greedy tokens",),
    not_covered="training; StableLM 2 12B",
    defaults={"partial_rotary_factor": 0.25},
    usual_context=4096,
    extra_config=_extra_config,
    extra_values=_extra_values,
    layer_norm=True,
    is_trained=False,
    norm_bias=True,
    partial_rotary=True,
    windows=False,
)
