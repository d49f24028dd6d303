"""bitsandbytes' 4-bit layers: codes of a 16-value codebook in row-major blocks, a scale a block.

    NAME                      uint8 [R·C/2, 1]  two codes a byte, the first one in the high nibble
    NAME.quant_map            f32 [16]          the codebook: NormalFloat (NF4) or a 4-bit float (FP4)
    NAME.quant_state.bitsandbytes__nf4          JSON as bytes: quant_type, blocksize, shape, dtype; nested_…
    NAME.absmax               f32 [N]           a scale a block, or where quantization is double
    NAME.absmax               uint8 [N]         codes of the scales less nested_offset
    NAME.nested_quant_map     f32 [256]         their codebook
    NAME.nested_absmax        f32               their scales, one for each nested_blocksize

Source: bitsandbytes' `functional.QuantState` and `utils.pack_dict_to_tensor`; Dettmers et al., QLoRA (2023).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

from pagoda.errors import FormatError
from pagoda.formats.packed import NF4_VALUES, Arrays, Codes, GroupedWeight, even_groups
from pagoda.types import FloatArray

STATE = "quant_state.bitsandbytes__"


@dataclass(frozen=True, slots=True, eq=False)
class DoubleQuantized:
    """absmax[i] = values[codes[i]] * scales[i // block_size] + offset."""

    codes: Codes  # [N]
    values: FloatArray  # [256]
    scales: FloatArray  # [ceil(N / block_size)]
    offset: float
    block_size: int = 256

    def dequantize(self) -> FloatArray:
        """→ [N]"""
        scales = np.repeat(self.scales, self.block_size)[: self.codes.size]
        return self.values[self.codes] * scales + np.float32(self.offset)


def pack_nf4(
    codes: Codes, absmax: FloatArray | DoubleQuantized, *, block_size: int = 64, dtype: str = "bfloat16"
) -> dict[str, npt.NDArray[Any]]:
    """codes [R, C] of NF4_VALUES with an absmax a block → parts by what follows the weight's name ("" is the codes).

    `dtype` is what the layer computes in. R * C must be even.
    """
    flat = codes.reshape(-1)
    state = {"quant_type": "nf4", "blocksize": block_size, "dtype": dtype, "shape": list(codes.shape)}
    parts: dict[str, npt.NDArray[Any]] = {
        "": (flat[0::2] << 4 | flat[1::2]).reshape(-1, 1),
        ".quant_map": NF4_VALUES.copy(),
    }
    if isinstance(absmax, DoubleQuantized):
        state |= {"nested_blocksize": absmax.block_size, "nested_dtype": "float32", "nested_offset": absmax.offset}
        parts[".absmax"] = absmax.codes
        parts[".nested_quant_map"] = absmax.values.astype(np.float32)
        parts[".nested_absmax"] = absmax.scales.astype(np.float32)
    else:
        parts[".absmax"] = absmax.astype(np.float32)
    parts[f".{STATE}nf4"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return parts


def unpack_nf4(parts: Arrays, *, name: str = "") -> GroupedWeight:
    """From the parts that `pack_nf4` makes. FormatError where they do not fit each other."""
    state = read_state(parts, name)
    rows, columns = state_shape(state, name)
    block_size = _count(state, "blocksize", name)
    if block_size % 2 or parts[""].size != (rows * columns + 1) // 2 or parts[".quant_map"].shape != (16,):
        raise FormatError(f"layer {name!r} of {rows} x {columns} does not fit {parts[''].size} bytes of codes")
    absmax = _absmax(parts, state, -(-rows * columns // block_size), name)
    packed = parts[""].reshape(-1)
    codes = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)[: rows * columns].reshape(rows, columns)
    size = gcd(block_size, columns)  # where blocks run over the ends of rows, the largest groups that do not
    scales = np.repeat(absmax, block_size // size)[: rows * columns // size].reshape(rows, -1)
    groups = even_groups(columns, size)
    zeros = np.zeros(scales.shape, np.int32)
    return GroupedWeight(4, codes, scales, zeros, groups, parts[".quant_map"].astype(np.float32))


def read_state(parts: Arrays, name: str) -> Mapping[str, Any]:
    """The JSON object that stands beside the codes."""
    raw = next((array for part, array in parts.items() if part.startswith(f".{STATE}")), None)
    try:
        state = json.loads(raw.tobytes().decode()) if raw is not None else None
    except ValueError as error:
        raise FormatError(f"layer {name!r} has a quant_state that is not JSON: {error}") from error
    if not isinstance(state, dict):
        raise FormatError(f"layer {name!r} lacks the quant_state that bitsandbytes writes")
    return state


def state_shape(state: Mapping[str, Any], name: str) -> tuple[int, int]:
    shape = state.get("shape")
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and 0 < n < 1 << 31 for n in shape)):
        raise FormatError(f"layer {name!r} has the impossible shape {shape!r:.60} in its quant_state")
    return shape[0], shape[1]


def _absmax(parts: Arrays, state: Mapping[str, Any], blocks: int, name: str) -> FloatArray:
    absmax = parts[".absmax"].reshape(-1)
    if absmax.size != blocks:
        raise FormatError(f"layer {name!r} has {blocks} blocks, but {absmax.size} scales")
    if absmax.dtype != np.uint8:
        return absmax.astype(np.float32)
    offset, size = state.get("nested_offset"), _count(state, "nested_blocksize", name)
    values, scales = parts.get(".nested_quant_map"), parts.get(".nested_absmax")
    if values is None or scales is None or values.shape != (256,) or not isinstance(offset, (int, float)):
        raise FormatError(f"layer {name!r} has 8-bit scales, but not what they stand for (nested_…)")
    if scales.size != -(-blocks // size):
        raise FormatError(f"layer {name!r} has {blocks} 8-bit scales, but {scales.size} scales of these")
    return DoubleQuantized(absmax, values, scales.reshape(-1), float(offset), size).dequantize()


def _count(state: Mapping[str, Any], key: str, name: str) -> int:
    value = state.get(key)
    if type(value) is not int or not 0 < value <= 1 << 16:
        raise FormatError(f"layer {name!r} has the impossible {key} {value!r:.60}")
    return value
