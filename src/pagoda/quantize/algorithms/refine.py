"""Lower the output error of a weight that is quantized already: better scales for its codes, then better codes.

With H = X^T X of the inputs, the error is Σ over rows of (w - v) H (w - v)^T. For fixed codes the best scales of a row
are a least-squares problem in as many unknowns as it has groups. For fixed scales each code in turn is moved to where
the error is least given all others (coordinate descent), in blocks of columns, as GPTQ does. Neither step raises the
error. Arrays are numpy's or torch's.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pagoda.quantize.algorithms.grid import Rounded, on_grid, stored
from pagoda.quantize.arrays import Array, copied, fetched, floats, namespace

BLOCK = 32  # columns between two updates of all that follow
RIDGE = 1e-6  # share of the diagonal that is added to it: rows whose codes are all zero have nothing to fit


def refined(weight: Array, rounded: Rounded, hessian: Array) -> Rounded:
    """weight [out, in] and what it was rounded to → what is at least as near, in the same groups with the same zeros.

    hessian [in, in] in float32.
    """
    pull = hessian @ weight.T
    refitted = refit_scales(rounded, hessian, pull)
    return refit_scales(move_codes(refitted, hessian, pull), hessian, pull)


def refit_scales(rounded: Rounded, hessian: Array, pull: Array) -> Rounded:
    """The best scales for the codes as they are; a row keeps its own where rounding them to float16 undoes the gain.

    `pull` [in, out] is H times the weight.
    """
    xp = namespace(hessian)
    matrix, target = scale_equations(rounded, hessian, pull)
    every = np.arange(matrix.shape[1])
    diagonal = matrix[:, every, every]
    damped = copied(matrix)
    damped[:, every, every] = (1 + RIDGE) * diagonal + 1e-9 * max(float(diagonal.max()), 1e-30)
    scales = stored(floats(xp.linalg.solve(damped, target[..., None])[..., 0])).T

    def error(scales: Array) -> Array:
        """Error of each row, up to a constant that scales do not change."""
        s = xp.asarray(scales.T, dtype=xp.float64)
        return (s * ((matrix @ s[..., None])[..., 0] - 2 * target)).sum(-1)

    keep = error(scales) > error(rounded.scales)
    return replace(rounded, scales=xp.where(keep, rounded.scales, scales))


def scale_equations(rounded: Rounded, hessian: Array, pull: Array) -> tuple[Array, Array]:
    """A and b with error(s) = s A s - 2 b s + constant of each row's scales s, in float64. → [out, G, G], [out, G]"""
    xp = namespace(hessian)
    groups, steps = rounded.groups, rounded.steps()
    if (np.diff(groups) < 0).any():  # act-order
        order = np.argsort(groups, kind="stable")
        groups, steps, pull, hessian = groups[order], steps[order], pull[order], hessian[order[:, None], order]
    num_groups = len(rounded.scales)
    ends = np.searchsorted(groups, np.arange(num_groups + 1))
    parts = [slice(*pair) for pair in pairwise(ends)]
    sums = [_column_sums(steps[own], pull[own]) for own in parts]
    target = xp.asarray(xp.stack(sums, 1), dtype=xp.float64)
    matrix = xp.zeros_like(xp.broadcast_to(target[..., None], (*target.shape, num_groups)))
    for g, own in enumerate(parts):
        product = hessian[own.start :, own] @ steps[own]
        for other in range(g, num_groups):
            start, stop = parts[other].start, parts[other].stop
            matrix[:, other, g] = _column_sums(product[start - own.start : stop - own.start], steps[start:stop])
            matrix[:, g, other] = matrix[:, other, g]
    return matrix, target


def _column_sums(a: Array, b: Array) -> Array:
    """Σ a * b of each column. [n, out] twice → [out]"""
    return namespace(a).einsum("so,so->o", a, b)


def move_codes(rounded: Rounded, hessian: Array, pull: Array) -> Rounded:
    """One round of coordinate descent over the columns, those of the largest Hessian diagonal first.

    `pull` [in, out] is H times the weight.
    """
    xp, values = namespace(hessian), rounded.values()
    slope = pull - hessian @ values  # half the error's gradient, downhill
    diagonal = fetched(xp.diagonal(hessian))
    order = np.argsort(-diagonal, kind="stable")
    order = order[diagonal[order] > 0]
    slope, near, matrix = slope[order], values[order], hessian[order[:, None], order]
    codes = copied(rounded.codes)
    for start in range(0, len(order), BLOCK):
        end = min(start + BLOCK, len(order))
        columns = order[start:end]
        change = xp.empty_like(near[start:end])
        codes[columns] = _move_block(
            rounded, columns, near[start:end], slope[start:end], matrix[start:end, start:end], change
        )
        slope[end:] -= matrix[end:, start:end] @ change
    return replace(rounded, codes=codes)


def _move_block(
    rounded: Rounded, columns: npt.NDArray[np.intp], values: Array, slope: Array, matrix: Array, change: Array
) -> Array:
    """Columns [n] in order, each given those before it; values and slope [n, out] of them, matrix [n, n]. How values
    change goes into `change`. → codes [n, out]"""
    xp, top = namespace(values), (1 << rounded.bits) - 1
    codes, room = xp.empty_like(values, dtype=xp.uint8), xp.empty_like(values)
    for i, group in enumerate(rounded.groups[columns]):
        scale, zero = rounded.scales[group], rounded.zeros[group]
        moved = on_grid((values[i] + slope[i] / matrix[i, i]) / scale, zero, top)
        codes[i] = moved
        xp.subtract((moved - zero) * scale, values[i], out=change[i])
        slope[i + 1 :] -= xp.multiply(matrix[i + 1 :, i, None], change[i], out=room[i + 1 :])
    return codes
