"""The ops by Triton kernels, and which of them serves how many tokens: the one place where that is decided.

`batch_invariant`: a row's bits never depend on the others. Then every product has one shape of tiles and fixed shares
of the columns, and all attention goes by short tiles. Otherwise a library's product may serve, which picks its kernel
by the number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from pagoda.backends.cuda.adapters import Site, StepAdapters
from pagoda.backends.cuda.eager import EagerOps
from pagoda.backends.cuda.kernels import (
    attend,
    decode,
    dense,
    experts,
    gated,
    grouped,
    likeliest,
    lora,
    norm,
    recurrent,
    rope_and_store_kv,
)
from pagoda.backends.cuda.kv import KVLayer
from pagoda.backends.cuda.layer import AttentionLayer, Rotation
from pagoda.backends.cuda.metadata import Step, TileSizes
from pagoda.backends.cuda.parts import whole
from pagoda.backends.cuda.planes import PlaneWeight, Weight
from pagoda.backends.specs import Activation, DeltaSpec, ExpertsSpec, ScanSpec
from pagoda.errors import UnsupportedError

# Tokens up to which a kernel serves. Estimates from bytes and operations, not yet measured.
DENSE_SKINNY = 1  # beyond it the library's product
GROUPED_SKINNY = 2  # beyond it tensor cores, whose least tile is 16 tokens
GROUPED_TILED = 256  # beyond it decoding the whole weight costs less than it wins
MOST_SHORT = 16  # tokens of a sequence in a step whose keys are split over programs: decoding, verifying drafts
MOST_HEAD_DIM = 512  # of keys and values that the kernels attend to
INVARIANT_ROWS = 256  # tokens whose chunks are kept at once


class FastOps(EagerOps):
    """`EagerOps` by kernels."""

    def __init__(self, dtype: torch.dtype, *, batch_invariant: bool = False, max_context: int, max_seqs: int) -> None:
        super().__init__(dtype, batch_invariant=batch_invariant)
        self._max_context = max_context
        self._tokens = max(max_seqs, INVARIANT_ROWS)
        self._scratch: torch.Tensor | None = None

    def tile_sizes(self, queries_per_kv_head: int, head_dim: int, kv_bits: int) -> TileSizes:
        if head_dim > MOST_HEAD_DIM:
            raise UnsupportedError(
                f"attention to vectors of {head_dim} numbers, as latent attention keeps them, is not supported on "
                "GPUs; use --device cpu"
            )
        short = attend.short_shape(queries_per_kv_head, head_dim, kv_bits).rows // queries_per_kv_head
        long = attend.long_shape(queries_per_kv_head, head_dim, kv_bits).rows // queries_per_kv_head
        return TileSizes(short, long, 1 << 30 if self.batch_invariant else MOST_SHORT)

    def embed(self, table: Weight, tokens: torch.Tensor, scale: float) -> torch.Tensor:
        if isinstance(table, PlaneWeight):
            return decode.decode(table, tokens, torch.float32, factor=scale)[None]
        return (F.embedding(tokens, table).to(torch.float32) * scale)[None]

    def norm(
        self,
        x: torch.Tensor | None,
        y: torch.Tensor | None,
        weight: torch.Tensor,
        eps: float,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return norm.norm(x, y, weight, eps, bias, self.dtype)

    def head_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, num_heads: int, *, centered: bool = False
    ) -> torch.Tensor:
        if centered or weight.shape[0] * num_heads != x.shape[2]:
            return super().head_norm(x, weight, eps, num_heads, centered=centered)
        return rope_and_store_kv.turned(x, num_heads, weight, eps, Rotation(), None, self.dtype)[None]

    def rope(self, x: torch.Tensor, num_heads: int, rotation: Rotation, step: Step) -> torch.Tensor:
        angles = step.angles[rotation.index]
        return rope_and_store_kv.turned(x, num_heads, None, 0.0, rotation, angles, self.dtype)[None]

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        x[0] += whole(y)

    def linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        if isinstance(weight, PlaneWeight):
            return self._grouped(x, weight, bias, dtype)
        tokens = x.shape[1]
        if self.batch_invariant:
            return dense.tiled(x, weight, bias, dtype)
        if tokens <= DENSE_SKINNY:
            return dense.skinny(x, weight, bias, dtype)
        if dtype != x.dtype:  # logits in float32, which a library's product would round
            return dense.tiled(x, weight, bias, dtype)
        return F.linear(x, weight, None if bias is None else bias.to(dtype))

    def _grouped(
        self, x: torch.Tensor, weight: PlaneWeight, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        tokens = x.shape[1]
        if weight.order is not None and (self.batch_invariant or tokens <= GROUPED_TILED):
            x = x[:, :, weight.order]
        if self.batch_invariant:
            return grouped.tiled(x, weight, bias, dtype, invariant=True)
        if tokens <= GROUPED_SKINNY:
            return grouped.skinny(x, weight, bias, dtype)
        if tokens <= GROUPED_TILED or dtype != x.dtype:
            return grouped.tiled(x, weight, bias, dtype, invariant=False)
        return F.linear(x, decode.decode(weight, None, x.dtype), None if bias is None else bias.to(dtype))

    def add_adapters(
        self, x: torch.Tensor, out: torch.Tensor, sites: tuple[Site, ...], places: torch.Tensor, step: StepAdapters
    ) -> None:
        lora.add(x, out, sites, places, step)

    def rope_and_store_kv(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: AttentionLayer,
        kv: KVLayer,
        step: Step,
    ) -> torch.Tensor:
        return rope_and_store_kv.rope_and_store_kv(q, k, v, layer, kv, step, self.dtype)

    def attend(self, q: torch.Tensor, layer: AttentionLayer, kv: KVLayer, step: Step) -> torch.Tensor:
        out = torch.empty_like(q)
        if step.long.shape[0]:
            attend.attend_long(q, out, layer, kv, step)
        self._attend_short(q, out, layer, kv, step)
        return out[None]

    def _attend_short(self, q: torch.Tensor, out: torch.Tensor, layer: AttentionLayer, kv: KVLayer, step: Step) -> None:
        """So many tiles at a time that their chunks fit in the scratch memory."""
        if not step.short.shape[0]:
            return
        slots = attend.num_slots(self._max_context, layer.spec.window)
        scratch = self._scratch_for(layer, slots, q.device)
        for tiles in step.short.split(self._tokens // step.short_len):
            attend.attend_short(q, out, tiles, layer, kv, step, scratch, slots)

    def _scratch_for(self, layer: AttentionLayer, slots: int, device: torch.device) -> torch.Tensor:
        """Shared by all layers: they run one after the other."""
        size = self._tokens * layer.spec.num_heads * slots * (layer.spec.head_dim + 2)
        if self._scratch is None or self._scratch.numel() < size:
            self._scratch = torch.empty(size, dtype=torch.float32, device=device)
        return self._scratch

    def gated(self, gate: torch.Tensor, up: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        return gated.gated(gate, up, activation, self.dtype)

    def multiply(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return gated.gated(x, y, None, self.dtype)

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
        return recurrent.short_conv(x, weight, bias, states, step, silu=silu)

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
        return recurrent.delta_rule(qkv, alpha, beta, decay, dt_bias, states, spec, step)

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
        return recurrent.selective_scan(xbc, dt, decay, dt_bias, skip, states, spec, step)

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
        pairs = experts.route(router, spec, scales, corrections, invariant=self.batch_invariant)
        rows = whole(x).to(self.dtype)[None] if x.shape[0] > 1 or x.dtype != self.dtype else x
        of_gate, of_up, of_down = (None, None, None) if biases is None else biases
        gates, ups = (
            experts.product(rows, weight, bias, pairs, self.dtype, by_token=True)
            for weight, bias in ((gate, of_gate), (up, of_up))
        )
        hidden = self.gated(gates, ups, spec.activation)
        return experts.combine(
            experts.product(hidden, down, of_down, pairs, torch.float32, by_token=False), pairs, self.dtype
        )

    def likeliest(self, logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return likeliest.likeliest(logits, count)

    def weights(self, logits: torch.Tensor, maxima: torch.Tensor) -> torch.Tensor:
        return likeliest.weights(logits, maxima)
