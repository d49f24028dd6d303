"""NF4: 64 weights share a scale and are rounded to quantiles of the normal distribution.

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs" (arXiv 2305.14314). Scales are quantized themselves
("double quantization"), less their mean, to 8 bits of a code whose step grows with the value, 256 to a second scale.
Unlike bitsandbytes, weights are rounded with the scales that are kept, not with those before their own rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pagoda.formats.nf4 import STATE, DoubleQuantized, pack_nf4
from pagoda.formats.packed import NF4_VALUES
from pagoda.types import FloatArray

BLOCK_SIZE = 64
NESTED_SIZE = 256
STATE_BYTES = 256  # of the JSON state, filled up with spaces so that its size is known before


def dynamic_values() -> FloatArray:
    """The 256 values of bitsandbytes' signed 8-bit code: seven decades, each with twice the steps of the one below."""
    values = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1.0, 2**decade + 1)
        middles = 10.0 ** (decade - 6) * (edges[:-1] + edges[1:]) / 2
        values += [*middles, *-middles]
    return np.sort(np.array(values, dtype=np.float32))


DYNAMIC_VALUES = dynamic_values()


def nearest(values: npt.NDArray[np.floating], table: FloatArray) -> npt.NDArray[np.uint8]:
    """Indices of the entries of a sorted table that are nearest to values."""
    return np.searchsorted((table[1:] + table[:-1]) / 2, values).astype(np.uint8)


def double_quantized(absmax: FloatArray) -> DoubleQuantized:
    """Scales [N] in 8 bits."""
    offset = np.float32(absmax.mean(dtype=np.float64))
    rest = np.zeros(-(-absmax.size // NESTED_SIZE) * NESTED_SIZE, dtype=np.float32)
    rest[: absmax.size] = absmax - offset
    rows = rest.reshape(-1, NESTED_SIZE)
    scales = np.abs(rows).max(axis=1)
    codes = nearest(rows / np.where(scales == 0, np.float32(1), scales)[:, None], DYNAMIC_VALUES)
    return DoubleQuantized(codes.reshape(-1)[: absmax.size], DYNAMIC_VALUES, scales, float(offset), NESTED_SIZE)


def quantize_nf4(weight: FloatArray, dtype: str = "bfloat16") -> dict[str, npt.NDArray[Any]]:
    """weight [R, C], R * C even, → the parts of a bitsandbytes layer by what follows the weight's name."""
    flat = np.zeros(-(-weight.size // BLOCK_SIZE) * BLOCK_SIZE, dtype=np.float32)
    flat[: weight.size] = weight.reshape(-1)
    blocks = flat.reshape(-1, BLOCK_SIZE)
    absmax = double_quantized(np.abs(blocks).max(axis=1))
    scales = absmax.dequantize()
    codes = nearest(blocks / np.where(scales == 0, np.float32(1), scales)[:, None], NF4_VALUES)
    parts = pack_nf4(codes.reshape(-1)[: weight.size].reshape(weight.shape), absmax, dtype=dtype)
    state = f".{STATE}nf4"
    parts[state] = np.frombuffer(parts[state].tobytes().ljust(STATE_BYTES), dtype=np.uint8)
    return parts
