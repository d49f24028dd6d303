"""Lower the output error of a weight that is quantized already: better scales for its codes, then better codes.

With H = X^T X of the inputs, the error is Σ over rows of (w - v) H (w - v)^T. For fixed codes the best scales of a row
are a least-squares problem in as many unknowns as it has groups. For fixed scales each code in turn is moved to where
the error is least given all others (coordinate descent), in blocks of columns, as GPTQ does. Neither step raises the
error.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pagoda.formats.packed import GroupedWeight
from pagoda.quantize.grid import on_grid, stored
from pagoda.types import FloatArray

Doubles = npt.NDArray[np.float64]

BLOCK = 32  # columns between two updates of all that follow
RIDGE = 1e-6  # share of the diagonal that is added to it: rows whose codes are all zero have nothing to fit


def refined(weight: FloatArray, quantized: GroupedWeight, hessian: FloatArray) -> GroupedWeight:
    """weight [out, in] and its quantized form → one at least as near, in the same groups with the same zeros."""
    pull = hessian @ weight.T
    refitted = refit_scales(quantized, hessian, pull)
    return refit_scales(move_codes(refitted, hessian, pull), hessian, pull)


def refit_scales(quantized: GroupedWeight, hessian: FloatArray, pull: FloatArray) -> GroupedWeight:
    """The best scales for the codes as they are; a row keeps its own where rounding them to float16 undoes the gain.

    `pull` [in, out] is H times the weight.
    """
    matrix, target = scale_equations(quantized, hessian, pull)
    damped = matrix.copy()
    diagonal = np.einsum("rgg->rg", damped)  # a view
    diagonal += RIDGE * diagonal + 1e-9 * max(float(diagonal.max()), 1e-30)
    scales = stored(np.linalg.solve(damped, target[..., None])[..., 0].astype(np.float32))

    def error(scales: FloatArray) -> Doubles:
        """Of each row, less what no scales change."""
        s = scales.astype(np.float64)
        return np.asarray((s * ((matrix @ s[..., None])[..., 0] - 2 * target)).sum(axis=-1))

    keep = error(scales) > error(quantized.scales)
    return _with_scales(quantized, np.where(keep[:, None], quantized.scales, scales))


def scale_equations(quantized: GroupedWeight, hessian: FloatArray, pull: FloatArray) -> tuple[Doubles, Doubles]:
    """A and b with error(s) = s A s - 2 b s + constant of each row's scales s. → [out, G, G], [out, G]"""
    steps = (quantized.codes - quantized.zeros[:, quantized.groups]).T.astype(np.float32)  # [in, out]
    groups = quantized.groups
    if (np.diff(groups) < 0).any():  # act-order
        order = np.argsort(groups, kind="stable")
        groups, steps, pull, hessian = groups[order], steps[order], pull[order], hessian[np.ix_(order, order)]
    num_groups = quantized.scales.shape[1]
    ends = np.searchsorted(groups, np.arange(num_groups + 1))
    matrix = np.empty((len(quantized.codes), num_groups, num_groups), dtype=np.float64)
    target = np.empty(matrix.shape[:2], dtype=np.float64)
    for g in range(num_groups):
        own = slice(ends[g], ends[g + 1])
        target[:, g] = _column_sums(steps[own], pull[own])
        product = hessian[ends[g] :, own] @ steps[own]
        for other in range(g, num_groups):
            rows = slice(ends[other], ends[other + 1])
            sums = _column_sums(product[rows.start - own.start : rows.stop - own.start], steps[rows])
            matrix[:, other, g] = matrix[:, g, other] = sums
    return matrix, target


def _column_sums(a: FloatArray, b: FloatArray) -> FloatArray:
    """Σ a * b of each column. [n, out] twice → [out]"""
    return np.asarray(np.einsum("so,so->o", a, b), dtype=np.float32)


def move_codes(quantized: GroupedWeight, hessian: FloatArray, pull: FloatArray) -> GroupedWeight:
    """One round of coordinate descent over the columns, those of the largest Hessian diagonal first.

    `pull` [in, out] is H times the weight.
    """
    values = quantized.dequantize().T
    slope = pull - hessian @ values  # half the error's gradient, downhill
    order = np.argsort(-np.diagonal(hessian), kind="stable")
    order = order[np.diagonal(hessian)[order] > 0]
    codes = quantized.codes.T.copy()
    slope, near, matrix = slope[order], np.ascontiguousarray(values[order]), hessian[np.ix_(order, order)]
    for start in range(0, len(order), BLOCK):
        end = min(start + BLOCK, len(order))
        columns = order[start:end]
        change = np.empty((end - start, len(quantized.codes)), dtype=np.float32)
        moved = _move_block(quantized, columns, near[start:end], slope[start:end], matrix[start:end, start:end], change)
        codes[columns] = moved
        slope[end:] -= matrix[end:, start:end] @ change
    codes = np.ascontiguousarray(codes.T)
    return GroupedWeight(quantized.bits, codes, quantized.scales, quantized.zeros, quantized.groups)


def _move_block(
    quantized: GroupedWeight,
    columns: npt.NDArray[np.intp],
    values: FloatArray,
    slope: FloatArray,
    matrix: FloatArray,
    change: FloatArray,
) -> npt.NDArray[np.uint8]:
    """Columns [n] in order, each given those before it; values and slope [n, out] of them, matrix [n, n]. How values
    change goes into `change`. → codes [n, out]"""
    top = np.float32((1 << quantized.bits) - 1)
    scales = np.ascontiguousarray(quantized.scales.T)
    zeros = np.ascontiguousarray(quantized.zeros.T, dtype=np.float32)
    codes = np.empty(values.shape, dtype=np.uint8)
    room = np.empty_like(values)
    for i, group in enumerate(quantized.groups[columns]):
        wanted = (values[i] + slope[i] / matrix[i, i]) / scales[group]
        moved = on_grid(wanted, zeros[group], top)
        codes[i] = moved
        np.subtract((moved - zeros[group]) * scales[group], values[i], out=change[i])
        pushed = np.multiply(matrix[i + 1 :, i, None], change[i], out=room[i + 1 :])
        slope[i + 1 :] -= pushed
    return codes


def row_errors(weight: FloatArray, quantized: GroupedWeight, hessian: FloatArray) -> npt.NDArray[np.float32]:
    """(w - v) H (w - v)^T of each row. → [out]"""
    change = weight - quantized.dequantize()
    return np.asarray(np.einsum("oi,oi->o", change @ hessian, change))


def _with_scales(quantized: GroupedWeight, scales: FloatArray) -> GroupedWeight:
    return GroupedWeight(quantized.bits, quantized.codes, scales, quantized.zeros, quantized.groups)
