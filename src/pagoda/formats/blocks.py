"""Block formats: a row in a table and a plain numpy decoder each. This is the truth that kernels are tested against.

A tensor is a row-major run of blocks; a block holds `elements` consecutive numbers of a row in `bytes` bytes.
All fields are little-endian. Scales are f16. Formats as in ggml's `ggml-common.h`, whose spelling of names we keep.

    legacy quants, 32 elements       value
      Q4_0  d, q4[32]                d * (q - 8)
      Q4_1  d, m, q4[32]             d * q + m
      Q5_0  d, q1[32], q4[32]        d * (q - 16)         the fifth bits lie apart, one a bit
      Q5_1  d, m, q1[32], q4[32]     d * q + m
      Q8_0  d, q8[32]                d * q
      IQ4_NL  d, q4[32]              d * IQ4_VALUES[q]
      MXFP4   e8, q4[32]             2^(e - 128) * E2M1_VALUES[q]
    k-quants, 256 elements in groups that have integer scales of their own
      Q2_K  16 x 16   d * s4 * q - dmin * m4
      Q3_K  16 x 16   d * (s6 - 32) * (q - 4)
      Q4_K   8 x 32   d * s6 * q - dmin * m6
      Q5_K   8 x 32   d * s6 * q - dmin * m6
      Q6_K  16 x 16   d * s8 * (q - 32)
      IQ4_XS 8 x 32   d * (s6 - 32) * IQ4_VALUES[q]

Those of one to three bits are in `grid_blocks.py`.

Products are taken in float32 from left to right, as ggml takes them, so that results agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from pagoda.errors import FormatError, UnsupportedError
from pagoda.formats import grid_blocks
from pagoda.formats.block_parts import Bytes, crumbs, f16, nibbles
from pagoda.types import FloatArray


@dataclass(frozen=True, slots=True)
class BlockType:
    """One block format: `elements` numbers in `bytes` bytes; `id` is its number in GGUF files."""

    elements: int
    bytes: int
    id: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.elements


BLOCK_TYPES: dict[str, BlockType] = {
    "F32": BlockType(1, 4, 0),
    "F16": BlockType(1, 2, 1),
    "Q4_0": BlockType(32, 18, 2),
    "Q4_1": BlockType(32, 20, 3),
    "Q5_0": BlockType(32, 22, 6),
    "Q5_1": BlockType(32, 24, 7),
    "Q8_0": BlockType(32, 34, 8),
    "Q2_K": BlockType(256, 84, 10),
    "Q3_K": BlockType(256, 110, 11),
    "Q4_K": BlockType(256, 144, 12),
    "Q5_K": BlockType(256, 176, 13),
    "Q6_K": BlockType(256, 210, 14),
    "IQ2_XXS": BlockType(256, 66, 16),
    "IQ2_XS": BlockType(256, 74, 17),
    "IQ3_XXS": BlockType(256, 98, 18),
    "IQ1_S": BlockType(256, 50, 19),
    "IQ4_NL": BlockType(32, 18, 20),
    "IQ3_S": BlockType(256, 110, 21),
    "IQ2_S": BlockType(256, 82, 22),
    "IQ4_XS": BlockType(256, 136, 23),
    "IQ1_M": BlockType(256, 56, 29),
    "BF16": BlockType(1, 2, 30),
    "TQ1_0": BlockType(256, 54, 34),
    "TQ2_0": BlockType(256, 66, 35),
    "MXFP4": BlockType(32, 17, 39),
}

# Types that are read, and not written.
READ_ONLY = frozenset({"MXFP4", *grid_blocks.DECODERS})

NVFP4 = BlockType(64, 36, 40)  # whose factor lies apart: `nvfp4_blocks.py` makes quantized tensors of it

# ggml's other types: their size is known, and nothing more.
UNREAD_TYPES: dict[str, BlockType] = {
    "Q8_1": BlockType(32, 36, 9),
    "Q8_K": BlockType(256, 292, 15),
    "I8": BlockType(1, 1, 24),
    "I16": BlockType(1, 2, 25),
    "I32": BlockType(1, 4, 26),
    "I64": BlockType(1, 8, 27),
    "F64": BlockType(1, 8, 28),
    "Q1_0": BlockType(128, 18, 41),
}

# The 16 levels of the non-linear 4-bit formats, denser around zero.
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.int8)

# Twice what the codes of E2M1 stand for, numbers of two bits of exponent and one of mantissa.
E2M1_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.int8)


def tensor_bytes(type: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of `type` and row-major `shape`. FormatError if rows are not whole blocks."""
    block = _block_type(type)
    columns = shape[-1] if shape else 1
    if columns % block.elements:
        raise FormatError(f"{type} packs {block.elements} elements a block, which does not divide a row of {columns}")
    return prod(shape) // block.elements * block.bytes


