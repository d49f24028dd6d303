"""The device's ops in plain torch, on any device: what kernels are tested against, and what runs where there is none.

Activations come in parts [S, T, N] (`parts.py`). Weights are decoded once and kept; nothing here is fast. With
`batch_invariant`, products and attention go token by token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from pagoda.backends.arithmetic import SWIGLU_ALPHA, SWIGLU_LIMIT
from pagoda.backends.base import LOGIT_BLOCK
from pagoda.backends.cuda.adapters import Factors, Site, StepAdapters
from pagoda.backends.cuda.kv import E4M3, PLAIN, KVLayer
from pagoda.backends.cuda.layer import AttentionLayer
from pagoda.backends.cuda.metadata import Step, TileSizes
from pagoda.backends.cuda.parts import whole
from pagoda.backends.cuda.planes import PlaneWeight, Weight, dequantize
from pagoda.backends.specs import Activation, AttentionSpec, ExpertsSpec, QueryGrowth
from pagoda.types import BLOCK_SIZE

ONE_TILE = 1 << 20


WAITING = ("experts",)  # ops that wait for the device to say what is to be done, which no graph can hold


class EagerOps:
    """`dtype` is the type that activations are computed in; the residual stream is float32.

    `FastOps` (`fast.py`) overrides what it has kernels for; an op without one runs as it is here.
    """

    takes_sinks = True  # whether attention does

    def __init__(self, dtype: torch.dtype, *, batch_invariant: bool = False) -> None:
        self.dtype = dtype
        self.batch_invariant = batch_invariant
        self._decoded: dict[int, tuple[Weight, torch.Tensor]] = {}  # the weight is kept, so that its id stays its own

    def tile_sizes(self, queries_per_kv_head: int, head_dim: int, kv_bits: int) -> TileSizes:
        """How attention wants a step cut."""
        return TileSizes(1 if self.batch_invariant else ONE_TILE, ONE_TILE, ONE_TILE)

    def embed(self, table: Weight, tokens: torch.Tensor, scale: float) -> torch.Tensor:
        """→ [1, T, E] float32"""
        index = tokens.to(torch.int64)
        rows = dequantize(table, index) if isinstance(table, PlaneWeight) else table[index].to(torch.float32)
        return (rows * scale)[None]

    def norm(self, x: torch.Tensor | None, y: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x [1, T, E] becomes x + y, of which this is the RMS norm; either may be missing. → [1, T, E]"""
        if x is not None and y is not None:
            self.add(x, y)
        values = x[0] if x is not None else whole(y)
        return rms_norm(values, weight, eps).to(self.dtype)[None]

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
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: AttentionLayer, kv: KVLayer, step: Step
    ) -> torch.Tensor:
        """Norm and rotate q [S, T, H * D] and k, store k and v [S, T, K * D]. → queries [T, H * D]"""
        spec, tokens = layer.spec, q.shape[1]
        queries = self._rotated(whole(q), layer, layer.q_norm, spec.num_heads, step)
        keys = self._rotated(whole(k), layer, layer.k_norm, spec.num_kv_heads, step)
        values = whole(v).view(tokens, spec.num_kv_heads, spec.head_dim)
        live = (step.positions >= 0).nonzero()[:, 0]
        block, slot = _places(layer.group, step, live)
        for pool, scales, new in ((kv.k, kv.k_scale, keys), (kv.v, kv.v_scale, values)):
            codes, scale = encode(new[live], kv.kind, pool.dtype)
            pool[block, :, slot] = codes
            if scales is not None:
                scales[block, :, slot] = scale
        return queries.reshape(tokens, -1).to(self.dtype)

    def _rotated(
        self, x: torch.Tensor, layer: AttentionLayer, norm: torch.Tensor | None, heads: int, step: Step
    ) -> torch.Tensor:
        """Norm and rotate x [T, heads * D]. → [T, heads, D]"""
        x = x.view(x.shape[0], heads, -1)
        if norm is not None:
            x = rms_norm(x, norm, layer.eps)
        if not layer.rotary_dim:
            return x
        cos, sin = (angle[: x.shape[0], None] for angle in step.angles[layer.rope_index])
        return rotate(x, cos, sin, layer.rotary_dim, interleaved=layer.interleaved)

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
        table = _table(layer.group, int(step.seqs[first]), step)[low // BLOCK_SIZE : (end - 1) // BLOCK_SIZE + 1]
        skip = low - low // BLOCK_SIZE * BLOCK_SIZE
        k, v = (
            decode(pool[table], None if scales is None else scales[table], kv.kind)
            .transpose(1, 2)
            .flatten(0, 1)[skip : skip + end - low]
            for pool, scales in ((kv.k, kv.k_scale), (kv.v, kv.v_scale))
        )  # [N, K, D]
        return attention(q.to(torch.float32), k, v, start, low, layer.spec, layer.sinks).to(q.dtype)

    def gated(self, gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """activation(Σ gate [S, T, F]) * Σ up [S, T, F]. → [1, T, F]"""
        out = activated(whole(gate), activation) * beside_gate(whole(up), activation)
        if self.dtype == torch.float16:
            out = out.clamp(-65504.0, 65504.0)
        return out.to(self.dtype)[None]

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
    ) -> torch.Tensor:
        """See `base.Ops`. x [S, T, E], router [S, T, N]. One expert after the other, with its tokens. → [1, T, E]"""
        values, weights = whole(x).to(self.dtype), expert_weights(whole(router), spec)  # [T, E], [T, N]
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

    def likeliest(self, logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Blocks of 64 logits that hold the `count` likeliest tokens of each row [R, V].

        → which blocks [R, count] int32, ascending; their logits [R, count, 64]; the maxima of all [R, ceil(V / 64)]
        """
        blocks = _blocks(logits)
        maxima = blocks.amax(-1)
        ranked = torch.sort(maxima, dim=1, descending=True, stable=True).indices[:, :count]
        chosen = ranked.sort(dim=1).values
        values = blocks.gather(1, chosen[:, :, None].expand(-1, -1, LOGIT_BLOCK))
        return chosen.to(torch.int32), values, maxima

    def weights(self, logits: torch.Tensor, maxima: torch.Tensor) -> torch.Tensor:
        """The sum of e^(x - the row's greatest x) over each block of 64; V in whole blocks. → [R, V / 64] float32"""
        most = maxima.amax(1)[:, None, None]
        lanes = _weigh(_blocks(logits), most).unflatten(-1, (-1, 16))
        total = torch.zeros_like(lanes[:, :, 0])
        for part in lanes.unbind(2):
            total = total + part
        for half in (8, 4, 2, 1):
            total = total[..., :half] + total[..., half:]
        return total[..., 0]


def _blocks(logits: torch.Tensor) -> torch.Tensor:
    """[R, V] → [R, ceil(V / 64), 64]"""
    rest = -logits.shape[1] % LOGIT_BLOCK
    return F.pad(logits, (0, rest), value=float("-inf")).unflatten(1, (-1, LOGIT_BLOCK))


def _weigh(x: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
    """e^(x - most), operation by operation as the sampler on the host (`csrc/sampler_passes.inl`)."""
    t = ((x - most) * 1.44269504).clamp_min(-127.0)
    shifted = t + 12582912.0
    r = t - (shifted - 12582912.0)
    r2 = r * r
    high = (0.24022242 + 0.055507336 * r) + r2 * (0.009671513 + 0.0013264727 * r)
    y = (1.0 + 0.693147 * r) + r2 * high
    return (y.view(torch.int32) + (shifted.view(torch.int32) << 23)).view(torch.float32)


def _decoded(weight: PlaneWeight) -> torch.Tensor:
    """Some rows at a time, so that what is needed in between stays in the cache."""
    rows = torch.arange(weight.rows, device=weight.device).split(max(1, (1 << 19) // weight.columns))
    return torch.cat([dequantize(weight, some) for some in rows])


def activated(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation == "silu":
        return F.silu(x)
    if activation == "relu2":
        return F.relu(x).square()
    if activation == "sigmoid":
        return x.sigmoid()
    if activation == "clamped_swiglu":
        x = x.clamp(max=SWIGLU_LIMIT)
        return x * torch.sigmoid(SWIGLU_ALPHA * x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def beside_gate(up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """What the activated gate is multiplied by."""
    return up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT) + 1 if activation == "clamped_swiglu" else up


def expert_weights(router: torch.Tensor, spec: ExpertsSpec) -> torch.Tensor:
    """How much each expert counts for each token, 0 for those not picked. router [T, N] → [T, N]"""
    picked = torch.sort(router, dim=-1, descending=True, stable=True).indices[:, : spec.num_used]
    chosen = router.softmax(-1).gather(-1, picked)
    if spec.normalize:
        chosen = chosen / chosen.sum(-1, keepdim=True)
    return torch.zeros_like(router).scatter(-1, picked, chosen)


def grown(queries: torch.Tensor, positions: torch.Tensor, growth: QueryGrowth) -> torch.Tensor:
    """queries [T, H * D], multiplied by what their positions make of them; padding, at -1, as at 0."""
    periods = positions[: len(queries)].clamp_min(0).div(growth.length, rounding_mode="floor").to(torch.float32)
    return (queries * (1 + growth.beta * torch.log1p(periods))[:, None]).to(queries.dtype)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotary_dim: int, *, interleaved: bool
) -> torch.Tensor:
    half, out = rotary_dim // 2, x.clone()
    first = slice(0, rotary_dim, 2) if interleaved else slice(0, half)
    second = slice(1, rotary_dim, 2) if interleaved else slice(half, rotary_dim)
    a, b = x[..., first], x[..., second]
    out[..., first], out[..., second] = a * cos - b * sin, a * sin + b * cos
    return out


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: int,
    low: int,
    spec: AttentionSpec,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Queries [T, H * D] at positions from `start` on over keys [N, K, D] at positions from `low` on. → [T, H * D]"""
    heads = q.view(len(q), spec.num_kv_heads, -1, spec.head_dim)
    scores = torch.einsum("tkgd,nkd->kgtn", heads, k) * spec.scale
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    key = low + torch.arange(len(k), device=q.device)
    position = start + torch.arange(len(q), device=q.device)[:, None]
    seen = (key <= position) & (key > position - (spec.window or 1 << 30))
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:  # a column that takes its part of the softmax, and has no value
        scores = torch.cat([scores, sinks.view(*scores.shape[:2], 1, 1).expand(-1, -1, len(q), 1)], dim=-1)
    weights = scores.softmax(-1)[..., : len(k)]
    return torch.einsum("kgtn,nkd->tkgd", weights, v).reshape(len(q), -1)


def _places(group: int, step: Step, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Block and slot of each of these tokens of the step."""
    at, width = step.meta[2 * group].to(torch.int64), step.meta[2 * group + 1].to(torch.int64)
    position = step.positions[tokens].to(torch.int64)
    entry = at + step.seqs[tokens].to(torch.int64) * width + position // BLOCK_SIZE
    return step.meta[entry].to(torch.int64), position % BLOCK_SIZE


def _table(group: int, seq: int, step: Step) -> torch.Tensor:
    at, width = int(step.meta[2 * group]), int(step.meta[2 * group + 1])
    return step.meta[at + seq * width : at + (seq + 1) * width].to(torch.int64)


def encode(x: torch.Tensor, kind: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """x [..., D] as KV keeps it, and the scale of each [...]; see `kernels/quants.py`."""
    if kind == PLAIN:
        return x.to(dtype), None
    top, unit = (448.0, 256.0) if kind == E4M3 else (127.0, 1.0)
    most = x.abs().amax(-1)
    scaled = x * (top / most.clamp_min(1e-30))[..., None]
    if kind != E4M3:
        return torch.floor(scaled + 0.5).to(torch.int8), most / top
    bits = (scaled * 2.0**-8).to(torch.float16).view(torch.int16).to(torch.int32)
    size = bits & 0x7FFF
    size = (size + 0x3F + ((size >> 7) & 1)) >> 7
    return (((bits >> 8) & 0x80) | size).to(torch.uint8), most / top * unit


def decode(codes: torch.Tensor, scale: torch.Tensor | None, kind: int) -> torch.Tensor:
    """The inverse, in float32."""
    if kind == E4M3:
        bits = codes.to(torch.int32)
        half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(torch.int16).view(torch.float16)
        codes = half
    values = codes.to(torch.float32)
    return values if scale is None else values * scale[..., None]
