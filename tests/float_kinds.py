"""Weights in floats of 8 and 4 bits, as folders hold them; numbers of the formats are written out here anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pagoda.types import FloatArray

Arrays = dict[str, np.ndarray]
FP8 = np.dtype("V1")  # numpy has none: bytes that the writer of files calls F8_E4M3


def _e4m3(code: int) -> float:
    exponent, mantissa = code >> 3 & 15, code & 7
    size = 2.0 ** (exponent - 7) * (1 + mantissa / 8) if exponent else mantissa * 2.0**-9
    return -size if code & 128 else size


E4M3 = np.array([_e4m3(code) for code in range(256)])
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def nearest(values: np.ndarray, table: np.ndarray, skipped: tuple[int, ...] = ()) -> np.ndarray:
    """The code of the table's number that is nearest to each value."""
    codes = np.array([c for c in np.argsort(table, kind="stable") if c not in skipped])
    grid = table[codes]
    return codes[np.searchsorted((grid[1:] + grid[:-1]) / 2, values)].astype(np.uint8)


def to_e4m3(values: np.ndarray) -> np.ndarray:
    return nearest(values, E4M3, (0x7F, 0xFF))


def fp8(values: FloatArray, scale: str, shape: str, block: int = 32) -> Arrays:
    """`shape` of the scales: "tensor", "row" or "block"."""
    rows, columns = values.shape
    if shape == "block":
        padded = np.pad(np.abs(values), ((0, -rows % block), (0, -columns % block)))
        scales = padded.reshape(-(-rows // block), block, -1, block).max((1, 3)) / 448
        whole = np.repeat(np.repeat(scales, block, 0), block, 1)[:rows, :columns]
    else:
        scales = np.abs(values).max(1, keepdims=True) / 448
        scales = scales.max().reshape(1) if shape == "tensor" else scales
        whole = np.broadcast_to(scales.reshape(-1, 1), values.shape)
    return {".weight": to_e4m3(values / whole).view(FP8), scale: scales.astype(np.float32)}


def nvfp4(values: FloatArray, codes: str, factor: str, *, divided: bool) -> Arrays:
    groups = values.reshape(len(values), -1, 16)
    largest = np.abs(groups).max(-1) / 6
    by = np.float32(largest.max() / 448)
    scales = to_e4m3(largest / by)
    whole = E4M3[scales][:, :, None] * by
    made = nearest(groups / np.where(whole > 0, whole, 1), E2M1).reshape(len(values), -1)
    packed = made[:, ::2] | made[:, 1::2] << 4
    return {codes: packed, ".weight_scale": scales.view(FP8), factor: np.array([1 / by if divided else by], np.float32)}


def fp8_config(block: int | None) -> Mapping[str, Any]:
    size = {} if block is None else {"weight_block_size": [block, block]}
    return {"quant_method": "fp8", "activation_scheme": "dynamic", **size}


def compressed_config(format: str, **weights: Any) -> Mapping[str, Any]:
    group = {
        "targets": ["Linear"],
        "weights": {"type": "float", "symmetric": True, **weights},
        "input_activations": None,
    }
    return {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": group}}
