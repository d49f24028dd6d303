"""The oracle's ops: each in plain numpy, at once, in float32. What they compute stands in `arithmetic.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pagoda.backends.arithmetic import (
    ACTIVATIONS,
    attend,
    delta_rule,
    expert_weights,
    fast_linear,
    gated,
    gaussian_topk,
    grown,
    head_linear,
    head_norm,
    layer_norm,
    linear,
    mix_streams,
    rms_norm,
    rope,
    selective_scan,
    short_conv,
    softcapped,
)
from pagoda.backends.paged_kv import PagedKV
from pagoda.backends.specs import (
    Activation,
    AdapterWeights,
    AttentionSpec,
    DeltaSpec,
    EmbedBy,
    ExpertBiases,
    ExpertsSpec,
    RopeSpec,
    ScanSpec,
)
from pagoda.backends.states import Key
from pagoda.formats.quantized import as_floats
from pagoda.types import Batch, FloatArray, RawTensor


class Weights:
    """Weights in float32, decoded when first used and kept by name."""

    def __init__(self) -> None:
        self._decoded: dict[str, FloatArray] = {}

    def __getitem__(self, raw: RawTensor) -> FloatArray:
        if raw.name not in self._decoded:
            self._decoded[raw.name] = as_floats(raw)
        return self._decoded[raw.name]

    def clear(self) -> None:
        self._decoded.clear()


class ReferenceOps:
    """`Ops` that compute at once; handles are arrays."""

    def __init__(
        self,
        weights: Weights,
        batch: Batch,
        kv: Mapping[int, tuple[int, PagedKV]],
        states: Mapping[Key, FloatArray],
        *,
        batch_invariant: bool = True,
    ) -> None:
        self.weights = weights
        self.batch = batch
        self.kv = kv  # layer → its group's number and pool
        self.states = states  # [states, …] of each op that has one
        self.product = linear if batch_invariant else fast_linear
        self.results: dict[str, FloatArray] = {}  # what the pass ends in, by op

    def embed(self, table: RawTensor, scale: float = 1.0, by: EmbedBy = "tokens", offset: int = 0) -> FloatArray:
        types = self.batch.token_types if self.batch.token_types.size else np.zeros_like(self.batch.tokens)
        tokens = self.batch.tokens
        known = np.where(tokens < table.shape[0], tokens, 0)
        numbers = {"tokens": tokens, "known_tokens": known, "positions": self.batch.positions, "types": types}[by]
        rows: FloatArray = self.weights[table][numbers + offset]
        return rows * np.float32(scale)

    def given(self, columns: int) -> FloatArray:
        given = self.batch.given
        if given is None or given.shape != (len(self.batch.tokens), columns):
            raise ValueError(f"the step lacks {columns} numbers for each of its tokens")
        return given

    def rms_norm(self, x: FloatArray, weight: RawTensor, eps: float) -> FloatArray:
        return rms_norm(x, self.weights[weight], eps)

    def layer_norm(self, x: FloatArray, weight: RawTensor, bias: RawTensor, eps: float) -> FloatArray:
        return layer_norm(x, self.weights[weight], self.weights[bias], eps)

    def head_norm(
        self, x: FloatArray, weight: RawTensor, eps: float, num_heads: int, *, centered: bool = False
    ) -> FloatArray:
        return head_norm(x, self.weights[weight], eps, num_heads, centered=centered)

    def linear(self, x: FloatArray, weight: RawTensor, bias: RawTensor | None = None) -> FloatArray:
        out = self.product(x, self.weights[weight], None if bias is None else self.weights[bias])
        if self.batch.adapter_of is not None:
            self._add_adapters(x, weight.name, out)
        return out

    def _add_adapters(self, x: FloatArray, name: str, out: FloatArray) -> None:
        """What the adapters of their sequences add to rows of out [T, out]."""
        assert self.batch.adapter_of is not None
        starts = self.batch.seq_starts
        for which, begin, end in zip(self.batch.adapter_of, starts[:-1], starts[1:], strict=True):
            adapter = None if which < 0 else self.batch.adapters[which]
            if isinstance(adapter, ReferenceAdapter) and name in adapter.weights:
                delta = adapter.weights[name]
                if delta.row_scale is not None:
                    out[begin:end] *= delta.row_scale
                out[begin:end] += self.product(self.product(x[begin:end], delta.a), delta.b, delta.bias)

    def head_linear(self, x: FloatArray, weight: RawTensor, *, kept: int = 0) -> FloatArray:
        return head_linear(x, self.weights[weight], kept, self.product)

    def rope(self, x: FloatArray, num_heads: int, spec: RopeSpec) -> FloatArray:
        return rope(x, self.batch.positions, num_heads, spec)

    def columns(self, x: FloatArray, start: int, count: int, scale: float = 1.0, *, heads: int = 1) -> FloatArray:
        each = x.reshape(len(x), heads, -1)[:, :, start : start + count]
        return each.reshape(len(x), -1) * np.float32(scale)

    def attention(
        self,
        layer: int,
        q: FloatArray,
        k: FloatArray | None,
        v: FloatArray | None,
        spec: AttentionSpec,
        sinks: RawTensor | None = None,
    ) -> FloatArray:
        group, pool = self.kv[layer]
        q = grown(q, self.batch.positions, spec.growth)
        out = np.empty((len(q), spec.num_heads * spec.value_dim), np.float32)
        scores_of_sinks = None if sinks is None else self.weights[sinks]
        starts = self.batch.seq_starts
        for table, begin, end in zip(self.batch.block_tables[group], starts[:-1], starts[1:], strict=True):
            if k is not None:
                pool.store(
                    layer, table, self.batch.positions[begin:end], k[begin:end], None if v is None else v[begin:end]
                )
            for t in range(begin, end):
                last = int(self.batch.positions[t if spec.causal else end - 1]) + 1
                first = 0 if spec.window is None else max(last - spec.window, 0)
                keys, values = pool.load(layer, table, first, last)
                out[t] = attend(q[t], keys, values[..., spec.values_from or 0 :], spec, scores_of_sinks)
        return out

    def gated(self, gate: FloatArray, up: FloatArray | None, activation: Activation) -> FloatArray:
        return ACTIVATIONS[activation](gate) if up is None else gated(gate, up, activation)

    def experts(
        self,
        x: FloatArray,
        router: FloatArray,
        gate: Sequence[RawTensor],
        up: Sequence[RawTensor],
        down: Sequence[RawTensor],
        spec: ExpertsSpec,
        scales: RawTensor | None = None,
        biases: ExpertBiases | None = None,
        corrections: RawTensor | None = None,
    ) -> FloatArray:
        factors, added = (None if vector is None else self.weights[vector] for vector in (scales, corrections))
        chosen = expert_weights(router, spec, factors, added)  # [T, N]
        out = np.zeros_like(x)
        of_gate, of_up, of_down = (
            (self.weights[b] for b in biases) if biases else (np.zeros((len(gate), 1), np.float32),) * 3
        )
        for e in range(len(gate)):
            tokens = np.flatnonzero(chosen[:, e])
            if tokens.size:
                gates, ups = self.linear(x[tokens], gate[e]) + of_gate[e], self.linear(x[tokens], up[e]) + of_up[e]
                result = self.linear(gated(gates, ups, spec.activation), down[e]) + of_down[e]
                out[tokens] += chosen[tokens, e, None] * result
        return out

    def scale_rows(self, x: FloatArray, gate: FloatArray, activation: Activation) -> FloatArray:
        return x * ACTIVATIONS[activation](gate)

    def multiply(self, x: FloatArray, y: FloatArray) -> FloatArray:
        return x * y

    def gaussian_topk(self, x: FloatArray, deviations: float) -> FloatArray:
        return gaussian_topk(x, deviations)

    def mix_streams(self, x: FloatArray, coefficients: FloatArray, streams: int) -> FloatArray:
        return mix_streams(x, coefficients, streams)

    def short_conv(
        self, layer: int, x: FloatArray, weight: RawTensor, bias: RawTensor | None = None, *, silu: bool
    ) -> FloatArray:
        out, taps, added = np.empty_like(x), self.weights[weight], None if bias is None else self.weights[bias]
        for begin, end, state, saves in self._sequences(self.states["short_conv", layer]):
            out[begin:end] = short_conv(x[begin:end], state, taps, added, with_silu=silu)
            rows = np.concatenate([state, x[begin:end]])
            for t, save in saves:
                save[:] = rows[t + 1 : t + 1 + len(state)]
        return out

    def delta_rule(
        self,
        layer: int,
        qkv: FloatArray,
        alpha: FloatArray,
        beta: FloatArray,
        decay: RawTensor,
        dt_bias: RawTensor,
        spec: DeltaSpec,
    ) -> FloatArray:
        numbers = self.weights[decay], self.weights[dt_bias]
        out = np.empty((len(qkv), spec.num_v_heads * spec.v_dim), np.float32)
        for begin, end, state, saves in self._sequences(self.states["delta_rule", layer]):
            tokens = slice(begin, end)
            out[tokens] = delta_rule(
                qkv[tokens], alpha[tokens], beta[tokens], numbers=numbers, spec=spec, state=state, saves=dict(saves)
            )
        return out

    def selective_scan(
        self,
        layer: int,
        xbc: FloatArray,
        dt: FloatArray,
        decay: RawTensor,
        dt_bias: RawTensor,
        skip: RawTensor,
        spec: ScanSpec,
    ) -> FloatArray:
        numbers = self.weights[decay], self.weights[dt_bias], self.weights[skip]
        out = np.empty((len(xbc), spec.inner_size), np.float32)
        for begin, end, state, saves in self._sequences(self.states["selective_scan", layer]):
            tokens = slice(begin, end)
            out[tokens] = selective_scan(
                xbc[tokens], dt[tokens], numbers=numbers, spec=spec, state=state, saves=dict(saves)
            )
        return out

    def _sequences(self, pool: FloatArray) -> Iterator[tuple[int, int, FloatArray, list[tuple[int, FloatArray]]]]:
        """For each sequence its first token and the one after its last, a copy of the state that it begins at, and the
        places where its state is saved, by token from its first."""
        starts, saves, bounds = self.batch.state_starts, self.batch.state_saves, self.batch.seq_starts
        assert starts is not None
        assert saves is not None
        for start, begin, end in zip(starts, bounds[:-1], bounds[1:], strict=True):
            state = np.zeros_like(pool[0]) if start < 0 else pool[start].copy()
            yield begin, end, state, [(t, pool[save]) for t, save in enumerate(saves[begin:end]) if save >= 0]

    def add(self, x: FloatArray, y: FloatArray) -> FloatArray:
        return x + y

    def logits(self, x: FloatArray, weight: RawTensor, scale: float = 1.0, softcap: float | None = None) -> FloatArray:
        rows = self.product(x[self.batch.logit_rows], self.weights[weight]) * np.float32(scale)
        self.results["logits"] = softcapped(rows, softcap)
        return self.results["logits"]

    def hidden_states(self, x: FloatArray) -> FloatArray:
        self.results["hidden_states"] = x[self.batch.hidden_rows]
        return self.results["hidden_states"]


@dataclass(frozen=True, eq=False, slots=True)
class ReferenceAdapter:
    """A `PlacedAdapter`, in float32 always."""

    weights: AdapterWeights

    @property
    def bytes(self) -> int:
        return sum(delta.a.nbytes + delta.b.nbytes for delta in self.weights.values())
