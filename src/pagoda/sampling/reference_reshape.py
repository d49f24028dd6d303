"""llama.cpp's samplers in plain numpy, by sorting: the truth for csrc/sampler_reshape.cpp and sampler_dry.cpp.

Order: top-n-sigma, min_p, top_k, typical, top_p, XTC; then the temperature, where it is dynamic or comes last. Mirostat
stands in place of all of them. Candidates are ranked by logit, ties by id, lower first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pagoda.types import FloatArray, SamplingParams

Float64Array = npt.NDArray[np.float64]
Order = npt.NDArray[np.intp]

MIROSTAT_TOP = 100  # tokens from which mirostat 1 estimates the slope of Zipf's law


def reshapes(params: SamplingParams) -> bool:
    """Whether any of these cuts is asked for."""
    return (
        params.top_n_sigma > 0
        or params.typical_p < 1
        or params.xtc_probability > 0
        or params.dynatemp_range > 0
        or params.mirostat != 0
        or params.temperature_last
    )


def candidates(adjusted: FloatArray, params: SamplingParams, *, chance: float, mu: float) -> tuple[Order, Float64Array]:
    """The tokens that may be drawn, likeliest first, and their weights.

    chance: XTC's random number; mu: the surprise in bits that mirostat allows
    """
    order = np.lexsort((np.arange(adjusted.shape[0]), -adjusted))
    order = order[np.isfinite(adjusted[order])]
    logits = adjusted[order].astype(np.float64)
    if params.mirostat:
        return _mirostat(order, logits / params.temperature, params, adjusted.shape[0], mu)
    is_last = params.temperature_last or params.dynatemp_range > 0
    weights = np.exp((logits - logits[0]) / (1.0 if is_last else params.temperature))
    keep = (weights > 0) & (weights >= params.min_p)
    if params.top_n_sigma > 0:
        keep &= logits >= logits[0] - params.top_n_sigma * logits.std()
    if params.top_k > 0:
        keep[params.top_k :] = False
    order, weights = order[keep], weights[keep]
    if params.typical_p < 1:
        order, weights = _typical(order, weights, params.typical_p)
    if params.top_p < 1:
        keep = np.cumsum(weights) - weights < params.top_p * weights.sum()
        order, weights = order[keep], weights[keep]
    if params.xtc_probability > 0 and chance < params.xtc_probability:
        order, weights = _exclude_top(order, weights, params.xtc_threshold)
    if is_last:
        order, weights = _weigh_at_last(order, adjusted[order].astype(np.float64), params)
    return order, weights


def _typical(order: Order, weights: Float64Array, typical_p: float) -> tuple[Order, Float64Array]:
    """Meister et al., 'Locally typical sampling', 2023: those whose surprise is closest to the entropy."""
    probs = weights / weights.sum()
    distance = np.abs(-np.log(probs) - _entropy(probs))
    closest = np.lexsort((order, distance))
    mass_before = np.cumsum(probs[closest]) - probs[closest]
    kept = np.sort(closest[mass_before <= typical_p])
    return order[kept], weights[kept]


def _exclude_top(order: Order, weights: Float64Array, threshold: float) -> tuple[Order, Float64Array]:
    """XTC of p-e-w, 2024: of the tokens that are likely enough, only the least likely stays."""
    num_top = int((weights / weights.sum() >= threshold).sum())
    return (order[num_top - 1 :], weights[num_top - 1 :]) if num_top > 1 else (order, weights)


def _weigh_at_last(order: Order, logits: Float64Array, params: SamplingParams) -> tuple[Order, Float64Array]:
    temperature = params.temperature
    if params.dynatemp_range > 0 and len(logits) > 1:
        probs = np.exp(logits - logits[0])
        probs = probs[probs > 2.0**-127]
        share = _entropy(probs / probs.sum()) / math.log(len(probs)) if len(probs) > 1 else 0.0
        low, high = max(0.0, temperature - params.dynatemp_range), temperature + params.dynatemp_range
        temperature = low + (high - low) * share**params.dynatemp_exponent
    if temperature < 1e-5:
        return order[:1], np.ones(1)
    return order, np.exp((logits - logits[0]) / temperature)


def _mirostat(
    order: Order, scaled: Float64Array, params: SamplingParams, vocab_size: int, mu: float
) -> tuple[Order, Float64Array]:
    """Basu et al., 'Mirostat', 2021. `scaled` are logits over the temperature."""
    weights = np.exp(scaled - scaled[0])
    if params.mirostat == 2:
        keep = weights >= min(1.0, weights.sum() * 2.0**-mu)
        return order[keep], weights[keep]
    k = mirostat_k(scaled[:MIROSTAT_TOP], vocab_size, mu)
    return order[:k], weights[:k]


def mirostat_k(scaled: Float64Array, vocab_size: int, mu: float) -> int:
    """How many of the likeliest tokens give a surprise of `mu` bits, if they follow Zipf's law."""
    if len(scaled) < 2:
        return 1
    ranks = np.arange(1, len(scaled))
    t = np.log((ranks + 1) / ranks)
    s = float((t * (scaled[:-1] - scaled[1:])).sum() / (t * t).sum())
    epsilon = s - 1
    if s == 0:
        return vocab_size
    factor = 1 / math.log(vocab_size) if abs(epsilon) < 1e-9 else epsilon / (1 - vocab_size**-epsilon)
    with np.errstate(over="ignore"):
        k = float(np.power(factor * 2.0**mu, 1 / s))
    return vocab_size if k >= vocab_size else max(int(k), 1)


def dry_penalties(tokens: Sequence[int], params: SamplingParams, breakers: Sequence[Sequence[int]]) -> dict[int, float]:
    """What each token that would prolong a repetition loses of its logit. `tokens`: prompt and output.

    A token's repetition is the longest passage before one of its earlier places that equals the end of the text, as far
    as that goes back to the last breaker.
    """
    if params.dry_multiplier == 0 or params.dry_penalty_last_n == 0:
        return {}
    recent = list(tokens if params.dry_penalty_last_n < 0 else tokens[-params.dry_penalty_last_n :])
    limit = _after_last_breaker(recent, breakers)
    longest: dict[int, int] = {}
    for place in range(1, len(recent)):
        length = 0
        while length < min(place, limit) and recent[place - 1 - length] == recent[-1 - length]:
            length += 1
        if length >= params.dry_allowed_length:
            longest[recent[place]] = max(length, longest.get(recent[place], 0))
    single = {breaker[0] for breaker in breakers if len(breaker) == 1}
    max_exponent = 88.7228391 // math.log(params.dry_base) if params.dry_base > 1.000001 else 0
    return {
        token: params.dry_multiplier * params.dry_base ** min(length - params.dry_allowed_length, max_exponent)
        for token, length in longest.items()
        if token not in single
    }


def _after_last_breaker(recent: Sequence[int], breakers: Sequence[Sequence[int]]) -> int:
    for start in range(len(recent) - 1, -1, -1):
        ends = [start + len(b) for b in breakers if list(recent[start : start + len(b)]) == list(b)]
        if ends:
            return len(recent) - max(ends)
    return len(recent)


def _entropy(probs: Float64Array) -> float:
    """In nats."""
    return float(-(probs * np.log(probs)).sum())
