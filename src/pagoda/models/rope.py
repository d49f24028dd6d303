"""Rotary frequencies, with the scalings that stretch a model's context.

Everything is computed in float64 and rounded to float32 once. Supported: none, linear, llama3, yarn, longrope and
dynamic; as settings of either file kind, or as tensors of factors (GGUF). The rest is refused, not ignored.

Longrope has two sets of factors, for sequences within the original context and beyond it, and dynamic scaling depends
on the length. What is used is decided once, by the context that is served, as llama.cpp and vLLM do for longrope: a
choice by the length of each sequence, as transformers makes it, changes the keys that are cached already when a
sequence grows past the border.
"""

from __future__ import annotations

from math import ceil, floor, log, pi, sqrt

import numpy as np
import numpy.typing as npt

from pagoda.backends.specs import RopeSpec, RopeStyle
from pagoda.errors import FormatError, UnsupportedError
from pagoda.formats.blocks import dequantize
from pagoda.models.family import ModelFile
from pagoda.models.source import Settings

Frequencies = npt.NDArray[np.float64]  # [rotary_dim / 2]

MAX_LENGTH = 2**31 - 1  # tokens
USUAL_THETA = 10_000.0
LEAST_THETA = 1.001  # 1 would turn all pairs alike, and below it faster ones further back
LEAST_FACTOR, MOST_FACTOR = 1e-3, 1e6
STILL = float(np.float32(1e30))  # what a GGUF file divides the frequency of a pair by that is not turned


def read_rope(file: ModelFile, head_dim: int, *, kind: str = "full_attention", theta: float | None = None) -> RopeSpec:
    """Rotary embedding of the file's layers; of those of `kind`, and by default of `theta`, where config.json tells
    kinds apart."""
    return _read_gguf(file, head_dim) if file.is_gguf else _read_config(file, head_dim, kind, theta)


def read_local_rope(file: ModelFile, head_dim: int, key: str, theta: float) -> RopeSpec:
    """That of sliding layers: not stretched with the context. Older config.json state its theta as `key`, or not."""
    if not file.is_gguf and file.settings.section("rope_parameters") is not None:
        return read_rope(file, head_dim, kind="sliding_attention", theta=theta)
    key = file.key("rope.freq_base_swa") if file.is_gguf else key
    return plain_rope(head_dim, file.settings.number(key, theta, low=LEAST_THETA), file.rope_style)


def plain_rope(rotary_dim: int, theta: float, style: RopeStyle) -> RopeSpec:
    return _spec(style, frequencies(rotary_dim, theta))


def frequencies(rotary_dim: int, theta: float) -> Frequencies:
    """theta^(-2i / rotary_dim) for each pair i."""
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
    return np.asarray(theta**-exponents, dtype=np.float64)


