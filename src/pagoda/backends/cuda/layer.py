"""What attention of one layer needs besides queries, keys and values: shapes, norms of heads, rotation, its KV."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pagoda.backends.specs import AttentionSpec


@dataclass(frozen=True, slots=True, eq=False)
class AttentionLayer:
    spec: AttentionSpec
    layer: int
    group: int  # of KV, whose block table it reads
    rope_index: int  # which of the step's angles
    rotary_dim: int  # 0: nothing is rotated
    interleaved: bool
    q_norm: torch.Tensor | None = None  # [D] f32
    k_norm: torch.Tensor | None = None
    eps: float = 0.0  # of both norms
    sinks: torch.Tensor | None = None  # [H] f32
