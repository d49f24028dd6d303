"""What ops compute, in plain numpy: the truth that kernels are tested against, and what calibration runs on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from pagoda.backends.specs import (
    Activation,
    AttentionSpec,
    DeltaSpec,
    ExpertGroups,
    ExpertsSpec,
    QueryGrowth,
    RopeSpec,
    ScanSpec,
)
from pagoda.types import FloatArray, Int32Array

SWIGLU_LIMIT, SWIGLU_ALPHA = 7.0, 1.702  # of clamped_swiglu
LEAST_TOTAL = 1e-20  # scores of experts that are all 0 stay so


def rms_norm(x: FloatArray, weight: FloatArray, eps: float) -> FloatArray:
    """x / sqrt(mean(x²) + eps) * weight over the last dimension."""
    mean_square = np.mean(np.square(x, dtype=np.float32), axis=-1, keepdims=True, dtype=np.float32)
    return np.asarray(x / np.sqrt(mean_square + np.float32(eps)) * weight, dtype=np.float32)


def layer_norm(x: FloatArray, weight: FloatArray, bias: FloatArray, eps: float) -> FloatArray:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension."""
    away = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float32)
    variance = np.mean(np.square(away), axis=-1, keepdims=True, dtype=np.float32)
    return np.asarray(away / np.sqrt(variance + np.float32(eps)) * weight + bias, dtype=np.float32)


def head_norm(x: FloatArray, weight: FloatArray, eps: float, num_heads: int, *, centered: bool = False) -> FloatArray:
    """rms_norm over each head of x [T, num_heads * D], its mean taken out before where it is `centered`."""
    heads: FloatArray = x.reshape(len(x), num_heads, -1)
    weights = weight.reshape(-1, heads.shape[2])  # [1, D] or [num_heads, D]
    if centered:
        heads = heads - np.mean(heads, axis=-1, keepdims=True, dtype=np.float32)
    return rms_norm(heads, weights, eps).reshape(x.shape)


def linear(x: FloatArray, weight: FloatArray, bias: FloatArray | None = None) -> FloatArray:
    """x [T, in] @ weight [out, in].T + bias [out], row by row: BLAS sums a row of a product by where it stands."""
    out = np.empty((len(x), len(weight)), dtype=np.float32)
    for t, row in enumerate(x):
        np.matmul(weight, row, out=out[t])
    return out if bias is None else out + bias


def fast_linear(x: FloatArray, weight: FloatArray, bias: FloatArray | None = None) -> FloatArray:
    """`linear` as one matrix product: the last bits of a row depend on the others."""
    out = x @ weight.T
    return out if bias is None else out + bias


def head_linear(
    x: FloatArray, weight: FloatArray, kept: int = 0, product: Callable[..., FloatArray] = linear
) -> FloatArray:
    """Each head of x [T, H * (kept + C)] @ its matrix [R, C].T, of weight [H, R, C]; its first `kept` numbers stay."""
    heads = x.reshape(len(x), len(weight), -1)
    made = [product(np.ascontiguousarray(heads[:, h, kept:]), each) for h, each in enumerate(weight)]
    return np.concatenate([heads[:, :, :kept], np.stack(made, axis=1)], axis=2).reshape(len(x), -1)


def rope_angles(positions: Int32Array, spec: RopeSpec) -> tuple[FloatArray, FloatArray]:
    """cos and sin, times the spec's scale, of each token and pair. → two of [T, rotary_dim / 2]"""
    angles = positions.astype(np.float64)[:, None] * spec.inv_freq.astype(np.float64)
    return (np.cos(angles) * spec.scale).astype(np.float32), (np.sin(angles) * spec.scale).astype(np.float32)


def rope(x: FloatArray, positions: Int32Array, num_heads: int, spec: RopeSpec) -> FloatArray:
    """Rotate the first rotary_dim elements of each head of x [T, num_heads * D]."""
    out = x.reshape(x.shape[0], num_heads, -1).copy()
    half = spec.rotary_dim // 2
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
        if spec.style == "interleaved"
        else (slice(0, half), slice(half, 2 * half))
    )
    cos, sin = (angle[:, None, :] for angle in rope_angles(positions, spec))
    a, b = out[..., first].copy(), out[..., second].copy()
    out[..., first] = a * cos - b * sin
    out[..., second] = a * sin + b * cos
    return out.reshape(x.shape)