def llama3_frequencies(base: Frequencies, factor: float, low: float, high: float, original: float) -> Frequencies:
    """Llama 3.1: slow pairs turn `factor` slower, fast ones as before, those between are blended.

    A pair is slow if it turns less than `low` times within `original` tokens, and fast if more than `high` times.
    """
    turns = original * base / (2 * pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    inv_freq: Frequencies = base * (keep + (1 - keep) / factor)
    return inv_freq


def yarn_frequencies(
    base: Frequencies, theta: float, factor: float, original: float, fast: float, slow: float, *, whole: bool = True
) -> Frequencies:
    """YaRN (arXiv 2309.00071): as llama3, but blended over the pair's index instead of its turns.

    `fast` and `slow` are the turns within `original` tokens that bound the blend; `whole` rounds it outwards.
    """
    pairs = len(base)
    first, last = (pairs * log(original / (turns * 2 * pi)) / log(theta) for turns in (fast, slow))
    if whole:
        first, last = floor(first), ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    slowed = np.clip((np.arange(pairs) - first) / max(last - first, 1e-3), 0.0, 1.0)
    inv_freq: Frequencies = base * (1 - slowed + slowed / factor)
    return inv_freq


def dynamic_frequencies(rotary_dim: int, theta: float, factor: float, original: int, length: int) -> Frequencies:
    """Dynamic NTK: as trained up to `original` tokens, and beyond with a larger theta, so that `length` tokens fit."""
    stretch = factor * max(length, original) / original - (factor - 1)
    return frequencies(rotary_dim, theta * stretch ** (rotary_dim / (rotary_dim - 2)) if rotary_dim > 2 else theta)


def yarn_attention_factor(factor: float, multiplier: float = 1.0) -> float:
    return 0.1 * multiplier * log(factor) + 1.0 if factor > 1 else 1.0


def longrope_attention_factor(factor: float, original: int) -> float:
    """LongRoPE (arXiv 2402.13753): `factor` is by how much the context is longer than `original` tokens."""
    return sqrt(1 + log(factor) / log(original)) if factor > 1 else 1.0


def _spec(style: RopeStyle, inv_freq: Frequencies, scale: float = 1.0) -> RopeSpec:
    return RopeSpec(style, inv_freq.astype(np.float32), scale)


def _read_gguf(file: ModelFile, head_dim: int) -> RopeSpec:
    style, theta = file.rope_style, file.number("rope.freq_base", USUAL_THETA, low=LEAST_THETA)
    base = frequencies(_rotary_dim(file, head_dim), theta)
    if file.has_tensor("rope_factors"):
        factors = _read_factors(file, "rope_factors", len(base))
        base = np.where(factors == STILL, 0.0, base / factors)
    if file.has_tensor("rope_factors_long") or file.has_tensor("rope_factors_short"):
        original = file.integer("rope.scaling.original_context_length", _max_context(file), high=MAX_LENGTH)
        long, short = (_read_factors(file, f"rope_factors_{which}", len(base)) for which in ("long", "short"))
        scale = file.number("rope.scaling.attn_factor", 1.0)
        return _spec(style, base / (long if _served_context(file) > original else short), scale)
    method = file.settings.text(file.key("rope.scaling.type"), "linear")
    factor = _read_gguf_factor(file)
    if method == "none" or factor == 1.0:
        return _spec(style, base)
    if method == "linear":
        return _spec(style, base / factor)
    if method == "dynamic":
        original = file.integer("rope.scaling.original_context_length", _max_context(file), high=MAX_LENGTH)
        return _spec(style, dynamic_frequencies(2 * len(base), theta, factor, original, _served_context(file)))
    if method == "yarn":
        original = file.integer("rope.scaling.original_context_length", _max_context(file), high=MAX_LENGTH)
        fast, slow = file.number("rope.scaling.yarn_beta_fast", 32.0), file.number("rope.scaling.yarn_beta_slow", 1.0)
        scale = file.number("rope.scaling.attn_factor", 1.0) * yarn_attention_factor(factor)
        scale /= yarn_attention_factor(factor, file.optional_number("rope.scaling.yarn_log_multiplier") or 0.0)
        whole = file.family.gguf_whole_yarn
        return _spec(style, yarn_frequencies(base, theta, factor, original, fast, slow, whole=whole), scale)
    raise _unsupported(method)


def _read_gguf_factor(file: ModelFile) -> float:
    for field in ("rope.scaling.factor", "rope.scale_linear"):  # the second is the name of old
        if file.optional_number(field) is not None:
            return file.number(field, low=LEAST_FACTOR, high=MOST_FACTOR)
    return 1.0


def _max_context(file: ModelFile) -> int:
    return file.integer("max_context", high=MAX_LENGTH)


def _rotary_dim(file: ModelFile, head_dim: int) -> int:
    rotary_dim = file.integer("rope.dimension_count", head_dim, low=2, high=head_dim)
    if rotary_dim % 2:
        raise FormatError(f"{file.key('rope.dimension_count')} is {rotary_dim}, must be even")
    return rotary_dim


def _served_context(file: ModelFile) -> int:
    """Tokens that a sequence may have: as many as will be served, or as many as the file states."""
    return file.max_context or _max_context(file)


def context_limit(file: ModelFile) -> int:
    """The longest context that can be served: what the file states, or, where asked for, what its scaling reaches.

    A file may state the context that the model was trained for beside a scaling that stretches it, as Qwen 2.5's do.
    """
    stated = _max_context(file)
    wanted = file.max_context or stated
    return wanted if stated < wanted <= _reach(file, stated) else stated


def _reach(file: ModelFile, stated: int) -> int:
    if file.is_gguf:
        method = file.settings.get(file.key("rope.scaling.type"))
        factor, original = _read_gguf_factor(file), file.settings.get(file.key("rope.scaling.original_context_length"))
    else:
        scaling = file.settings.section("rope_parameters") or file.settings.section("rope_scaling") or Settings({})
        method = scaling.get("rope_type") or scaling.get("type")
        factor, original = scaling.get("factor") or 1.0, scaling.get("original_max_position_embeddings")
    if method not in ("yarn", "linear", "dynamic") or not isinstance(factor, (int, float)):
        return stated
    trained = original if isinstance(original, int) and original else stated
    return min(MAX_LENGTH, round(trained * factor))


def _read_factors(file: ModelFile, role: str, pairs: int) -> Frequencies:
    raw = file.tensor(role, (pairs,))
    return _checked_factors(f"tensor {raw.name!r}", dequantize(raw.data, raw.type, raw.shape).astype(np.float64))


def _checked_factors(where: str, factors: Frequencies) -> Frequencies:
    if not ((factors >= LEAST_FACTOR) & ((factors <= MOST_FACTOR) | (factors == STILL))).all():
        raise FormatError(f"{where} holds factors outside {LEAST_FACTOR:g} to {MOST_FACTOR:g}")
    return factors


def _read_config(file: ModelFile, head_dim: int, kind: str, theta: float | None) -> RopeSpec:
    """config.json: `rope_parameters` (transformers 5), else `rope_theta` and `rope_scaling` beside each other."""
    config = file.settings
    scaling = config.section("rope_parameters") or config.section("rope_scaling") or Settings({})
    scaling = scaling.section(kind) or scaling
    theta = scaling.number("rope_theta", theta or config.number("rope_theta", USUAL_THETA), low=LEAST_THETA)
    share = scaling.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    if scaling.get("rope_type") == "proportional":
        return _spec(file.rope_style, _proportional_frequencies(head_dim, theta, share) / _read_factor(scaling, 1.0))
    rotary_dim = int(head_dim * share)
    if not 2 <= rotary_dim <= head_dim or rotary_dim % 2:
        raise FormatError(f"partial_rotary_factor is {share}, which turns {rotary_dim} of {head_dim} elements")
    base = frequencies(rotary_dim, theta)
    if scaling.get("long_factor") is not None:  # its oldest files call it "su" or "yarn"
        return _read_longrope(file, scaling, base)
    return _scaled(file, scaling, base, theta)


def _scaled(file: ModelFile, scaling: Settings, base: Frequencies, theta: float) -> RopeSpec:
    style = file.rope_style
    method = scaling.text("rope_type", scaling.text("type", "default"))
    if method in ("default", "mrope"):  # positions in text move all parts of mrope alike
        return _spec(style, base)
    if method == "linear":
        return _spec(style, base / _read_factor(scaling))
    if method == "llama3":
        return _spec(style, _read_llama3(file, scaling, base))
    if method == "dynamic" and scaling.get("alpha"):
        return _spec(style, _alpha_frequencies(2 * len(base), theta, scaling.number("alpha")))
    if method == "dynamic":
        original = scaling.integer("original_max_position_embeddings", _max_context(file), high=MAX_LENGTH)
        served, factor = _served_context(file), _read_factor(scaling)
        return _spec(style, dynamic_frequencies(2 * len(base), theta, factor, original, served))
    if method == "yarn":
        return _read_yarn(file, scaling, base, theta)
    raise _unsupported(method)


def _proportional_frequencies(head_dim: int, theta: float, share: float) -> Frequencies:
    """Gemma 4's: only the fastest pairs are turned, a `share` of them all, as if all were."""
    base = frequencies(head_dim, theta)
    return np.where(np.arange(len(base)) < int(share * head_dim // 2), base, 0.0)


def _alpha_frequencies(rotary_dim: int, theta: float, alpha: float) -> Frequencies:
    """Hunyuan's: dynamic NTK for a length that is fixed beforehand."""
    return frequencies(rotary_dim, theta * alpha ** (rotary_dim / (rotary_dim - 2)) if rotary_dim > 2 else theta)


def _read_llama3(file: ModelFile, scaling: Settings, base: Frequencies) -> Frequencies:
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if low >= high:
        raise scaling.error("low_freq_factor", low, f"must be below high_freq_factor, {high:g}")
    original = scaling.number("original_max_position_embeddings", _max_context(file))
    return llama3_frequencies(base, _read_factor(scaling), low, high, original)


def _read_factor(scaling: Settings, default: float | None = None) -> float:
    return scaling.number("factor", default, low=LEAST_FACTOR, high=MOST_FACTOR)


def _read_longrope(file: ModelFile, scaling: Settings, base: Frequencies) -> RopeSpec:
    key, longest = "original_max_position_embeddings", _max_context(file)
    original = scaling.integer(key, file.settings.integer(key, longest, low=2, high=MAX_LENGTH), low=2, high=MAX_LENGTH)
    keys = ("long_factor", "short_factor")
    long, short = (_checked_factors(key, scaling.numbers(key, len(base))) for key in keys)
    factors = long if _served_context(file) > original else short
    stretch = scaling.number("factor", longest / original)
    scale = scaling.number("attention_factor", longrope_attention_factor(stretch, original))
    return _spec(file.rope_style, base / factors, scale)


def _read_yarn(file: ModelFile, scaling: Settings, base: Frequencies, theta: float) -> RopeSpec:
    """A factor of null is what the context is longer than the original, as transformers reads it."""
    longest = _max_context(file)
    original = scaling.integer("original_max_position_embeddings", longest, high=MAX_LENGTH)
    factor = _read_factor(scaling, longest / original)
    fast, slow = scaling.number("beta_fast", 32.0), scaling.number("beta_slow", 1.0)
    inv_freq = yarn_frequencies(base, theta, factor, original, fast, slow, whole=scaling.flag("truncate", True))
    return _spec(
        file.rope_style, inv_freq, scaling.number("attention_factor", _implied_attention_factor(scaling, factor))
    )


def _implied_attention_factor(scaling: Settings, factor: float) -> float:
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        above, below = scaling.number("mscale"), scaling.number("mscale_all_dim")
        return yarn_attention_factor(factor, above) / yarn_attention_factor(factor, below)
    return yarn_attention_factor(factor)


def _unsupported(method: str) -> UnsupportedError:
    return UnsupportedError(
        f"rope scaling {method!r} is not supported; supported: linear, llama3, yarn, longrope, dynamic"
    )
