"""Quantized layers of Hugging Face folders as GGUF's blocks, code for code where blocks can say what they mean.

bits  zeros       groups                  type   added error
≤ 4   all 8       of 32 in order          Q4_0   none, if the scales are 16-bit floats
≤ 4   any         of 32 in order          Q4_1   that of the minimum as a 16-bit float
≤ 8   all 128     of 32 in order          Q8_0   none, if the scales are 16-bit floats
any   any         others (act-order), NF4 Q8_0   that of rounding to 8 bits
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pagoda.formats.packed import GroupedWeight
from pagoda.types import FloatArray

Bytes = npt.NDArray[np.uint8]
BLOCK = 32


def block_type(weight: GroupedWeight) -> tuple[str, bool]:
    """→ the type, and whether codes can be taken over as they are."""
    columns = weight.groups.size
    if columns % BLOCK:
        return "F16", False
    groups = weight.groups.reshape(-1, BLOCK)
    if weight.codebook is not None or (groups != groups[:, :1]).any():
        return "Q8_0", False
    middle = 8 if weight.bits <= 4 else 128
    if (weight.zeros == middle).all():
        return ("Q4_0" if middle == 8 else "Q8_0"), True
    return ("Q4_1", True) if middle == 8 else ("Q8_0", False)


def blocks_of(weight: GroupedWeight) -> Bytes | None:
    """The weight as blocks of `block_type`, [R, bytes of a row]; None where codes cannot be taken over."""
    type, exact = block_type(weight)
    if not exact:
        return None
    rows, columns = weight.shape
    of_block = weight.groups[::BLOCK]
    scales, zeros = weight.scales[:, of_block], weight.zeros[:, of_block]  # [R, C / 32]
    codes = weight.codes.reshape(rows, columns // BLOCK, BLOCK)
    fields = [_half(scales)]
    if type == "Q4_1":
        fields.append(_half(-scales * zeros.astype(np.float32)))
    if type == "Q8_0":
        fields.append(codes ^ np.uint8(128))
    else:
        fields.append(codes[..., :16] | codes[..., 16:] << np.uint8(4))
    return np.concatenate(fields, axis=-1).reshape(rows, -1)


def _half(values: FloatArray) -> Bytes:
    """[R, B] → the two bytes of each as f16, [R, B, 2]"""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values.astype("<f2"))[..., None].view(np.uint8)
