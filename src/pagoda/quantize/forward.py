"""A model's forward pass over all calibration windows at once, one op after the other.

`WindowOps` are `Ops` whose handles stand for a value of every token of the sample. A handle is computed a chunk of
windows at a time, when it is asked for; only what is dear to compute again is kept: the residual stream and the inputs
of linears that follow attention or activation. So each linear can be changed by what it reads before anything is
computed with it, every linear is computed once, and one layer's weights are in memory.

Linears that read the same handle wait for each other: a `LinearSource` is asked for the weights of all of them when the
first is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from pagoda.backends.base import Activation, AttentionSpec, RopeSpec
from pagoda.backends.reference import gated, rms_norm, rope, softcapped
from pagoda.formats.blocks import BLOCK_TYPES, dequantize
from pagoda.formats.quantized import QuantizedTensor
from pagoda.formats.quantized import as_floats as decoded
from pagoda.types import FloatArray, Int32Array, RawTensor

CHUNK_TOKENS = 4096
GATED_ROWS = 64  # tokens whose activations are computed at once: they stay in the cache
QUERY_BLOCK = 128  # queries that attend at once; keys after the last of them are left out


@dataclass(frozen=True, slots=True)
class Origin:
    """What a value that linears read comes out of, and so what a scale of its columns can be folded into.

    norm: an RMS norm's weight. linear: the rows of a linear, each of which becomes `repeat` columns, in runs of `run`.
    """

    kind: Literal["norm", "linear"]
    weight: RawTensor
    bias: RawTensor | None = None
    run: int = 1
    repeat: int = 1


class Value:
    """A handle: float32 [T, width] for all tokens, a chunk of windows at a time."""

    def __init__(self, compute: Callable[[int], FloatArray], *, dear: bool, origin: Origin | None = None) -> None:
        self._compute: Callable[[int], FloatArray] | None = compute
        self._kept: list[FloatArray] | None = None
        self.dear = dear
        self.origin = origin
        self.readers: list[LinearCall] = []  # not computed yet

    def chunk(self, i: int) -> FloatArray:
        """Of chunk i; not to be written to."""
        if self._kept is not None:
            return self._kept[i]
        assert self._compute is not None
        return self._compute(i)

    def keep(self, num_chunks: int) -> list[FloatArray]:
        """Compute all chunks now, and forget what they were computed from."""
        if self._kept is None:
            assert self._compute is not None
            self._kept = [self._compute(i) for i in range(num_chunks)]
            self._compute = None
        return self._kept

    def chunks(self, num_chunks: int) -> Iterator[FloatArray]:
        return (self.chunk(i) for i in range(num_chunks))


@dataclass(slots=True)
class LinearCall:
    """One linear of the model and, once it is known, the weight [out, in] to compute with."""

    weight: RawTensor
    bias: RawTensor | None
    values: FloatArray | None = None
    bias_values: FloatArray | None = field(default=None, repr=False)


class LinearSource(Protocol):
    """Where `WindowOps` get the weights of linears from."""

    def weights(self, x: Value, calls: Sequence[LinearCall]) -> list[FloatArray]:
        """The weights, [out, in] float32, of all linears that read x."""


class PlainWeights:
    """A `LinearSource`: the model as it is."""

    def weights(self, x: Value, calls: Sequence[LinearCall]) -> list[FloatArray]:
        return [decoded(call.weight) for call in calls]


def table_rows(table: RawTensor, ids: Int32Array) -> FloatArray:
    """Rows `ids` of a matrix of any type; of block types without decoding the rest. → [len(ids), E]"""
    if isinstance(table, QuantizedTensor):
        return decoded(table)[ids]
    block = BLOCK_TYPES[table.type]
    columns = table.shape[1]
    raw = np.asarray(table.data).reshape(-1).view(np.uint8).reshape(-1, columns // block.elements * block.bytes)
    return dequantize(raw[ids], table.type, (len(ids), columns))


Scored = Callable[[int, FloatArray], None]  # told of chunk i's logits [T, V]


class WindowOps:
    """`Ops` over windows [N, T] of tokens. `on_logits` makes the head compute; without it the pass ends before."""

    def __init__(
        self,
        windows: Int32Array,
        source: LinearSource,
        *,
        on_logits: Scored | None = None,
        chunk_tokens: int = CHUNK_TOKENS,
    ) -> None:
        self.source = source
        self.on_logits = on_logits
        self.length = windows.shape[1]
        per_chunk = max(chunk_tokens // self.length, 1)
        self.token_chunks = [windows[i : i + per_chunk] for i in range(0, len(windows), per_chunk)]
        self.num_chunks = len(self.token_chunks)

    def embed(self, table: RawTensor, scale: float = 1.0) -> Value:
        def compute(i: int) -> FloatArray:
            used, place = np.unique(self.token_chunks[i], return_inverse=True)
            return table_rows(table, used)[place.reshape(-1)] * np.float32(scale)

        return Value(compute, dear=False)

    def rms_norm(self, x: Value, weight: RawTensor, eps: float) -> Value:
        w = decoded(weight)
        return Value(lambda i: rms_norm(x.chunk(i), w, eps), dear=x.dear, origin=Origin("norm", weight))

    def head_norm(self, x: Value, weight: RawTensor, eps: float, num_heads: int) -> Value:
        w = decoded(weight)

        def compute(i: int) -> FloatArray:
            chunk = x.chunk(i)
            return rms_norm(chunk.reshape(len(chunk), num_heads, -1), w, eps).reshape(chunk.shape)

        return Value(compute, dear=x.dear)

    def linear(self, x: Value, weight: RawTensor, bias: RawTensor | None = None) -> Value:
        call = LinearCall(weight, bias)
        x.readers.append(call)

        def compute(i: int) -> FloatArray:
            if call.values is None:
                self._settle(x)
            assert call.values is not None
            out = x.chunk(i) @ call.values.T
            if call.bias_values is not None:
                out += call.bias_values
            return out

        return Value(compute, dear=True, origin=Origin("linear", weight, bias))

    def _settle(self, x: Value) -> None:
        """Get the weights of all linears that read x."""
        if x.dear:
            x.keep(self.num_chunks)
        calls, x.readers = x.readers, []
        for call, values in zip(calls, self.source.weights(x, calls), strict=True):
            call.values = values
            call.bias_values = None if call.bias is None else decoded(call.bias)

    def rope(self, x: Value, num_heads: int, spec: RopeSpec) -> Value:
        positions = np.arange(self.length, dtype=np.int32)

        def compute(i: int) -> FloatArray:
            chunk = x.chunk(i)
            return rope(chunk, np.tile(positions, len(chunk) // self.length), num_heads, spec)

        return Value(compute, dear=x.dear)

    def attention(self, layer: int, q: Value, k: Value, v: Value, spec: AttentionSpec) -> Value:
        def compute(i: int) -> FloatArray:
            return attend_windows(q.chunk(i), k.chunk(i), v.chunk(i), self.length, spec)

        assert v.origin is not None
        group = spec.num_heads // spec.num_kv_heads
        origin = Origin("linear", v.origin.weight, v.origin.bias, run=spec.head_dim, repeat=group)
        return Value(compute, dear=True, origin=origin)

    def gated(self, gate: Value, up: Value, activation: Activation) -> Value:
        def compute(i: int) -> FloatArray:
            opened, passed = gate.chunk(i), up.chunk(i)
            out = np.empty_like(passed)
            for start in range(0, len(out), GATED_ROWS):
                rows = slice(start, start + GATED_ROWS)
                out[rows] = gated(opened[rows], passed[rows], activation)
            return out

        return Value(compute, dear=True, origin=up.origin)

    def add(self, x: Value, y: Value) -> Value:
        for i, chunk in enumerate(x.keep(self.num_chunks)):
            chunk += y.chunk(i)
        x.dear = False  # it is kept, so what is made of it is cheap
        return x

    def logits(self, x: Value, weight: RawTensor, scale: float = 1.0, softcap: float | None = None) -> None:
        if self.on_logits is None:
            return
        w = decoded(weight)
        for i in range(self.num_chunks):
            self.on_logits(i, softcapped(x.chunk(i) @ w.T * np.float32(scale), softcap))


def attend_windows(q: FloatArray, k: FloatArray, v: FloatArray, length: int, spec: AttentionSpec) -> FloatArray:
    """Causal attention within each window of `length` tokens. q [T, H * D], k and v [T, K * D] → [T, H * D]"""
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


def mask(first: int, last: int, seen: int, window: int | None) -> FloatArray:
    """0 where query [first, last) sees key [seen, last), else -inf."""
    distance = np.arange(first, last)[:, None] - np.arange(seen, last)[None]
    hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
    return np.where(hidden, np.float32(-np.inf), np.float32(0))


def _attend_block(q: FloatArray, k: FloatArray, v: FloatArray, bias: FloatArray, softcap: float | None) -> FloatArray:
    """q [K, G, t, D] times k [K, D, S], softmax, times v [K, S, D]. → [K, G, t, D]"""
    kv_heads, group, queries, dim = q.shape
    scores = (q.reshape(kv_heads, group * queries, dim) @ k).reshape(kv_heads, group, queries, -1)
    scores = softcapped(scores, softcap)
    scores += bias
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    mixed = scores.reshape(kv_heads, group * queries, -1) @ v
    return np.asarray(mixed.reshape(q.shape) / total, dtype=np.float32)


def perplexity_of(forward: Callable[[WindowOps], object], windows: Int32Array, source: LinearSource) -> float:
    """exp(mean negative log-likelihood) of the second halves of windows, each token predicted from all before it."""
    losses: list[npt.NDArray[np.float64]] = []

    def score(i: int, logits: FloatArray) -> None:
        tokens = ops.token_chunks[i]
        half = tokens.shape[1] // 2
        logits = logits.reshape(*tokens.shape, -1)[:, half:-1]
        best = logits.max(axis=-1)
        total = np.exp(logits - best[..., None]).sum(axis=-1, dtype=np.float64)
        chosen = np.take_along_axis(logits, tokens[:, half + 1 :, None], axis=-1)[..., 0]
        losses.append(np.log(total) + best - chosen)

    ops = WindowOps(windows, source, on_logits=score, chunk_tokens=1024)
    forward(ops)
    return float(np.exp(np.mean(np.concatenate([loss.ravel() for loss in losses]))))
