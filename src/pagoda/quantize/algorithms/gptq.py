"""GPTQ: columns are rounded one after the other, and what rounding one changes the others take back.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (arXiv 2210.17323).
With H = X^T X of a linear's inputs and H^-1 = U^T U (U upper triangular), rounding column i by an error e moves each
later column j by -e * U[i, j] / U[i, i], which keeps the output error least.

Columns are taken in the order of their Hessian diagonal, largest first ("act-order"), so that the weightiest are
rounded while most others can still make up for them. With static groups scales are set before, by where columns stand
in the file, so the file's columns stay in order; "full" act-order sets each group's scale when its turn comes, and
the file then says by g_idx which column belongs to which group.

What comes out is refined (`refine.py`), which the paper does not do. Arrays are numpy's or torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pagoda.errors import FormatError
from pagoda.quantize.algorithms.grid import Grid, Rounded, full_range, search
from pagoda.quantize.algorithms.refine import refined
from pagoda.quantize.arrays import Array, fetched, floats, namespace
from pagoda.quantize.calibration.layers import LinearGroup, Outcome, QuantizedLinear
from pagoda.types import Int32Array

ActOrder = Literal["static", "full", "none"]

BLOCK = 32  # columns between two updates of all that follow
TRIANGLE = 64  # triangles up to this size are inverted at once


@dataclass(frozen=True, slots=True)
class GPTQOptions:
    bits: int = 4
    group_size: int = 128  # -1: a whole row
    symmetric: bool = True
    act_order: ActOrder = "static"
    damping: float = 0.01  # share of the mean of H's diagonal that is added to it
    search_scales: bool = True
    refine: bool = True  # scales and codes once more, when all columns are done


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """U of H^-1 = U^T U for columns in `order`, and the damping that made H invertible."""

    upper: Array  # [in, in] float32
    order: npt.NDArray[np.intp]
    damping: float


def factorize(hessian: Array, act_order: ActOrder, damping: float) -> Factor:
    """Damp H, [in, in] float64, ten times as much whenever it is singular, and factorize its inverse.

    FormatError where that does not help: the inputs hold what is not a number.
    """
    xp = namespace(hessian)
    if not xp.isfinite(hessian).all():
        raise FormatError("the model computes infinities or NaN on the calibration text; its weights are damaged")
    diagonal = xp.diagonal(hessian)
    diagonal = xp.where(diagonal > 0, diagonal, xp.ones_like(diagonal))  # a column that the sample never used
    every = np.arange(len(diagonal))
    order = every if act_order == "none" else np.argsort(-fetched(diagonal), kind="stable")
    mean = float(diagonal.mean())
    for _ in range(8):
        damped = hessian[order[:, None], order]
        damped[every, every] = diagonal[order] + damping * mean
        try:
            upper = inverse_factor(damped)
        except xp.linalg.LinAlgError:
            damping = max(10 * damping, 1e-4)
            continue
        return Factor(floats(upper), order, damping)
    raise FormatError("the Hessian stays singular however much it is damped")


def inverse_factor(matrix: Array) -> Array:
    """Upper U with matrix^-1 = U^T U. LinAlgError, numpy's or torch's, if the matrix is not positive definite.

    With J the reversal of rows, J matrix J = L L^T gives matrix = (J L J) (J L J)^T, so U = J L^-1 J.
    """
    xp = namespace(matrix)
    lower = xp.linalg.cholesky(xp.flip(matrix, (0, 1)))
    return xp.flip(inverse_lower(lower), (0, 1))


def inverse_lower(lower: Array) -> Array:
    """Inverse of a lower triangle by halves: [[A, 0], [C, B]]^-1 = [[A^-1, 0], [-B^-1 C A^-1, B^-1]]."""
    out = namespace(lower).zeros_like(lower)
    _invert_into(lower, out)
    return out


def _invert_into(lower: Array, out: Array) -> None:
    n = len(lower)
    if n <= TRIANGLE:
        xp = namespace(lower)
        out[:] = xp.tril(xp.linalg.inv(lower))
        return
    half = n // 2
    _invert_into(lower[:half, :half], out[:half, :half])
    _invert_into(lower[half:, half:], out[half:, half:])
    out[half:, :half] = -(out[half:, half:] @ (lower[half:, :half] @ out[:half, :half]))


def group_count(columns: int, group_size: int) -> int:
    return 1 if group_size == -1 else -(-columns // group_size)


def quantize(weight: Array, factor: Factor, options: GPTQOptions) -> Rounded:
    """Round weight [out, in] with the error compensation of `factor`."""
    xp, columns = namespace(weight), weight.shape[1]
    size = columns if options.group_size == -1 else options.group_size
    run = _Rounding(weight.T[factor.order], factor.upper, options)
    if options.act_order == "static":
        groups = np.arange(columns, dtype=np.int32) // size
        grids = [run.grid(np.flatnonzero(groups[factor.order] == g)) for g in range(group_count(columns, size))]
        run.fixed(grids, groups[factor.order])
    else:
        groups = np.empty(columns, dtype=np.int32)
        groups[factor.order] = np.arange(columns) // size
        grids = run.growing(size)
    codes = xp.empty_like(run.codes)
    codes[factor.order] = run.codes
    scales, zeros = xp.stack([grid.scale for grid in grids]), xp.stack([grid.zero for grid in grids])
    return Rounded(options.bits, codes, scales, zeros, groups)


class _Rounding:
    """Rounds one matrix: w [in, out] changes as its columns are rounded."""

    def __init__(self, w: Array, upper: Array, options: GPTQOptions) -> None:
        xp = self.xp = namespace(w)
        self.w = w
        self.upper = upper
        self.importance = xp.square(1 / xp.diagonal(upper))
        self.options = options
        self.codes = xp.empty_like(w, dtype=xp.uint8)

    def grid(self, rows: npt.NDArray[np.intp]) -> Grid:
        """The grid that fits these columns as they are now."""
        o = self.options
        if o.search_scales:
            return search(self.w[rows], self.importance[rows], o.bits, o.symmetric)
        return full_range(self.w[rows], o.bits, o.symmetric)

    def fixed(self, grids: list[Grid], groups: Int32Array) -> None:
        """Round all columns on grids that were chosen beforehand, as act-order "static" needs."""
        for start in range(0, len(self.w), BLOCK):
            end = min(start + BLOCK, len(self.w))
            self.block(start, end, [grids[g] for g in groups[start:end]])

    def growing(self, size: int) -> list[Grid]:
        """Round all columns, choosing the grid of each group just before its first column is rounded."""
        grids = []
        for start in range(0, len(self.w), size):
            end = min(start + size, len(self.w))
            grids.append(self.grid(np.arange(start, end)))
            for first in range(start, end, BLOCK):
                last = min(first + BLOCK, end)
                self.block(first, last, grids[-1:] * (last - first))
        return grids

    def block(self, start: int, end: int, grids: list[Grid]) -> None:
        """Round columns [start, end), and correct all later columns for the errors."""
        w, upper = self.w[start:end], self.upper[start:end, start:end]
        xp = self.xp
        errors, room = xp.empty_like(w), xp.empty_like(w)
        for i, grid in enumerate(grids):
            codes = grid.codes(w[i])
            self.codes[start + i] = codes
            error = xp.divide(w[i] - grid.values(codes), upper[i, i], out=errors[i])
            w[i + 1 :] -= xp.multiply(upper[i, i + 1 :, None], error, out=room[i + 1 :])
        self.w[end:] -= self.upper[start:end, end:].T @ errors


class GPTQQuantizer:
    """A `LayerQuantizer`."""

    def __init__(self, options: GPTQOptions, say: Callable[[str], None]) -> None:
        self.options = options
        self._say = say

    def quantize(self, group: LinearGroup) -> Outcome:
        factor = factorize(group.inputs.hessian, self.options.act_order, self.options.damping)
        if factor.damping > self.options.damping:
            self._say(f"{group.names[0]}: singular Hessian, damped by {factor.damping:g}")
        done = [quantize(w, factor, self.options) for w in group.weights]
        if self.options.refine:
            hessian = floats(group.inputs.hessian)
            done = [refined(w, rounded, hessian) for w, rounded in zip(group.weights, done, strict=True)]
        return Outcome(tuple(QuantizedLinear(rounded.grouped()) for rounded in done))
