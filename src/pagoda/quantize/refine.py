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
from pagoda.quantize.grid import stored
from pagoda.types import FloatArray

BLOCK = 64  # columns between two updates of all others
RIDGE = 1e-6  # share of the diagonal that is added to it: rows whose codes are all zero have nothing to fit


def refined(weight: FloatArray, quantized: GroupedWeight, hessian: FloatArray) -> GroupedWeight:
    """weight [out, in] and its quantized form → one at least as near, in the same groups with the same zeros."""
    refitted = refit_scales(weight, quantized, hessian)
    return refit_scales(weight, move_codes(weight, refitted, hessian), hessian)


def refit_scales(weight: FloatArray, quantized: GroupedWeight, hessian: FloatArray) -> GroupedWeight:
    """The best scales for the codes as they are; a row keeps its own where rounding them to float16 undoes the gain."""
    steps = (quantized.codes - quantized.zeros[:, quantized.groups]).T.astype(np.float32)  # [in, out]
    num_groups = quantized.scales.shape[1]
    members = [np.flatnonzero(quantized.groups == g) for g in range(num_groups)]
    pull = hessian @ weight.T  # [in, out]
    matrix = np.empty((len(weight), num_groups, num_groups), dtype=np.float64)
    target = np.empty((len(weight), num_groups), dtype=np.float64)
    for g, columns in enumerate(members):
        target[:, g] = (steps[columns] * pull[columns]).sum(axis=0)
        product = hessian[:, columns] @ steps[columns]
        product *= steps
        for other, rows in enumerate(members):
            matrix[:, other, g] = product[rows].sum(axis=0)
    diagonal = np.einsum("rgg->rg", matrix)  # a view
    diagonal += RIDGE * diagonal + 1e-9 * max(float(diagonal.max()), 1e-30)
    scales = stored(np.linalg.solve(matrix, target[..., None])[..., 0].astype(np.float32))
    better = _with_scales(quantized, scales)
    keep = row_errors(weight, better, hessian) > row_errors(weight, quantized, hessian)
    return _with_scales(quantized, np.where(keep[:, None], quantized.scales, scales))


def move_codes(weight: FloatArray, quantized: GroupedWeight, hessian: FloatArray) -> GroupedWeight:
    """One round of coordinate descent over the columns, those of the largest Hessian diagonal first."""
    top = (1 << quantized.bits) - 1
    values = quantized.dequantize().T.copy()  # [in, out]
    codes = quantized.codes.T.copy()
    slope = hessian @ (weight.T - values)  # half the error's gradient, downhill
    diagonal = np.diagonal(hessian)
    order = np.argsort(-diagonal, kind="stable")
    order = order[diagonal[order] > 0]
    for start in range(0, len(order), BLOCK):
        columns = order[start : start + BLOCK]
        near, block = slope[columns], hessian[np.ix_(columns, columns)]
        change = np.empty_like(near)
        for i, column in enumerate(columns):
            group = quantized.groups[column]
            scale, zero = quantized.scales[:, group], quantized.zeros[:, group]
            wanted = (values[column] + near[i] / diagonal[column]) / scale
            moved = np.clip(np.rint(wanted) + zero, 0, top)
            new = ((moved - zero) * scale).astype(np.float32)
            change[i] = new - values[column]
            codes[column], values[column] = moved, new
            near -= np.outer(block[:, i], change[i])
        slope -= hessian[:, columns] @ change
    codes = np.ascontiguousarray(codes.T)
    return GroupedWeight(quantized.bits, codes, quantized.scales, quantized.zeros, quantized.groups)


def row_errors(weight: FloatArray, quantized: GroupedWeight, hessian: FloatArray) -> npt.NDArray[np.float32]:
    """(w - v) H (w - v)^T of each row. → [out]"""
    change = weight - quantized.dequantize()
    return np.asarray(np.einsum("oi,oi->o", change @ hessian, change))


def _with_scales(quantized: GroupedWeight, scales: FloatArray) -> GroupedWeight:
    return GroupedWeight(quantized.bits, quantized.codes, scales, quantized.zeros, quantized.groups)