def gaussian_topk(x: FloatArray, deviations: float) -> FloatArray:
    """max(x - (mean + deviations * standard deviation), 0) over the last dimension."""
    away = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float32)
    deviation = np.sqrt(np.mean(np.square(away), axis=-1, keepdims=True, dtype=np.float32))
    return np.asarray(np.maximum(away - deviation * np.float32(deviations), 0), dtype=np.float32)


def mix_streams(x: FloatArray, coefficients: FloatArray, streams: int) -> FloatArray:
    """Stream i of the result is the sum over j of coefficients[:, i * streams + j] * x_j, one after the other."""
    held = x.reshape(len(x), streams, -1)
    each = coefficients.reshape(len(x), -1, streams)
    out = np.zeros((len(x), each.shape[1], held.shape[2]), np.float32)
    for j in range(streams):
        out += each[:, :, j, None] * held[:, None, j]
    return out.reshape(len(x), -1)


def softmax(x: FloatArray) -> FloatArray:
    """Over the last dimension."""
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float32)


def expert_weights(
    router: FloatArray, spec: ExpertsSpec, scales: FloatArray | None = None, corrections: FloatArray | None = None
) -> FloatArray:
    """How much each expert counts for each token, 0 for those not picked. router [T, N]; scales, corrections [N]
    → [T, N]"""
    scores = softmax(router) if spec.scoring == "softmax" else sigmoid(router)
    ranked = router if corrections is None else scores + corrections
    if spec.groups is not None:
        allowed = _in_best_groups(scores if corrections is None else ranked, spec.groups)
        ranked = np.where(allowed, ranked, np.float32(-np.inf))
    picked = np.argsort(-ranked, axis=-1, kind="stable")[:, : spec.num_used]
    weights = np.zeros_like(scores)
    np.put_along_axis(weights, picked, np.take_along_axis(scores, picked, -1), -1)
    if spec.normalize:
        weights = weights / (weights.sum(-1, keepdims=True) + LEAST_TOTAL)
    weights = weights * np.float32(spec.scale)
    return np.asarray(weights if scales is None else weights * scales, np.float32)


def _in_best_groups(scores: FloatArray, groups: ExpertGroups) -> npt.NDArray[np.bool_]:
    """Which experts belong to a token's groups, of equals the first. scores [T, N] → [T, N]"""
    each = scores.reshape(len(scores), groups.count, -1)
    of_group = np.sort(each, axis=-1)[..., -groups.best :].sum(-1)
    used = np.argsort(-of_group, axis=-1, kind="stable")[:, : groups.num_used]
    allowed = np.zeros(of_group.shape, np.bool_)
    np.put_along_axis(allowed, used, True, -1)
    return np.repeat(allowed, each.shape[-1], axis=-1)


