"""Gemma 3, text: five sliding-window layers to each global one, with rotary embeddings of their own; norms of heads
and after each part; GeGLU; embeddings times sqrt(E).

Norms multiply by 1 + w: GGUF files hold that sum, Hugging Face files hold w.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

from pagoda.backends.base import RopeSpec
from pagoda.errors import UnsupportedError
from pagoda.models.family import Family, ModelFile
from pagoda.models.layers import Decoder
from pagoda.models.names import TENSORS
from pagoda.models.reader import (
    DecoderReader,
    LayerKind,
    Sizes,
    read_activation,
    read_layer_types,
    read_sizes,
    read_window,
)
from pagoda.models.rope import LEAST_THETA, plain_rope, read_rope
from pagoda.models.source import Checkpoint

LOCAL_THETA = 10_000.0  # of sliding-window layers


def build(file: ModelFile) -> Decoder:
    _refuse(file)
    sizes = read_sizes(file)
    reader = DecoderReader(
        file,
        sizes,
        activation=read_activation(file, "hidden_activation", "gelu_tanh"),
        attention_scale=_attention_scale(file, sizes),
    )
    return reader.decoder(_layer_kinds(file, sizes), embedding_scale=sqrt(sizes.hidden_size))


def _refuse(file: ModelFile) -> None:
    if file.settings.get("text_config") is not None:
        raise UnsupportedError("this Gemma 3 folder holds a vision model too; Pagoda serves the text-only one")
    if file.settings.get("use_bidirectional_attention"):
        raise UnsupportedError("use_bidirectional_attention: embedding models are not supported")


def _attention_scale(file: ModelFile, sizes: Sizes) -> float:
    """1 / sqrt(query_pre_attn_scalar). GGUF does not hold it; it is the head size but in the 27B, of 62 layers."""
    if file.is_gguf:
        return 1 / sqrt(sizes.hidden_size / sizes.num_heads if sizes.num_layers == 62 else sizes.head_dim)
    return 1 / sqrt(file.settings.number("query_pre_attn_scalar", 256.0, low=1e-3))


def _layer_kinds(file: ModelFile, sizes: Sizes) -> list[LayerKind]:
    full = LayerKind(read_rope(file, sizes.head_dim))
    if file.is_gguf and not file.has_field("window"):
        return [full] * sizes.num_layers
    local = LayerKind(_local_rope(file, sizes.head_dim), read_window(file, sizes.max_context))
    return [local if sliding else full for sliding in _sliding(file, sizes.num_layers)]


def _local_rope(file: ModelFile, head_dim: int) -> RopeSpec:
    """That of sliding layers: not stretched with the context. Older files state its theta apart, or not at all."""
    if not file.is_gguf and file.settings.section("rope_parameters") is not None:
        return read_rope(file, head_dim, kind="sliding_attention", theta=LOCAL_THETA)
    key = file.key("rope.freq_base_swa") if file.is_gguf else "rope_local_base_freq"
    return plain_rope(head_dim, file.settings.number(key, LOCAL_THETA, low=LEAST_THETA), "neox")


def _sliding(file: ModelFile, num_layers: int) -> list[bool]:
    """Layer by layer where the file says so, else all but the last of each `pattern` layers."""
    types = read_layer_types(file, num_layers)
    if types is not None:
        return types
    key = file.key("window_pattern")
    if file.settings.is_sequence(key):
        return [bool(sliding) for sliding in file.settings.sequence(key, num_layers)]
    pattern = file.integer("window_pattern", FAMILY.window_pattern, high=1 << 12)
    return [bool((layer + 1) % pattern) for layer in range(num_layers)]


def _extra_config(checkpoint: Checkpoint, decoder: Decoder) -> dict[str, Any]:
    local = checkpoint.metadata.get("gemma3.rope.freq_base_swa", LOCAL_THETA)
    spec = decoder.blocks[0].attention.spec
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(spec.scale**-2),
        "rope_local_base_freq": float(local),
        "final_logit_softcapping": decoder.logit_softcap,
        "attn_logit_softcapping": spec.softcap,
    }


FAMILY = Family(
    name="gemma3",
    gguf="gemma3",
    hf_class="Gemma3ForCausalLM",
    model_type="gemma3_text",
    build=build,
    usual_context=131_072,
    tensors=TENSORS
    | {
        "attn_post_norm": ("blk.{i}.post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
        "ffn_norm": ("blk.{i}.ffn_norm", "model.layers.{i}.pre_feedforward_layernorm"),
        "ffn_post_norm": ("blk.{i}.post_ffw_norm", "model.layers.{i}.post_feedforward_layernorm"),
    },
    defaults={
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "rope_theta": 1_000_000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    norm_offset=1.0,
    extra_config=_extra_config,
    qk_norm=True,
    post_norms=True,
    window_pattern=6,
    rope_tables=2,
)
