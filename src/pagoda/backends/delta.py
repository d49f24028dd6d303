"""Shapes of a gated delta rule."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeltaSpec:
    """Heads of a gated delta rule. Value head j reads key head j // (num_v_heads / num_k_heads), or, where they are
    `tiled`, j % num_k_heads."""

    num_k_heads: int
    num_v_heads: int
    k_dim: int
    v_dim: int
    tiled: bool = False

    def k_head(self, v_head: int) -> int:
        return v_head % self.num_k_heads if self.tiled else v_head // (self.num_v_heads // self.num_k_heads)
