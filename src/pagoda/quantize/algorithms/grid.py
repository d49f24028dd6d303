"""Integer grids: what a group of weights is rounded to, and the search for the grid that loses least.

A weight is (code - zero) * scale, codes from 0 to 2^bits - 1; `group` consecutive columns of a row share scale and
zero. Symmetric grids have zero = 2^(bits - 1). Weights are column-major here, [in, out]: a column, as they are taken
one by one, lies in one piece. Arrays are numpy's or torch's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pagoda.formats.packed import GroupedWeight
from pagoda.quantize.arrays import Array, fetched, floats, namespace
from pagoda.types import Int32Array

SHRINKS = np.linspace(1.0, 0.52, 13)  # shares of the full range that are tried
LEAST = 2.0**-24  # scale, as float16 has it


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Scales and zeros [..., out] of one group, or [G, ..., out] of many."""

    scale: Array
    zero: Array
    bits: int

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def codes(self, w: Array) -> Array:
        """The nearest codes, as whole float32 numbers."""
        return on_grid(w / self.scale, self.zero, self.top)

    def values(self, codes: Array) -> Array:
        steps = codes - self.zero
        steps *= self.scale
        return steps

    def rounded(self, w: Array) -> Array:
        return self.values(self.codes(w))


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """A weight on grids: (codes[i] - zeros[g]) * scales[g] with g = groups[i] of each column i."""

    bits: int
    codes: Array  # [in, out] uint8
    scales: Array  # [G, out]
    zeros: Array  # [G, out], whole float32 numbers
    groups: Int32Array  # [in], numpy's

    def steps(self) -> Array:
        """Codes less their zeros. → [in, out]"""
        return self.codes - self.zeros[self.groups]

    def values(self) -> Array:
        """→ [in, out]"""
        steps = self.steps()
        steps *= self.scales[self.groups]
        return steps

    def grouped(self) -> GroupedWeight:
        scales, zeros = fetched(self.scales.T), fetched(self.zeros.T).astype(np.int32)
        return GroupedWeight(self.bits, fetched(self.codes.T), scales, zeros, self.groups)


def on_grid(q: Array, zero: Array, top: int) -> Array:
    """Weights in units of their scales → codes, in place."""
    xp = namespace(q)
    xp.round(q, out=q)
    q += zero
    return xp.clip(q, 0, top, out=q)


def stored(scale: Array) -> Array:
    """Scales as files keep them, float16; never zero, since weights are divided by them."""
    xp = namespace(scale)
    half = floats(xp.asarray(scale, dtype=xp.float16))
    return xp.where(xp.abs(half) < LEAST, xp.full_like(half, LEAST), half)


def full_range(w: Array, bits: int, symmetric: bool, share: float = 1.0) -> Grid:
    """The grid over `share` of the range of w [..., g, out], zero included. → scales [..., out]"""
    xp, top = namespace(w), (1 << bits) - 1
    if symmetric:
        scale = stored(xp.amax(xp.abs(w), axis=-2) * (2 * share / top))
        return Grid(scale, xp.full_like(scale, (top + 1) // 2), bits)
    low = xp.clip(xp.amin(w, axis=-2), None, 0) * share
    high = xp.clip(xp.amax(w, axis=-2), 0, None) * share
    scale = stored((high - low) / top)
    # Zero 0 has no code in GPTQ files, which keep zero - 1.
    return Grid(scale, xp.clip(xp.round(-low / scale), 1, top), bits)


def search(w: Array, importance: Array, bits: int, symmetric: bool) -> Grid:
    """The grid of least Σ importance * (w - rounded w)² among shares of the full range.

    w [g, out], importance [g] of columns. Symmetric grids reach one step further down than up, so the side of the
    largest weight decides their sign: a negative scale turns the grid around.
    """
    xp = namespace(w)
    best, least = full_range(w, bits, symmetric), None
    for share in SHRINKS:
        for grid in _candidates(w, bits, symmetric, float(share)):
            change = grid.rounded(w)
            change -= w
            loss = xp.einsum("g,go,go->o", importance, change, change)
            if least is None:
                best, least = grid, loss
                continue
            better = loss < least
            least = xp.where(better, loss, least)
            best = Grid(xp.where(better, grid.scale, best.scale), xp.where(better, grid.zero, best.zero), bits)
    return best


def _candidates(w: Array, bits: int, symmetric: bool, share: float) -> tuple[Grid, ...]:
    grid = full_range(w, bits, symmetric, share)
    if not symmetric:
        return (grid,)
    return grid, Grid(-grid.scale, grid.zero, bits)