def grown(q: FloatArray, positions: Int32Array, growth: QueryGrowth | None) -> FloatArray:
    """q [T, H * D] of tokens at these positions, multiplied as `growth` says."""
    if growth is None:
        return q
    factors = 1 + growth.beta * np.log1p(positions // growth.length)
    return np.asarray(q * factors[:, None].astype(np.float32), dtype=np.float32)


def softcapped(x: FloatArray, cap: float | None) -> FloatArray:
    """cap * tanh(x / cap); x where there is no cap."""
    return x if cap is None else np.asarray(np.tanh(x / np.float32(cap)) * np.float32(cap), dtype=np.float32)


def attend(
    q: FloatArray, k: FloatArray, v: FloatArray, spec: AttentionSpec, sinks: FloatArray | None = None
) -> FloatArray:
    """One query token q [H * D] over the keys [N, K, D] and values [N, K, V] that it sees; sinks [H]. → [H * V]"""
    heads = q.reshape(spec.num_kv_heads, -1, spec.head_dim)  # [K, H / K, D]
    scores = heads @ k.transpose(1, 2, 0) * np.float32(spec.scale)  # [K, H / K, N]
    scores = softcapped(scores, spec.softcap)
    if sinks is None:
        return (softmax(scores) @ v.transpose(1, 0, 2)).reshape(-1)
    weights = softmax(np.concatenate([scores, sinks.reshape(*scores.shape[:2], 1)], axis=-1))
    return (weights[..., :-1] @ v.transpose(1, 0, 2)).reshape(-1)


def silu(x: FloatArray) -> FloatArray:
    with np.errstate(over="ignore"):  # exp(-x) may be infinite, and the quotient then is 0 as it should be
        return np.asarray(x / (1 + np.exp(-x)), dtype=np.float32)


def gelu_tanh(x: FloatArray) -> FloatArray:
    inner = math.sqrt(2 / math.pi) * (x.astype(np.float64) + 0.044715 * x.astype(np.float64) ** 3)
    return np.asarray(0.5 * x * (1 + np.tanh(inner)), dtype=np.float32)


def gelu(x: FloatArray) -> FloatArray:
    erf = np.array([math.erf(value) for value in (x.ravel() / math.sqrt(2)).tolist()])
    return np.asarray(0.5 * x * (1 + erf.reshape(x.shape)), dtype=np.float32)


def relu2(x: FloatArray) -> FloatArray:
    return np.asarray(np.square(np.maximum(x, 0)), dtype=np.float32)


def sigmoid(x: FloatArray) -> FloatArray:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)), dtype=np.float32)


def clamped_gate(x: FloatArray) -> FloatArray:
    """The gate's part of clamped_swiglu."""
    x = np.minimum(x, np.float32(SWIGLU_LIMIT))
    with np.errstate(over="ignore"):
        return np.asarray(x / (1 + np.exp(np.float32(-SWIGLU_ALPHA) * x)), dtype=np.float32)


ACTIVATIONS: dict[Activation, Callable[[FloatArray], FloatArray]] = {
    "silu": silu,
    "gelu_tanh": gelu_tanh,
    "gelu": gelu,
    "relu2": relu2,
    "sigmoid": sigmoid,
    "clamped_swiglu": clamped_gate,
}


def gated(gate: FloatArray, up: FloatArray, activation: Activation) -> FloatArray:
    """activation(gate) * up."""
    if activation == "clamped_swiglu":
        up = np.clip(up, np.float32(-SWIGLU_LIMIT), np.float32(SWIGLU_LIMIT)) + np.float32(1)
    product: FloatArray = ACTIVATIONS[activation](gate) * up
    return product


def short_conv(
    x: FloatArray, before: FloatArray, weight: FloatArray, bias: FloatArray | None = None, *, with_silu: bool
) -> FloatArray:
    """Each column of x [T, C] convolved with its row of weight [C, N], plus bias [C]; `before` are the N - 1 rows that
    come before x. → [T, C]"""
    rows = np.concatenate([before, x])
    out = np.zeros_like(x) if bias is None else np.tile(bias, (len(x), 1))
    for i in range(weight.shape[1]):
        out += rows[i : i + len(x)] * weight[:, i]
    return silu(out) if with_silu else out


def softplus(x: FloatArray) -> FloatArray:
    """log(1 + exp(x))"""
    return np.asarray(np.logaddexp(x, np.float32(0)), np.float32)


def delta_decay(alpha: FloatArray, decay: FloatArray, dt_bias: FloatArray) -> FloatArray:
    """What of a state is left, exp(decay * softplus(alpha + dt_bias)). [T, H]"""
    return np.asarray(np.exp(decay * softplus(alpha + dt_bias)), np.float32)


