"""What a forward pass over calibration windows computes with: numpy here, torch on a device (`torch_arithmetic.py`).

Arrays are float32 [T, width], whole windows one after the other; what they are is the implementation's affair, except
that `+=`, products, rows by index or slice and `len` do what they do in numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from pagoda.backends.arithmetic import ACTIVATIONS, gated, layer_norm, rms_norm, rope, softcapped
from pagoda.backends.specs import Activation, AttentionSpec, RopeSpec
from pagoda.engine.device import torch_device
from pagoda.quantize.arrays import Array, Doubles
from pagoda.types import FloatArray

GATED_ROWS = 64  # tokens whose activations are computed at once: they stay in the cache
QUERY_BLOCK = 128  # queries that attend at once; keys after the last of them are left out


class Arithmetic(Protocol):
    """Windows have `length` tokens each; other letters as in `backends/base.py`."""

    out_of_memory: type[Exception]  # what an allocation that fails raises

    def place(self, values: FloatArray) -> Array:
        """Bring an array to where the computing is done."""

    def fetch(self, x: Array) -> FloatArray:
        """Bring an array back to numpy."""

    def rms_norm(self, x: Array, weight: Array, eps: float, num_heads: int = 1) -> Array:
        """Over each of num_heads parts of x [T, num_heads * D], with weight [D], or [num_heads * D]."""

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array: ...

    def product(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """x @ weight.T + bias. → [T, out]"""

    def rope(self, x: Array, length: int, num_heads: int, spec: RopeSpec) -> Array: ...

    def attend(self, q: Array, k: Array, v: Array, length: int, spec: AttentionSpec) -> Array:
        """Causal attention within each window. q [T, H * D], k and v [T, K * D] → [T, H * D]"""

    def gated(self, gate: Array, up: Array | None, activation: Activation) -> Array: ...

    def softcapped(self, x: Array, cap: float | None) -> Array: ...

    def gram(self, chunks: Iterator[Array]) -> Array:
        """x^T x, summed over at least one chunk. → [width, width] float64"""

    def column_sums(self, x: Array, power: int) -> Doubles:
        """Σ |x|^power of each column; power 1 or 2. → [width]"""


class NumpyArithmetic:
    """An `Arithmetic`."""

    out_of_memory: type[Exception] = MemoryError

    def place(self, values: FloatArray) -> FloatArray:
        return values

    def fetch(self, x: FloatArray) -> FloatArray:
        return x

    def rms_norm(self, x: FloatArray, weight: FloatArray, eps: float, num_heads: int = 1) -> FloatArray:
        heads = x.reshape(len(x), num_heads, -1)
        return rms_norm(heads, weight.reshape(-1, heads.shape[-1]), eps).reshape(x.shape)

    def layer_norm(self, x: FloatArray, weight: FloatArray, bias: FloatArray, eps: float) -> FloatArray:
        return layer_norm(x, weight, bias, eps)

    def product(self, x: FloatArray, weight: FloatArray, bias: FloatArray | None) -> FloatArray:
        out = x @ weight.T
        if bias is not None:
            out += bias
        return out

    def rope(self, x: FloatArray, length: int, num_heads: int, spec: RopeSpec) -> FloatArray:
        positions = np.arange(length, dtype=np.int32)
        return rope(x, np.tile(positions, len(x) // length), num_heads, spec)

    def attend(self, q: FloatArray, k: FloatArray, v: FloatArray, length: int, spec: AttentionSpec) -> FloatArray:
        out = np.empty_like(q)
        group = spec.num_heads // spec.num_kv_heads
        for start in range(0, len(q), length):
            rows = slice(start, start + length)
            heads = q[rows].reshape(length, spec.num_kv_heads, group, spec.head_dim)
            keys = np.ascontiguousarray(k[rows].reshape(length, spec.num_kv_heads, -1).transpose(1, 2, 0))  # [K, D, T]
            values = np.ascontiguousarray(v[rows].reshape(length, spec.num_kv_heads, -1).swapaxes(0, 1))  # [K, T, D]
            target = out[rows].reshape(heads.shape)
            for first in range(0, length, QUERY_BLOCK):
                last = min(first + QUERY_BLOCK, length)
                seen = 0 if spec.window is None else max(first - spec.window + 1, 0)
                block = np.ascontiguousarray(heads[first:last].transpose(1, 2, 0, 3))  # [K, G, t, D]
                block *= np.float32(spec.scale)
                bias = mask(first, last, seen, spec.window)
                mixed = _attend_block(block, keys[:, :, seen:last], values[:, seen:last], bias, spec.softcap)
                target[first:last] = mixed.transpose(2, 0, 1, 3)
        return out

    def gated(self, gate: FloatArray, up: FloatArray | None, activation: Activation) -> FloatArray:
        out = np.empty_like(gate)
        for start in range(0, len(out), GATED_ROWS):
            rows = slice(start, start + GATED_ROWS)
            out[rows] = ACTIVATIONS[activation](gate[rows]) if up is None else gated(gate[rows], up[rows], activation)
        return out

    def softcapped(self, x: FloatArray, cap: float | None) -> FloatArray:
        return softcapped(x, cap)

    def gram(self, chunks: Iterator[FloatArray]) -> Doubles:
        first = next(chunks)
        total = (first.T @ first).astype(np.float64)
        for x in chunks:
            total += x.T @ x  # BLAS computes one triangle
        return total

    def column_sums(self, x: FloatArray, power: int) -> Doubles:
        if power == 1:
            return np.asarray(np.abs(x).sum(axis=0, dtype=np.float64))
        return np.asarray(np.einsum("tc,tc->c", x, x, dtype=np.float64))


def mask(first: int, last: int, seen: int, window: int | None) -> FloatArray:
    """0 where query [first, last) sees key [seen, last), else -inf."""
    distance = np.arange(first, last)[:, None] - np.arange(seen, last)[None]
    hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
    return np.where(hidden, np.float32(-np.inf), np.float32(0))


def _attend_block(q: FloatArray, k: FloatArray, v: FloatArray, bias: FloatArray, softcap: float | None) -> FloatArray:
    """q [K, G, t, D] times k [K, D, S], softmax, times v [K, S, D]. → [K, G, t, D]"""
    kv_heads, group, queries, dim = q.shape
    scores: FloatArray = (q.reshape(kv_heads, group * queries, dim) @ k).reshape(kv_heads, group, queries, -1)
    scores = softcapped(scores, softcap)
    scores += bias
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    mixed = scores.reshape(kv_heads, group * queries, -1) @ v
    return np.asarray(mixed.reshape(q.shape) / total, dtype=np.float32)


def make_arithmetic(backend: str, say: Callable[[str], None]) -> Arithmetic:
    """What to compute with, by the value of `--device`. ConfigError: the device is not there."""
    device = torch_device(backend)
    if device is None:
        return NumpyArithmetic()
    from pagoda.quantize.calibration.torch_arithmetic import TorchArithmetic  # imports torch

    say(f"computing in torch on {device}")
    return TorchArithmetic(device)
