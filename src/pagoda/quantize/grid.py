"""Integer grids: what a group of weights is rounded to, and the search for the grid that loses least.

A weight is (code - zero) * scale, codes from 0 to 2^bits - 1; `group` consecutive columns of a row share scale and
zero. Symmetric grids have zero = 2^(bits - 1). Weights are column-major here, [in, out]: a column, as they are taken
one by one, lies in one piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pagoda.types import FloatArray

SHRINKS = np.linspace(1.0, 0.52, 13, dtype=np.float32)  # shares of the full range that are tried


@dataclass(frozen=True, slots=True)
class Grid:
    """Scales and zeros [..., out] of one group, or [G, ..., out] of many."""

    scale: FloatArray
    zero: FloatArray
    bits: int

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def codes(self, w: FloatArray) -> FloatArray:
        """The nearest codes, as whole float32 numbers."""
        return on_grid(w / self.scale, self.zero, np.float32(self.top))

    def values(self, codes: FloatArray) -> FloatArray:
        steps = codes - self.zero
        steps *= self.scale
        return np.asarray(steps, dtype=np.float32)

    def rounded(self, w: FloatArray) -> FloatArray:
        return self.values(self.codes(w))


def on_grid(q: FloatArray, zero: FloatArray, top: np.float32) -> FloatArray:
    """Weights in units of their scales → codes, in place."""
    np.rint(q, out=q)
    q += zero
    np.minimum(q, top, out=q)
    return np.maximum(q, np.float32(0), out=q)


def stored(scale: FloatArray) -> FloatArray:
    """Scales as files keep them, float16; never zero, since weights are divided by them."""
    least = np.float32(2.0**-24)
    half = np.asarray(scale, dtype=np.float16).astype(np.float32)
    return np.where(np.abs(half) < least, least, half)


def full_range(w: FloatArray, bits: int, symmetric: bool, share: float = 1.0) -> Grid:
    """The grid over `share` of the range of w [..., g, out], zero included. → scales [..., out]"""
    top = (1 << bits) - 1
    if symmetric:
        scale = stored(np.abs(w).max(axis=-2) * np.float32(2 * share / top))
        return Grid(scale, np.full_like(scale, (top + 1) // 2), bits)
    low = np.minimum(w.min(axis=-2), 0) * np.float32(share)
    high = np.maximum(w.max(axis=-2), 0) * np.float32(share)
    scale = stored((high - low) / np.float32(top))
    # Zero 0 has no code in GPTQ files, which keep zero - 1.
    return Grid(scale, np.clip(np.rint(-low / scale), 1, top).astype(np.float32), bits)


def search(w: FloatArray, importance: FloatArray, bits: int, symmetric: bool) -> Grid:
    """The grid of least Σ importance * (w - rounded w)² among shares of the full range.

    w [g, out], importance [g] of columns. Symmetric grids reach one step further down than up, so the side of the
    largest weight decides their sign: a negative scale turns the grid around.
    """
    weight = importance.astype(np.float32)
    best, least = full_range(w, bits, symmetric), None
    for share in SHRINKS:
        for grid in _candidates(w, bits, symmetric, float(share)):
            change = grid.rounded(w)
            change -= w
            loss = np.einsum("g,go,go->o", weight, change, change)
            if least is None:
                best, least = grid, loss
                continue
            better = loss < least
            least = np.where(better, loss, least)
            best = Grid(np.where(better, grid.scale, best.scale), np.where(better, grid.zero, best.zero), bits)
    return best


def _candidates(w: FloatArray, bits: int, symmetric: bool, share: float) -> tuple[Grid, ...]:
    grid = full_range(w, bits, symmetric, share)
    if not symmetric:
        return (grid,)
    return grid, Grid(-grid.scale, grid.zero, bits)