def dequantize(data: Bytes, type: str, shape: tuple[int, ...]) -> FloatArray:
    """Decode `data`, the bytes of a whole tensor (any dtype and shape viewable as bytes), to float32 of `shape`.

    Raises UnsupportedError for an unknown type, FormatError if `data` is not exactly shape's bytes.
    """
    block = _block_type(type)
    raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    if raw.size != tensor_bytes(type, shape):
        raise FormatError(f"{type} {shape} takes {tensor_bytes(type, shape)} bytes, not {raw.size}")
    with np.errstate(invalid="ignore", over="ignore"):  # infinite scales give nan, as they do in kernels
        return _DECODERS[type](raw.reshape(-1, block.bytes)).reshape(shape)


def _block_type(type: str) -> BlockType:
    if type not in BLOCK_TYPES:
        raise UnsupportedError(f"tensor type {type!r} is not supported; supported: {', '.join(BLOCK_TYPES)}")
    return BLOCK_TYPES[type]


# Decoders take blocks [N, bytes] and give float32 [N, elements].


def _f32_block(b: Bytes) -> FloatArray:
    return b.view("<f4").astype(np.float32)


def _f16_block(b: Bytes) -> FloatArray:
    return b.view("<f2").astype(np.float32)


def _bf16_block(b: Bytes) -> FloatArray:
    return (b.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q4_0(b: Bytes) -> FloatArray:
    q = nibbles(b[:, 2:]).reshape(-1, 32).astype(np.float32) - 8
    return f16(b, 0) * q


def _q4_1(b: Bytes) -> FloatArray:
    q = nibbles(b[:, 4:]).reshape(-1, 32).astype(np.float32)
    return f16(b, 0) * q + f16(b, 2)


def _five_bits(high: Bytes, low: Bytes) -> FloatArray:
    """high [N, 4]: bit i is the fifth bit of element i; low [N, 16]: nibbles. → [N, 32] in 0..31"""
    fifth = np.unpackbits(high, axis=1, bitorder="little")
    return (nibbles(low).reshape(-1, 32) | (fifth << 4)).astype(np.float32)


def _q5_0(b: Bytes) -> FloatArray:
    return f16(b, 0) * (_five_bits(b[:, 2:6], b[:, 6:]) - 16)


def _q5_1(b: Bytes) -> FloatArray:
    return f16(b, 0) * _five_bits(b[:, 4:8], b[:, 8:]) + f16(b, 2)


def _q8_0(b: Bytes) -> FloatArray:
    return f16(b, 0) * b[:, 2:].view(np.int8).astype(np.float32)


def _iq4_nl(b: Bytes) -> FloatArray:
    return f16(b, 0) * IQ4_VALUES[nibbles(b[:, 2:]).reshape(-1, 32)].astype(np.float32)


def powers_of_two(exponents: Bytes) -> FloatArray:
    """2^(e - 128) of each byte; 255, which stands for no number, is taken as one like the others."""
    e = exponents.astype(np.uint32)
    return (np.where(e < 2, e + 1, 4 * e - 4) << 21).astype(np.uint32).view(np.float32)


def _mxfp4(b: Bytes) -> FloatArray:
    return powers_of_two(b[:, :1]) * E2M1_VALUES[nibbles(b[:, 1:]).reshape(-1, 32)].astype(np.float32)


def _q2_k(b: Bytes) -> FloatArray:
    scales, q, d, dmin = b[:, :16], b[:, 16:80], f16(b, 80), f16(b, 82)
    scale = d * (scales & 15).astype(np.float32)  # [N, 16]
    minimum = dmin * (scales >> 4).astype(np.float32)
    values = crumbs(q.reshape(-1, 2, 32)).reshape(-1, 16, 16).astype(np.float32)
    return (scale[:, :, None] * values - minimum[:, :, None]).reshape(-1, 256)


def _q3_k_scales(packed: Bytes) -> FloatArray:
    """[N, 12] → [N, 16] in -32..31: 8 bytes hold the low four bits, 4 bytes the high two."""
    low = nibbles(packed[:, :8]).reshape(-1, 16)
    high = crumbs(packed[:, 8:]).reshape(-1, 16)
    return (low | (high << 4)).astype(np.float32) - 32


def _q3_k(b: Bytes) -> FloatArray:
    high_mask, q, packed, d = b[:, :32], b[:, 32:96], b[:, 96:108], f16(b, 108)
    scale = d * _q3_k_scales(packed)  # [N, 16]
    low = crumbs(q.reshape(-1, 2, 32)).reshape(-1, 8, 32)
    third = np.stack([(high_mask >> s) & 1 for s in range(8)], axis=1)  # [N, 8, 32]
    values = (low | (third << 2)).astype(np.float32).reshape(-1, 16, 16) - 4
    return (scale[:, :, None] * values).reshape(-1, 256)


def _k4_scales(packed: Bytes) -> tuple[FloatArray, FloatArray]:
    """Six-bit scales and minima of Q4_K and Q5_K, [N, 12] → two of [N, 8].

    The first four of each fill bits 0-5 of bytes 0-3 and 4-7. The last four have their low nibbles in bytes 8-11
    and their two high bits on top of the first four.
    """
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _scaled_k4(b: Bytes, values: Bytes) -> FloatArray:
    """values [N, 8, 32] with the header d, dmin, scales[12] that Q4_K and Q5_K share."""
    scales, minima = _k4_scales(b[:, 4:16])
    scale, minimum = f16(b, 0) * scales, f16(b, 2) * minima
    return (scale[:, :, None] * values.astype(np.float32) - minimum[:, :, None]).reshape(-1, 256)


def _q4_k(b: Bytes) -> FloatArray:
    return _scaled_k4(b, nibbles(b[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32))


def _q5_k(b: Bytes) -> FloatArray:
    low = nibbles(b[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    fifth = np.stack([(b[:, 16:48] >> s) & 1 for s in range(8)], axis=1)
    return _scaled_k4(b, low | (fifth << np.uint8(4)))


def _q6_k(b: Bytes) -> FloatArray:
    low, high, d = b[:, :128], b[:, 128:192], f16(b, 208)
    scale = d * b[:, 192:208].view(np.int8).astype(np.float32)  # [N, 16]
    # Within a half of 128 elements: 64 low nibbles, then 64 high ones; crumbs in four runs of 32.
    q = nibbles(low.reshape(-1, 2, 64)).reshape(-1, 256) | (crumbs(high.reshape(-1, 2, 32)).reshape(-1, 256) << 4)
    values = q.astype(np.float32).reshape(-1, 16, 16) - 32
    return (scale[:, :, None] * values).reshape(-1, 256)


def _iq4_xs(b: Bytes) -> FloatArray:
    low = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
    high = np.stack([(b[:, 2:4] >> s) & 3 for s in (0, 2, 4, 6)], axis=-1).reshape(-1, 8)
    scale: FloatArray = f16(b, 0) * ((low | (high << 4)).astype(np.float32) - 32)  # [N, 8]
    values = IQ4_VALUES[nibbles(b[:, 8:].reshape(-1, 8, 16)).reshape(-1, 8, 32)].astype(np.float32)
    return (scale[:, :, None] * values).reshape(-1, 256)


_DECODERS: dict[str, Callable[[Bytes], FloatArray]] = {
    "F32": _f32_block,
    "F16": _f16_block,
    "BF16": _bf16_block,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
    **grid_blocks.DECODERS,
}
