"""The device's ops in plain torch, on any device: what kernels are tested against, and what runs where there is none.

Activations come in parts [S, T, N] (`parts.py`). Weights are decoded once and kept; nothing here is fast. With
`batch_invariant`, products and attention go token by token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pagoda.backends.cuda.adapters import Factors, Site, StepAdapters
from pagoda.backends.cuda.arithmetic import (
    activated,
    beside_gate,
    expert_weights,
    gaussian_topk,
    layer_norm,
    mix_streams,
    rms_norm,
)
from pagoda.backends.cuda.elementwise import sigmoid, softplus
from pagoda.backends.cuda.kv import KVLayer
from pagoda.backends.cuda.layer import AttentionLayer, Rotation
from pagoda.backends.cuda.metadata import Step, TileSizes
from pagoda.backends.cuda.paged import attention, block_table, decode, encode, places, rotate
from pagoda.backends.cuda.parts import whole
from pagoda.backends.cuda.planes import PlaneWeight, Weight, dequantize, part_of
from pagoda.backends.cuda.ranking import block_weights, likeliest
from pagoda.backends.cuda.recurrent import delta_rule, selective_scan, short_conv
from pagoda.backends.specs import Activation, DeltaSpec, ExpertsSpec, ScanSpec
from pagoda.types import BLOCK_SIZE

ONE_TILE = 1 << 20


class EagerOps:
    """`dtype` is the type that activations are computed in; the residual stream is float32.

    `FastOps` (`fast.py`) overrides what it has kernels for; an op without one runs as it is here.
    """

    def __init__(self, dtype: torch.dtype, *, batch_invariant: bool = False) -> None:
        self.dtype = dtype
        self.batch_invariant = batch_invariant
        self._decoded: dict[int, tuple[Weight, torch.Tensor]] = {}  # the weight is kept, so that its id stays its own
        self._split: dict[int, tuple[Weight, list[Weight]]] = {}  # likewise: stacks of experts, one by one

    def tile_sizes(self, queries_per_kv_head: int, head_dim: int, kv_bits: int) -> TileSizes:
        """How attention wants a step cut."""
        return TileSizes(1 if self.batch_invariant else ONE_TILE, ONE_TILE, ONE_TILE)

    def embed(self, table: Weight, tokens: torch.Tensor, scale: float) -> torch.Tensor:
        """→ [1, T, E] float32"""
        index = tokens.to(torch.int64)
        rows = dequantize(table, index) if isinstance(table, PlaneWeight) else table[index].to(torch.float32)
        return (rows * scale)[None]

    def norm(
        self,
        x: torch.Tensor | None,
        y: torch.Tensor | None,
        weight: torch.Tensor,
        eps: float,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x [1, T, E] becomes x + y, of which this is the RMS norm, or, with a bias, the layer norm; either may be
        missing. → [1, T, E]"""
        if x is not None and y is not None:
            self.add(x, y)
        values = x[0] if x is not None else whole(y)
        normed = rms_norm(values, weight, eps) if bias is None else layer_norm(values, weight, bias, eps)
        return normed.to(self.dtype)[None]

    def head_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, num_heads: int, *, centered: bool = False
    ) -> torch.Tensor:
        """See `base.Ops`. x [S, T, H * D], weight [D] or [H * D]. → [1, T, H * D]"""
        heads = whole(x).unflatten(1, (num_heads, -1))
        if centered:
            heads = heads - heads.mean(-1, keepdim=True)
        return rms_norm(heads, weight.view(-1, heads.shape[2]), eps).flatten(1).to(self.dtype)[None]

    def rope(self, x: torch.Tensor, num_heads: int, rotation: Rotation, step: Step) -> torch.Tensor:
        """Turn each head of x [S, T, H * D]. → [1, T, H * D]"""
        heads = whole(x).unflatten(1, (num_heads, -1))
        return self._turned(heads, rotation, step).flatten(1).to(self.dtype)[None]

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """x [1, T, E] += Σ y [S, T, E]"""
        x[0] += whole(y)

    def linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """x [1, T, C] → [S, T, N]; `dtype` is what is wanted of one part, several are float32"""
        out = self._product(x[0].to(torch.float32), self._decode(weight))
        return (out if bias is None else out + bias).to(dtype)[None]

    def _product(self, x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        """x [T, C] @ matrix.T, in float32. → [T, N]"""
        if self.batch_invariant and len(x):
            return torch.stack([torch.mv(matrix, row) for row in x])
        return x @ matrix.t()

    def add_adapters(
        self, x: torch.Tensor, out: torch.Tensor, sites: tuple[Site, ...], places: torch.Tensor, step: StepAdapters
    ) -> None:
        """out [S, T, N] of the product of x [1, T, C] gets what the step's adapters add at `sites`.

        places [sites, 2] int32: the first of a site's columns of out, and how many.
        """
        for adapter, tokens in step.groups:
            for site in sites:
                factors = adapter.factors.get(site.name)
                if factors is not None:
                    self._add_adapter(x[0, tokens], out[:, :, site.start : site.end], tokens, factors)

    def _add_adapter(self, x: torch.Tensor, out: torch.Tensor, tokens: torch.Tensor, factors: Factors) -> None:
        a, b, a_scale, b_scale, bias, row_scale = (None if t is None else t.to(torch.float32) for t in factors.tensors)
        assert a is not None
        assert b is not None
        hidden = self._product(x.to(torch.float32), a)
        added = self._product(hidden if a_scale is None else hidden * a_scale, b)
        added = added if b_scale is None else added * b_scale
        rows = out[:, tokens].to(torch.float32)  # a copy
        rows = rows if row_scale is None else rows * row_scale
        rows[0] += added if bias is None else added + bias
        out[:, tokens] = rows.to(out.dtype)

    def _decode(self, weight: Weight) -> torch.Tensor:
        if id(weight) not in self._decoded:
            decoded = _decoded(weight) if isinstance(weight, PlaneWeight) else weight.to(torch.float32)
            self._decoded[id(weight)] = weight, decoded
        return self._decoded[id(weight)][1]

    def rope_and_store_kv(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: AttentionLayer,
        kv: KVLayer,
        step: Step,
    ) -> torch.Tensor:
        """Norm and rotate q [S, T, H * D] and k, store k and v [S, T, K * D], if there are any.
        → queries [T, H * D]"""
        spec = layer.spec
        if k is not None:
            assert v is not None
            keys = self._rotated(whole(k), layer, layer.k_norm, spec.num_kv_heads, step)
            self._store(keys, whole(v).view(keys.shape), layer, kv, step)
        return self._rotated(whole(q), layer, layer.q_norm, spec.num_heads, step).flatten(1).to(self.dtype)

    def _store(self, keys: torch.Tensor, values: torch.Tensor, layer: AttentionLayer, kv: KVLayer, step: Step) -> None:
        """Both [T, K, D]"""
        live = (step.positions >= 0).nonzero()[:, 0]
        block, slot = places(layer.group, step, live)
        for pool, scales, new in ((kv.k, kv.k_scale, keys), (kv.v, kv.v_scale, values)):
            codes, scale = encode(new[live], kv.kind, pool.dtype)
            pool[block, :, slot] = codes
            if scales is not None:
                scales[block, :, slot] = scale

    def _rotated(
        self, x: torch.Tensor, layer: AttentionLayer, norm: torch.Tensor | None, heads: int, step: Step
    ) -> torch.Tensor:
        """Norm and rotate x [T, heads * D]. → [T, heads, D]"""
        x = x.view(x.shape[0], heads, -1)
        if norm is not None:
            x = rms_norm(x, norm, layer.eps)
        return self._turned(x, layer.rotation, step)

    def _turned(self, x: torch.Tensor, rotation: Rotation, step: Step) -> torch.Tensor:
        """x [T, heads, D]"""
        if not rotation.dim:
            return x
        cos, sin = (angle[: x.shape[0], None] for angle in step.angles[rotation.index])
        return rotate(x, cos, sin, rotation.dim, interleaved=rotation.interleaved)

    def attend(self, q: torch.Tensor, layer: AttentionLayer, kv: KVLayer, step: Step) -> torch.Tensor:
        """q [T, H * D] over the layer's KV blocks. → [1, T, H * D]"""
        out = torch.zeros_like(q)
        for first, count in [*step.short.tolist(), *step.long.tolist()]:
            if count:
                out[first : first + count] = self._attend_tile(q[first : first + count], first, layer, kv, step)
        return out[None]

    def _attend_tile(self, q: torch.Tensor, first: int, layer: AttentionLayer, kv: KVLayer, step: Step) -> torch.Tensor:
        start = int(step.positions[first])
        end = start + len(q)
        low = 0 if layer.spec.window is None else max(start + 1 - layer.spec.window, 0)
        table = block_table(layer.group, int(step.seqs[first]), step)[low // BLOCK_SIZE : (end - 1) // BLOCK_SIZE + 1]
        skip = low - low // BLOCK_SIZE * BLOCK_SIZE
        k, v = (
            decode(pool[table], None if scales is None else scales[table], kv.kind)
            .transpose(1, 2)
            .flatten(0, 1)[skip : skip + end - low]
            for pool, scales in ((kv.k, kv.k_scale), (kv.v, kv.v_scale))
        )  # [N, K, D]
        return attention(q.to(torch.float32), k, v, start, low, layer.spec, layer.sinks).to(q.dtype)

    def gated(self, gate: torch.Tensor, up: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        """activation(Σ gate [S, T, F]) * Σ up [S, T, F]; activation(gate) where there is no up. → [1, T, F]"""
        out = activated(whole(gate), activation)
        return self._rounded(out if up is None else out * beside_gate(whole(up), activation))

    def multiply(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Σ x [S, T, E] * Σ y [S, T, E]. → [1, T, E]"""
        return self._rounded(whole(x) * whole(y))

    def scale_rows(self, x: torch.Tensor, gate: torch.Tensor, activation: Activation) -> torch.Tensor:
        """Σ x [S, T, E] * activation(Σ gate [S, T, 1]). → [1, T, E]"""
        return self._rounded(whole(x) * activated(whole(gate), activation))

    def head_linear(self, x: torch.Tensor, weight: torch.Tensor, kept: int) -> torch.Tensor:
        """See `base.Ops`. x [S, T, H * (kept + C)], weight [H, R, C] → [1, T, H * (kept + R)] float32"""
        heads = whole(x).unflatten(-1, (len(weight), -1))
        made = torch.einsum("thc,hrc->thr", heads[..., kept:], weight)
        return torch.cat([heads[..., :kept], made], dim=-1).flatten(-2)[None]

    def columns(self, x: torch.Tensor, start: int, count: int, scale: float, heads: int = 1) -> torch.Tensor:
        """See `base.Ops`; a tensor of its own. x [S, T, heads * D] → [1, T, heads * count] float32"""
        return (whole(x.unflatten(-1, (heads, -1))[..., start : start + count].flatten(-2)) * scale)[None]

    def gaussian_topk(self, x: torch.Tensor, deviations: float) -> torch.Tensor:
        """See `base.Ops`. x [S, T, F] → [1, T, F]"""
        return self._rounded(gaussian_topk(whole(x), deviations))

    def mix_streams(self, x: torch.Tensor, coefficients: torch.Tensor, streams: int) -> torch.Tensor:
        """See `base.Ops`. x [S, T, M * E], coefficients [S, T, N * M] → [1, T, N * E] float32"""
        return mix_streams(whole(x), whole(coefficients), streams)[None]

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, N] in the compute type, within its range: infinities would spread. → [1, T, N]"""
        if self.dtype == torch.float16:
            x = x.clamp(-65504.0, 65504.0)
        return x.to(self.dtype)[None]

    # Ops with a state: `states` is the op's pool

    def short_conv(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        states: torch.Tensor,
        step: Step,
        *,
        silu: bool,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x [S, T, C], weight [C, N]. → [1, T, C] float32"""
        return short_conv(whole(x), weight, bias, states, step, silu=silu)[None]

    def delta_rule(
        self,
        qkv: torch.Tensor,
        alpha: torch.Tensor,
        beta: torch.Tensor,
        decay: torch.Tensor,
        dt_bias: torch.Tensor,
        spec: DeltaSpec,
        states: torch.Tensor,
        step: Step,
    ) -> torch.Tensor:
        """See `base.Ops`. qkv [S, T, C], alpha and beta [S, T, H]. → [1, T, H * v_dim] float32"""
        left = torch.exp(decay * softplus(whole(alpha) + dt_bias))
        return delta_rule(whole(qkv), left, sigmoid(whole(beta)), states, spec, step)[None]

    def selective_scan(
        self,
        xbc: torch.Tensor,
        dt: torch.Tensor,
        decay: torch.Tensor,
        dt_bias: torch.Tensor,
        skip: torch.Tensor,
        spec: ScanSpec,
        states: torch.Tensor,
        step: Step,
    ) -> torch.Tensor:
        """See `base.Ops`. xbc [S, T, C], dt [S, T, H]. → [1, T, H * head_dim] float32"""
        steps = softplus(whole(dt) + dt_bias)
        return selective_scan(whole(xbc), torch.exp(decay * steps), steps, skip, states, spec, step)[None]

    def experts(
        self,
        x: torch.Tensor,
        router: torch.Tensor,
        gate: Sequence[Weight],
        up: Sequence[Weight],
        down: Sequence[Weight],
        spec: ExpertsSpec,
        scales: torch.Tensor | None = None,
        biases: Sequence[torch.Tensor] | None = None,
        corrections: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `base.Ops`. x [S, T, E], router [S, T, N]. One expert after the other, with its tokens. → [1, T, E]"""
        values, weights = whole(x).to(self.dtype), expert_weights(whole(router), spec, corrections)  # [T, E], [T, N]
        weights = weights if scales is None else weights * scales
        expert, token = weights.t().nonzero(as_tuple=True)
        out, end = torch.zeros_like(values, dtype=torch.float32), 0
        for e, count in enumerate(torch.bincount(expert, minlength=len(gate)).tolist()):
            if not count:
                continue
            tokens, end = token[end : end + count], end + count
            rows = values[tokens][None]
            of_gate, of_up, of_down = (None, None, None) if biases is None else (bias[e] for bias in biases)
            gates, ups = self.linear(rows, gate[e], of_gate, self.dtype), self.linear(rows, up[e], of_up, self.dtype)
            result = self.linear(self.gated(gates, ups, spec.activation), down[e], of_down, self.dtype)
            out[tokens] += weights[tokens, e, None] * whole(result)
        return out.to(self.dtype)[None]

    def stacked_experts(
        self,
        x: torch.Tensor,
        router: torch.Tensor,
        gate: Weight,
        up: Weight,
        down: Weight,
        spec: ExpertsSpec,
        scales: torch.Tensor | None = None,
        biases: Sequence[torch.Tensor] | None = None,
        corrections: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`experts`, whose matrices are stacks: gate and up [N * F, E], down [N * E, F]."""
        gates, ups, downs = (self._apart(weight, router.shape[2]) for weight in (gate, up, down))
        return self.experts(x, router, gates, ups, downs, spec, scales, biases, corrections)

    def _apart(self, stack: Weight, count: int) -> list[Weight]:
        if id(stack) not in self._split:
            rows = len(stack) // count if isinstance(stack, torch.Tensor) else stack.rows // count
            parts = [part_of(stack, e * rows, (e + 1) * rows) for e in range(count)]
            self._split[id(stack)] = stack, parts
        return self._split[id(stack)][1]

    def likeliest(self, logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Blocks of 64 logits that hold the `count` likeliest tokens of each row [R, V].

        → which blocks [R, count] int32, ascending; their logits [R, count, 64]; the maxima of all [R, ceil(V / 64)]
        """
        return likeliest(logits, count)

    def weights(self, logits: torch.Tensor, maxima: torch.Tensor) -> torch.Tensor:
        """The sum of e^(x - the row's greatest x) over each block of 64; V in whole blocks. → [R, V / 64] float32"""
        return block_weights(logits, maxima)


def _decoded(weight: PlaneWeight) -> torch.Tensor:
    """Some rows at a time, so that what is needed in between stays in the cache."""
    rows = torch.arange(weight.rows, device=weight.device).split(max(1, (1 << 19) // weight.columns))
    return torch.cat([dequantize(weight, some) for some in rows])
