"""Quantized layers of Hugging Face checkpoints into the CPU backend's panels of grouped weights.

    bits    zeros                    panel           weight
    ≤ 4     all 8                    grouped4        scale * (code - 8)
    ≤ 4     any                      grouped4_min    scale * code + min, min = -scale * zero
    ≤ 8     all 128                  grouped8        scale * (code - 128)
    ≤ 8     any                      grouped8_min    scale * (code - 128) + min, min = scale * (128 - zero)
    4       a codebook               codebook4       scale * value[code], values rounded to 12 bits
    4       E2M1, groups of 16       fp4_halves      scale * value[code]
    8       E4M3                     grouped_fp8     scale * value[code], activations as floats

Columns are sorted by group (act-order), and the activations with them. The panels' scales are float32, so that nothing
is lost but in a codebook: NF4's values on the best grid of 12 bits are off by 0.02 % of the weights' root mean square,
where NF4 itself is off by 9 %. (On a grid of bytes they were off by 0.5 %, which showed in the logits.)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pagoda import _native
from pagoda.errors import UnsupportedError
from pagoda.formats.blocks import E2M1_VALUES
from pagoda.formats.packed import GroupedWeight, Ints, even_groups
from pagoda.formats.quantized import QuantizedTensor
from pagoda.types import FloatArray

BLOCK = 32  # columns that a panel's block holds
LARGEST = 2039  # of a codebook, so that a block's products with 16-bit activations add up in 32 bits


def pack(runtime: _native.Runtime, tensor: QuantizedTensor) -> _native.Weight:
    """The layer's weight in panels, its columns in `tensor.column_order()`.

    UnsupportedError for columns or groups that blocks of 32 do not divide.
    """
    weight, order = tensor.unpack(), tensor.column_order()
    groups = weight.groups if order is None else weight.groups[order]
    if weight.bits == 4 and weight.codebook is not None and np.array_equal(weight.codebook, E2M1_VALUES):
        return _pack_fp4(runtime, tensor.name, weight)
    kept, shift = panel_groups(tensor.name, groups)
    scales = weight.scales[:, kept]
    type, codes, mins, codebook = f"grouped{4 if weight.bits <= 4 else 8}", weight.codes, None, None
    if weight.codebook is not None and weight.bits == 8:
        type = "grouped_fp8"
    elif weight.codebook is not None:
        type = "codebook4"
        codebook, unit = integer_codebook(weight.codebook)
        scales = scales * np.float32(unit)
    else:
        middle = 8 if weight.bits <= 4 else 128
        if middle == 128:
            codes = codes ^ np.uint8(128)  # 128 less, as signed bytes
        if (weight.zeros != middle).any():
            type += "_min"
            zeros = weight.zeros[:, kept] - (0 if middle == 8 else 128)
            mins = np.ascontiguousarray(-scales * zeros.astype(np.float32))
    return runtime.pack_grouped(
        type, np.ascontiguousarray(codes), np.ascontiguousarray(scales), mins, shift, order, codebook
    )


def _pack_fp4(runtime: _native.Runtime, name: str, weight: GroupedWeight) -> _native.Weight:
    """Codes of E2M1, with a scale for each 16 columns in order, as NVFP4 has them."""
    columns = weight.codes.shape[1]
    if columns % BLOCK or not np.array_equal(weight.groups, even_groups(columns, BLOCK // 2)):
        raise UnsupportedError(
            f"tensor {name!r} has {columns} columns, or groups of them, that are no multiple of {BLOCK}"
        )
    codes, scales = np.ascontiguousarray(weight.codes), np.ascontiguousarray(weight.scales, np.float32)
    return runtime.pack_grouped("fp4_halves", codes, scales, None, 0)


def panel_groups(name: str, groups: Ints) -> tuple[Ints, int]:
    """Columns' groups [C] → the group of each run of 2^shift blocks, and the largest such shift."""
    if groups.size % BLOCK:
        raise UnsupportedError(f"tensor {name!r} has {groups.size} columns, no multiple of {BLOCK}; {_REMEDY}")
    blocks = groups.reshape(-1, BLOCK)
    if (blocks != blocks[:, :1]).any():
        raise UnsupportedError(f"tensor {name!r} has groups of columns that are no multiple of {BLOCK}; {_REMEDY}")
    of_block, shift = blocks[:, 0], 0
    while 1 << shift < of_block.size and _runs_agree(of_block, 2 << shift):
        shift += 1
    return np.ascontiguousarray(of_block[:: 1 << shift]), shift


_REMEDY = "quantize the model again with groups of 32, 64 or 128 columns"


def _runs_agree(values: npt.NDArray[np.int32], run: int) -> bool:
    return bool((values == np.repeat(values[::run], run)[: values.size]).all())


def integer_codebook(values: FloatArray) -> tuple[npt.NDArray[np.int16], float]:
    """values [16] → integers up to LARGEST and a unit such that unit * integers comes closest (least squares)."""
    largest = max(float(np.abs(values).max()), 1e-30)
    grids = np.rint(np.linspace(LARGEST / 2, LARGEST, 12701)[:, None] * (values / largest))  # [N, 16]
    units = grids @ values / np.maximum((grids * grids).sum(1), 1)
    best = int(np.square(units[:, None] * grids - values).sum(1).argmin())
    return grids[best].astype(np.int16), float(units[best])
