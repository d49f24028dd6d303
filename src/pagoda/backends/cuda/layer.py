"""What attention of one layer needs besides queries, keys and values: shapes, norms of heads, rotation, its KV."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pagoda.backends.specs import AttentionSpec


@dataclass(frozen=True, slots=True)
class Rotation:
    """How heads turn."""

    index: int = 0  # which of the step's angles
    dim: int = 0  # 0: nothing is rotated
    interleaved: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class AttentionLayer:
    spec: AttentionSpec
    layer: int  # whose keys and values it reads
    group: int  # of KV, whose block table it reads
    rotation: Rotation
    q_norm: torch.Tensor | None = None  # [D] f32
    k_norm: torch.Tensor | None = None
    eps: float = 0.0  # of both norms
    sinks: torch.Tensor | None = None  # [H] f32
