"""What a GGUF file says of a model besides its tokenizer, from config.json: sizes, windows, experts, rotary embedding.

UnsupportedError for what config.json says and GGUF has no key for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pagoda.errors import UnsupportedError
from pagoda.formats.checkpoint import Checkpoint
from pagoda.formats.gguf_writer import Value, f32, text, u32
from pagoda.models.family import Family
from pagoda.models.layers import Block, Decoder, Experts
from pagoda.models.rope import USUAL_THETA, frequencies, yarn_attention_factor, yarn_frequencies
from pagoda.models.source import Settings
from pagoda.types import FloatArray

Values = dict[str, Value]


def model_values(checkpoint: Checkpoint, decoder: Decoder, family: Family) -> Values:
    """The metadata of the file, without the tokenizer's."""
    spec = decoder.attention.spec
    settings = family.settings(checkpoint.metadata)
    values = {
        "block_count": u32(decoder.num_layers),
        "context_length": u32(decoder.max_context),
        "embedding_length": u32(decoder.embedding.shape[1]),
        "feed_forward_length": u32(settings.integer("intermediate_size", high=1 << 22)),
        "attention.head_count": u32(spec.num_heads),
        "attention.head_count_kv": u32(spec.num_kv_heads),
        "attention.key_length": u32(spec.head_dim),
        "attention.value_length": u32(spec.head_dim),
        **_eps(settings, family),
        "vocab_size": u32(decoder.vocab_size),
        "rope.dimension_count": u32(decoder.rope.rotary_dim),
        "rope.freq_base": f32(_theta(settings)),
        **_experts(decoder.blocks, family),
        **_windows(decoder, family),
        **_softcaps(decoder, family),
        **_scaling(settings, decoder),
        **(family.extra_values(settings, decoder) if family.extra_values else {}),
    }
    general = {
        "general.architecture": text(family.gguf),
        "general.type": text("model"),
        "general.name": text(checkpoint.path.absolute().name),
    }
    return general | {f"{family.gguf}.{key}": value for key, value in values.items()}


def _eps(settings: Settings, family: Family) -> Values:
    if family.layer_norm:
        return {"attention.layer_norm_epsilon": f32(settings.number("layer_norm_eps", 1e-5))}
    return {"attention.layer_norm_rms_epsilon": f32(settings.number("rms_norm_eps", 1e-6))}


def rope_tensors(config: Mapping[str, Any], decoder: Decoder, family: Family) -> dict[str, FloatArray]:
    """Factors of rotary pairs that GGUF holds as tensors: Llama 3's scaling, longrope's for short and long texts."""
    settings = family.settings(config)
    rope = _rope(settings)
    if rope.get("long_factor") is not None:
        return {f"rope_factors_{way}.weight": np.array(rope.get(f"{way}_factor"), "<f4") for way in ("long", "short")}
    if _method(rope) != "llama3":
        return {}
    inv_freq = decoder.rope.inv_freq.astype(np.float64)
    factors = frequencies(2 * len(inv_freq), _theta(settings)) / inv_freq
    return {"rope_freqs.weight": factors.astype(np.float32)}


def _rope(settings: Settings) -> Settings:
    """`rope_parameters` (transformers 5), else `rope_scaling`; those of full attention where kinds differ."""
    found = settings.section("rope_parameters") or settings.section("rope_scaling") or Settings({})
    return found.section("full_attention") or found


def _method(rope: Settings) -> str:
    return rope.text("rope_type", rope.text("type", "default"))


def _theta(settings: Settings) -> float:
    return _rope(settings).number("rope_theta", settings.number("rope_theta", USUAL_THETA))


