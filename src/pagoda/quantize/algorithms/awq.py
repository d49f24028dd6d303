"""AWQ: columns that meet large activations are made larger before rounding, and what feeds them smaller.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (arXiv 2306.00978). The
scale of a column is a power of the mean |x| that it meets, over a power of the mean size of its weights; exponents come
from a grid, by the error of the outputs over the whole sample: with H = X^T X and D what rounding changes,
trace(D H D^T). Then the ranges of groups are cut where that lowers the error, and scales and codes are refined
(`refine.py`), which the paper does not do. Arrays are numpy's or torch's.

Scales are folded into the norm before the linears, or into the rows of the linear before: of values for attention's
output (query heads that share a KV head share scales), of up for down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pagoda.formats.packed import even_groups
from pagoda.quantize.algorithms.grid import Grid, Rounded, full_range
from pagoda.quantize.algorithms.refine import refined
from pagoda.quantize.arrays import Array, fetched, floats, namespace
from pagoda.quantize.calibration.layers import LinearGroup, Outcome, QuantizedLinear
from pagoda.quantize.calibration.values import Origin

BITS = 4
EXPONENTS = np.arange(0, 1, 0.05)
CUTS = np.arange(1, 0.49, -0.05)  # shares of a group's range
SEARCH_ROWS = 256  # of each linear, evenly spread, that scales are tried on before the finalists are on all
FINALISTS = 3  # scales that are tried with cut ranges too
LEAST = 1e-4  # of what scales are made from


@dataclass(frozen=True, slots=True)
class AWQOptions:
    group_size: int = 128  # -1: a whole row


class AWQQuantizer:
    """A `LayerQuantizer`."""

    def __init__(self, options: AWQOptions) -> None:
        self.options = options

    def quantize(self, group: LinearGroup) -> Outcome:
        xp, hessian = namespace(group.inputs.hessian), floats(group.inputs.hessian)
        size = self.options.group_size if self.options.group_size > 0 else len(hessian)

        def loss(scales: Array, linears: Sequence[Rounded]) -> float:
            pairs = zip(group.weights, linears, strict=True)
            return sum(output_error(w, linear.values().T / scales, hessian) for w, linear in pairs)

        tried = [
            (scales, [clipped(w * scales, hessian, scales, size) for w in group.weights])
            for scales in likely_scales(group, hessian, size)
        ]
        scales, linears = min(tried, key=lambda pair: loss(*pair))
        scaled = hessian / xp.outer(scales, scales)  # of the inputs that the scaled columns meet
        best = (refined(w * scales, linear, scaled) for w, linear in zip(group.weights, linears, strict=True))
        kept = fetched(scales)
        divisors = {} if group.origin is None else {group.origin.weight.name: per_source(kept, group.origin)}
        return Outcome(tuple(QuantizedLinear(linear.grouped(), kept) for linear in best), divisors)


def likely_scales(group: LinearGroup, hessian: Array, size: int) -> list[Array]:
    """Column scales [in] to try in full, least error first: none at all, and the best of the grid by rounding over
    full ranges."""
    none = namespace(hessian).ones_like(hessian[0])
    if group.origin is None:
        return [none]

    weights = [w[:: -(-len(w) // SEARCH_ROWS)] for w in group.weights]

    def loss(scales: Array) -> float:
        return sum(output_error(w, rounded(w * scales, size) / scales, hessian) for w in weights)

    grid = sorted(candidates(group.weights, group.inputs.mean_abs, size, group.origin), key=loss)
    return [*grid[:FINALISTS], none]


def candidates(weights: Sequence[Array], mean_abs: Array, size: int, origin: Origin) -> Iterator[Array]:
    """Scales |x|^a / |w|^b for a grid of exponents, around 1, one for each column of the origin."""
    xp = namespace(mean_abs)
    x = xp.clip(shared(mean_abs, origin), LEAST, None)
    w = xp.clip(shared(weight_sizes(weights, size), origin), LEAST, None)
    for exponent in map(float, EXPONENTS):
        for scales in (x**exponent, x**exponent / w ** (1 - exponent)):
            yield scales / xp.sqrt(scales.max() * scales.min())


def weight_sizes(weights: Sequence[Array], size: int) -> Array:
    """Mean |w| of each column, each weight as a share of its group's largest. → [in]"""
    xp = namespace(weights[0])
    groups = xp.abs(xp.concatenate(tuple(weights)))
    groups = groups.reshape(len(groups), -1, size)
    groups /= xp.clip(xp.amax(groups, axis=-1, keepdims=True), LEAST, None)
    return groups.mean(0).reshape(-1)


def shared(values: Array, origin: Origin) -> Array:
    """Means over the columns that one row of the origin becomes, put back in place of each. [in] → [in]"""
    if origin.repeat == 1:
        return values
    runs = values.reshape(-1, origin.repeat, origin.run)
    return namespace(values).broadcast_to(runs.mean(1)[:, None], runs.shape).reshape(-1)


def per_source(scales: Array, origin: Origin) -> Array:
    """Scales of columns, equal where they share a row of the origin, as scales of these rows."""
    if origin.repeat == 1:
        return scales
    return scales.reshape(-1, origin.repeat, origin.run)[:, 0].reshape(-1)


def output_error(w: Array, other: Array, hessian: Array) -> float:
    """Σ over the sample of |x (w - other)^T|²."""
    change = w - other
    return float(namespace(w).einsum("oi,oi->", change @ hessian, change))


def rounded(w: Array, size: int) -> Array:
    """w [out, in] on asymmetric grids over the full range of each group."""
    groups = w.T.reshape(-1, size, len(w))  # [G, g, out]
    grid = full_range(groups, BITS, symmetric=False)
    return groupwise(grid).rounded(groups).reshape(w.T.shape).T


def groupwise(grid: Grid) -> Grid:
    """A grid with scales [G, out] so that it applies to [G, g, out]."""
    return Grid(grid.scale[:, None], grid.zero[:, None], grid.bits)


def clipped(w: Array, hessian: Array, scales: Array, size: int) -> Rounded:
    """w [out, in], columns already multiplied by scales, rounded on the best cut of each group's range.

    A group's error is what it alone changes in the outputs: with C its block of the Hessian of scaled inputs, d C d^T.
    """
    xp = namespace(w)
    groups = w.T.reshape(-1, size, len(w))  # [G, g, out]
    blocks = xp.stack([hessian[at : at + size, at : at + size] for at in range(0, len(hessian), size)])
    inverse = (1 / scales).reshape(-1, size)
    blocks *= inverse[:, :, None] * inverse[:, None, :]
    best = full_range(groups, BITS, symmetric=False)
    least = xp.full_like(best.scale, np.inf)
    for share in map(float, CUTS):
        grid = full_range(groups, BITS, symmetric=False, share=share)
        change = groups - groupwise(grid).rounded(groups)
        loss = xp.einsum("gio,gio->go", blocks @ change, change)
        better = loss < least
        least = xp.minimum(loss, least)
        best = Grid(xp.where(better, grid.scale, best.scale), xp.where(better, grid.zero, best.zero), BITS)
    codes = xp.asarray(groupwise(best).codes(groups), dtype=xp.uint8).reshape(w.T.shape)
    return Rounded(BITS, codes, best.scale, best.zero, even_groups(w.shape[1], size))