def delta_heads(qkv: FloatArray, spec: DeltaSpec) -> tuple[FloatArray, FloatArray, FloatArray]:
    """q and k of length 1, q times k_dim^-0.5, a key head for each value head; and v. → [T, H, dim] each

    1e-6 is added to the sum of squares that they are divided by the root of.
    """
    keys = spec.num_k_heads * spec.k_dim
    parts = np.split(qkv, [keys, 2 * keys], axis=1)
    sizes = (spec.k_dim, spec.k_dim, spec.v_dim)
    q, k, v = (part.reshape(len(qkv), -1, size) for part, size in zip(parts, sizes, strict=True))
    heads = [spec.k_head(j) for j in range(spec.num_v_heads)]
    long = (q[:, heads], k[:, heads])
    q_unit, k_unit = (x / np.sqrt(np.square(x).sum(-1, keepdims=True) + np.float32(1e-6)) for x in long)
    return np.asarray(q_unit * np.float32(spec.k_dim**-0.5), np.float32), np.asarray(k_unit, np.float32), v


def delta_step(
    state: FloatArray, q: FloatArray, k: FloatArray, v: FloatArray, left: FloatArray, beta: FloatArray
) -> FloatArray:
    """One token of all heads: state [H, k_dim, v_dim] is changed; left and beta [H]. → [H, v_dim]"""
    state *= left[:, None, None]
    missing = beta[:, None] * (v - (k[:, None] @ state)[:, 0])
    state += k[:, :, None] * missing[:, None]
    return np.asarray((q[:, None] @ state)[:, 0])


def delta_rule(
    qkv: FloatArray,
    alpha: FloatArray,
    beta: FloatArray,
    *,
    numbers: tuple[FloatArray, FloatArray],
    spec: DeltaSpec,
    state: FloatArray | None = None,
    saves: Mapping[int, FloatArray] | None = None,
) -> FloatArray:
    """The gated delta rule over a sequence's tokens; numbers: decay and dt_bias. → [T, H * v_dim]

    state [H, k_dim, v_dim]: to begin with, changed; zero where there is none. saves: by token, where it is left.
    """
    left, betas = delta_decay(alpha, *numbers), sigmoid(beta)
    q, k, v = delta_heads(qkv, spec)
    state = np.zeros((spec.num_v_heads, spec.k_dim, spec.v_dim), np.float32) if state is None else state
    out = np.empty((len(qkv), spec.num_v_heads, spec.v_dim), np.float32)
    for t in range(len(qkv)):
        out[t] = delta_step(state, q[t], k[t], v[t], left[t], betas[t])
        if saves and t in saves:
            saves[t][:] = state
    return out.reshape(len(qkv), -1)


def selective_scan(
    xbc: FloatArray,
    dt: FloatArray,
    *,
    numbers: tuple[FloatArray, FloatArray, FloatArray],
    spec: ScanSpec,
    state: FloatArray | None = None,
    saves: Mapping[int, FloatArray] | None = None,
) -> FloatArray:
    """Mamba-2's recurrence over a sequence's tokens; numbers: decay, dt_bias and skip. → [T, H * head_dim]

    state [H, state_dim, head_dim]: to begin with, changed; zero where there is none. saves: by token, where it is left.
    """
    decay, dt_bias, skip = numbers
    steps = softplus(dt + dt_bias)  # [T, H]
    left = np.exp(decay * steps)
    shared = spec.num_groups * spec.state_dim
    x, b, c = np.split(xbc, [spec.inner_size, spec.inner_size + shared], axis=1)
    x = x.reshape(len(x), spec.num_heads, spec.head_dim)
    b, c = (
        part.reshape(len(x), spec.num_groups, -1).repeat(spec.num_heads // spec.num_groups, axis=1) for part in (b, c)
    )
    state = np.zeros((spec.num_heads, spec.state_dim, spec.head_dim), np.float32) if state is None else state
    out = np.empty_like(x)
    for t in range(len(x)):
        state *= left[t, :, None, None]
        state += b[t, :, :, None] * (steps[t, :, None] * x[t])[:, None]
        out[t] = (c[t, :, None] @ state)[:, 0] + skip[:, None] * x[t]
        if saves and t in saves:
            saves[t][:] = state
    return out.reshape(len(x), -1)
