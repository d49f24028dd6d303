"""The ops that a program is made of. Activations are [S, T, N]: the value is the sum over S of parts, in order, so that
a product whose columns are shared among programs need not be gathered before whoever reads it anyway.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

import torch

from pagoda.backends.base import Activation
from pagoda.backends.cuda.kv import KVLayer
from pagoda.backends.cuda.layer import AttentionLayer
from pagoda.backends.cuda.metadata import Step, TileSizes
from pagoda.backends.cuda.planes import PlaneWeight

Weight: TypeAlias = "torch.Tensor | PlaneWeight"  # [N, C], of the compute type or quantized


class DeviceOps(Protocol):
    """`dtype` is the type that activations are computed in; the residual stream is float32."""

    dtype: torch.dtype

    def embed(self, table: Weight, tokens: torch.Tensor, scale: float) -> torch.Tensor:
        """→ [1, T, E] float32"""

    def norm(self, x: torch.Tensor | None, y: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x [1, T, E] becomes x + y, of which this is the RMS norm; either may be missing. → [1, T, E]"""

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """x [1, T, E] += Σ y [S, T, E]"""

    def linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """x [1, T, C] → [S, T, N]; `dtype` is what is wanted of one part, several are float32"""

    def prepare(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: AttentionLayer, kv: KVLayer, step: Step
    ) -> torch.Tensor:
        """Norm and rotate q [S, T, H * D] and k, store k and v [S, T, K * D]. → queries [T, H * D]"""

    def attend(self, q: torch.Tensor, layer: AttentionLayer, kv: KVLayer, step: Step) -> torch.Tensor:
        """→ [1, T, H * D]"""

    def gated(self, gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """→ [1, T, F]"""

    def likeliest(self, logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Blocks of 64 logits that hold the `count` likeliest tokens of each row [R, V].

        → which blocks [R, count] int32, ascending; their logits [R, count, 64]; the maxima of all [R, ceil(V / 64)]
        """

    def weights(self, logits: torch.Tensor, maxima: torch.Tensor) -> torch.Tensor:
        """What the tokens of each block weigh beside the likeliest of their row, which is 1; V in whole blocks.
        → [R, V / 64] float32"""

    def tile_sizes(self, queries_per_kv_head: int, head_dim: int, kv_bits: int) -> TileSizes:
        """How attention wants a step cut."""


def whole(x: torch.Tensor) -> torch.Tensor:
    """The sum of the parts [S, T, N], in order and in float32. → [T, N]"""
    total = x[0].to(torch.float32)
    for part in x[1:]:
        total = total + part.to(torch.float32)
    return total