def _scaling(settings: Settings, decoder: Decoder) -> Values:
    """Linear, YaRN and longrope by keys; factors of Llama 3 and of longrope are in tensors."""
    rope, key = _rope(settings), "original_max_position_embeddings"
    original = rope.get(key) or settings.get(key) or decoder.max_context
    if rope.get("long_factor") is not None:
        scale = decoder.rope.scale
        return {
            "rope.scaling.original_context_length": u32(int(original)),
            "rope.scaling.attn_factor": f32(scale),
        }
    method = _method(rope)
    if method in ("default", "llama3"):
        return {}
    if method == "dynamic":
        raise UnsupportedError(
            "GGUF has no key for rope scaling 'dynamic'; take it out of config.json if "
            f"{decoder.max_context} tokens, up to which it changes nothing, are enough"
        )
    if method == "yarn":
        return _yarn(rope, int(original), decoder, _theta(settings))
    return {"rope.scaling.type": text(method), "rope.scaling.factor": f32(rope.number("factor"))}


def _yarn(rope: Settings, original: int, decoder: Decoder, theta: float) -> Values:
    """GGUF's readers scale queries and keys by what the factor implies, times `attn_factor`: the rest of what is said.

    They round the blend's bounds outwards: UnsupportedError where `truncate: false` gives other frequencies than that.
    """
    spec, factor = decoder.rope, rope.number("factor", decoder.max_context / original)
    fast, slow = rope.number("beta_fast", 32.0), rope.number("beta_slow", 1.0)
    rounded = yarn_frequencies(frequencies(spec.rotary_dim, theta), theta, factor, original, fast, slow)
    if not np.allclose(rounded, spec.inv_freq, rtol=1e-5):
        raise UnsupportedError("GGUF has no key for YaRN's `truncate: false` of config.json, which matters here")
    return {
        "rope.scaling.type": text("yarn"),
        "rope.scaling.factor": f32(factor),
        "rope.scaling.original_context_length": u32(original),
        "rope.scaling.yarn_beta_fast": f32(fast),
        "rope.scaling.yarn_beta_slow": f32(slow),
        "rope.scaling.attn_factor": f32(spec.scale / yarn_attention_factor(factor)),
    }


def _experts(blocks: tuple[Block, ...], family: Family) -> Values:
    mixtures = [block.ffn for block in blocks if isinstance(block.ffn, Experts)]
    if not mixtures:
        return {}
    first = mixtures[0]
    if len(mixtures) < len(blocks):
        raise UnsupportedError(f"GGUF files of {family.name} have experts in every layer; this model has some without")
    if first.spec.normalize != family.gguf_norm_topk:
        raise UnsupportedError(f"GGUF has no key for norm_topk_prob {first.spec.normalize} of this {family.name} model")
    return {
        "expert_count": u32(len(first.gate)),
        "expert_used_count": u32(first.spec.num_used),
        "expert_feed_forward_length": u32(first.gate[0].shape[0]),
    }


def _windows(decoder: Decoder, family: Family) -> Values:
    windows = [attention.spec.window for attention in decoder.attentions.values()]
    size = next((window for window in windows if window), None)
    if size is None:
        return {"attention.sliding_window": u32(0)} if family.windows and not family.gguf_key else {}
    pattern = family.window_pattern
    slides = [not pattern or (layer + 1) % pattern != 0 for layer in range(len(windows))]
    if not family.windows or [window is not None for window in windows] != slides:
        raise UnsupportedError(f"GGUF has no key for the sliding windows of this {family.name} model")
    return {"attention.sliding_window": u32(size)}


def _softcaps(decoder: Decoder, family: Family) -> Values:
    """The softcap of attention for families whose files have it, that of logits wherever there is one."""
    caps = {"attn_logit_softcapping": decoder.attention.spec.softcap}
    if caps["attn_logit_softcapping"] and "attn_logit_softcapping" not in family.gguf_defaults:
        raise UnsupportedError("GGUF files of this family have no soft cap of attention")
    caps["final_logit_softcapping"] = decoder.logit_softcap
    return {key: f32(cap or 0.0) for key, cap in caps.items() if cap or key in family.gguf_defaults}
