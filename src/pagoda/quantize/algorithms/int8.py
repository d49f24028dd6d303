"""Eight bits: each row of a weight on its own symmetric grid from -127 to 127."""

from __future__ import annotations

import numpy as np

from pagoda.formats.packed import GroupedWeight
from pagoda.types import FloatArray

ZERO = 128  # the code of zero


def quantize_rows(weight: FloatArray) -> GroupedWeight:
    """weight [out, in] → codes with one group a row."""
    scales = np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)
    scales[scales == 0] = 1
    codes = (np.rint(weight / scales) + ZERO).astype(np.uint8)
    groups = np.zeros(weight.shape[1], dtype=np.int32)
    return GroupedWeight(8, codes, scales.astype(np.float32), np.full(scales.shape, ZERO, dtype=np.int32), groups)
