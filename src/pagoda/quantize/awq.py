"""AWQ: columns that meet large activations are made larger before rounding, and what feeds them smaller.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (arXiv 2306.00978). The
scale of a column is a power of the mean |x| that it meets, over a power of the mean size of its weights; exponents come
from a grid, by the error of the outputs over the whole sample: with H = X^T X and D what rounding changes,
trace(D H D^T). Then the ranges of groups are cut where that lowers the error, and scales and codes are refined
(`refine.py`), which the paper does not do.

Scales are folded into the norm before the linears, or into the rows of the linear before: of values for attention's
output (query heads that share a KV head share scales), of up for down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pagoda.formats.packed import GroupedWeight, even_groups
from pagoda.quantize.forward import Origin
from pagoda.quantize.grid import Grid, full_range
from pagoda.quantize.layers import LinearGroup, Outcome, QuantizedLinear
from pagoda.quantize.refine import refined
from pagoda.types import FloatArray

BITS = 4
EXPONENTS = np.arange(0, 1, 0.05)
CUTS = np.arange(1, 0.49, -0.05)  # shares of a group's range
SEARCH_ROWS = 256  # of each linear, evenly spread, that scales are tried on before the finalists are on all
FINALISTS = 3  # scales that are tried with cut ranges too
LEAST = np.float32(1e-4)  # of what scales are made from


@dataclass(frozen=True, slots=True)
class AWQOptions:
    group_size: int = 128  # -1: a whole row


class AWQQuantizer:
    """A `LayerQuantizer`."""

    def __init__(self, options: AWQOptions) -> None:
        self.options = options

    def quantize(self, group: LinearGroup) -> Outcome:
        hessian = group.inputs.hessian.astype(np.float32)
        size = self.options.group_size if self.options.group_size > 0 else len(hessian)
        outcomes = [
            tuple(QuantizedLinear(clipped(w * scales, hessian, scales, size), scales) for w in group.weights)
            for scales in likely_scales(group, hessian, size)
        ]
        best = min(outcomes, key=lambda linears: group_error(group, linears, hessian))
        scales, origin = best[0].column_scales, group.origin
        assert scales is not None
        scaled = hessian / np.outer(scales, scales)  # of the inputs that the scaled columns meet
        best = tuple(
            QuantizedLinear(refined(w * scales, linear.weight, scaled), scales)
            for w, linear in zip(group.weights, best, strict=True)
        )
        return Outcome(best, {} if origin is None else {origin.weight.name: per_source(scales, origin)})


def group_error(group: LinearGroup, linears: Sequence[QuantizedLinear], hessian: FloatArray) -> float:
    pairs = zip(group.weights, linears, strict=True)
    return sum(output_error(w, linear.values(), hessian) for w, linear in pairs)


def likely_scales(group: LinearGroup, hessian: FloatArray, size: int) -> list[FloatArray]:
    """No scales, and those [in] of the grid that lose least before ranges are cut; fewest errors first."""
    none = np.ones(len(hessian), dtype=np.float32)
    if group.origin is None:
        return [none]

    weights = [w[:: -(-len(w) // SEARCH_ROWS)] for w in group.weights]

    def loss(scales: FloatArray) -> float:
        return sum(output_error(w, rounded(w * scales, size) / scales, hessian) for w in weights)

    grid = sorted(candidates(group.weights, group.inputs.mean_abs, size, group.origin), key=loss)
    return [*grid[:FINALISTS], none]


def candidates(weights: Sequence[FloatArray], mean_abs: FloatArray, size: int, origin: Origin) -> Iterator[FloatArray]:
    """Scales |x|^a / |w|^b for a grid of exponents, around 1, one for each column of the origin."""
    x = np.maximum(shared(mean_abs, origin), LEAST)
    w = np.maximum(shared(weight_sizes(weights, size), origin), LEAST)
    for exponent in EXPONENTS:
        for scales in (x**exponent, x**exponent / w ** (1 - exponent)):
            yield (scales / np.sqrt(scales.max() * scales.min())).astype(np.float32)


def weight_sizes(weights: Sequence[FloatArray], size: int) -> FloatArray:
    """Mean |w| of each column, each weight as a share of its group's largest. → [in]"""
    sizes = np.abs(np.concatenate(weights))
    groups = sizes.reshape(len(sizes), -1, size)
    groups /= np.maximum(groups.max(axis=-1, keepdims=True), LEAST)
    return np.asarray(sizes.mean(axis=0), dtype=np.float32)


def shared(values: FloatArray, origin: Origin) -> FloatArray:
    """Means over the columns that one row of the origin becomes, put back in place of each. [in] → [in]"""
    if origin.repeat == 1:
        return values
    runs = values.reshape(-1, origin.repeat, origin.run)
    return np.broadcast_to(runs.mean(axis=1, keepdims=True), runs.shape).reshape(-1)


def per_source(scales: FloatArray, origin: Origin) -> FloatArray:
    """Scales of columns, equal where they share a row of the origin, as scales of these rows."""
    if origin.repeat == 1:
        return scales
    return np.ascontiguousarray(scales.reshape(-1, origin.repeat, origin.run)[:, 0]).reshape(-1)


def output_error(w: FloatArray, other: FloatArray, hessian: FloatArray) -> float:
    """Σ over the sample of |x (w - other)^T|²."""
    change = w - other
    return float(np.einsum("oi,oi->", change @ hessian, change))


def rounded(w: FloatArray, size: int) -> FloatArray:
    """w [out, in] on asymmetric grids over the full range of each group."""
    groups = w.T.reshape(-1, size, len(w))  # [G, g, out]
    grid = full_range(groups, BITS, symmetric=False)
    return groupwise(grid).rounded(groups).reshape(w.T.shape).T


def groupwise(grid: Grid) -> Grid:
    """A grid with scales [G, out] so that it applies to [G, g, out]."""
    return Grid(grid.scale[:, None], grid.zero[:, None], grid.bits)


def clipped(w: FloatArray, hessian: FloatArray, scales: FloatArray, size: int) -> GroupedWeight:
    """w [out, in], columns already multiplied by scales, rounded on the best cut of each group's range.

    A group's error is what it alone changes in the outputs: with C its block of the Hessian of scaled inputs, d C d^T.
    """
    groups = w.T.reshape(-1, size, len(w))  # [G, g, out]
    blocks = np.stack([hessian[at : at + size, at : at + size] for at in range(0, len(hessian), size)])
    inverse = (1 / scales).reshape(-1, size)
    blocks *= inverse[:, :, None] * inverse[:, None, :]
    best = full_range(groups, BITS, symmetric=False)
    least: FloatArray = np.full(best.scale.shape, np.inf, dtype=np.float32)
    for share in CUTS:
        grid = full_range(groups, BITS, symmetric=False, share=float(share))
        change = groups - groupwise(grid).rounded(groups)
        loss: FloatArray = np.einsum("gio,gio->go", blocks @ change, change)
        better = loss < least
        least = np.minimum(loss, least, out=least)
        best = Grid(np.where(better, grid.scale, best.scale), np.where(better, grid.zero, best.zero), BITS)
    codes = groupwise(best).codes(groups).astype(np.uint8).reshape(w.T.shape).T
    zeros = best.zero.T.astype(np.int32)
    return GroupedWeight(BITS, codes, best.scale.T, zeros, even_groups(w.shape[1], size))
