"""Decoders of the formats of one to three bits: ternary ones, and those that take weights from the points of a grid.

    ternary, 256 elements         value
      TQ1_0  d, five trits a byte   d * (trit - 1)
      TQ2_0  d, four trits a byte   d * (trit - 1)
    eight weights a point of a grid, 256 elements in groups of 32 or 16 that have scales of their own
      IQ1_S    8 x 32   d * (2 s3 + 1) * (point ± 1/8)      one sign for 32
      IQ1_M   16 x 16   d * (2 s3 + 1) * (point ± 1/8)      one sign for 8
      IQ2_XXS  8 x 32   d * (s4 + 1/2) / 4 * ± point        seven signs of eight are stored: their number is even
      IQ2_XS  16 x 16   d * (s4 + 1/2) / 4 * ± point        the same
      IQ2_S   16 x 16   d * (s4 + 1/2) / 4 * ± point
    four weights a point
      IQ3_XXS  8 x 32   d * (s4 + 1/2) / 2 * ± point        seven signs of eight
      IQ3_S    8 x 32   d * (2 s4 + 1) * ± point

The grids are the native extension's (csrc/grids.cpp), as numbers of coordinates, whose values are here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

from pagoda import _native
from pagoda.formats.block_parts import Bytes, crumbs, f16, words
from pagoda.types import FloatArray

Ints = npt.NDArray[np.int64]

IQ1_VALUES = (-1, 0, 1)
IQ2_VALUES = (8, 25, 43)
IQ3_XXS_VALUES = (4, 12, 20, 28, 36, 44, 52, 62)
IQ3_S_VALUES = (1, 3, 5, 7, 9, 11, 13, 15)


@cache
def _grid(name: str, values: tuple[int, ...]) -> FloatArray:
    """[points, weights]"""
    bits, weights = (2, 8) if len(values) == 3 else (3, 4)
    points = np.array(_native.grid(name))[:, None] >> (bits * np.arange(weights)) & (2**bits - 1)
    return np.asarray(np.array([*values, 0])[points], np.float32)


def _signs(bits: Ints) -> FloatArray:
    """[...] numbers of eight bits → [..., 8] of 1 and, where a bit is set, -1"""
    return np.asarray(1 - 2 * (bits[..., None] >> np.arange(8) & 1), np.float32)


def _even_signs(seven: Ints) -> FloatArray:
    """The same of seven bits, and an eighth that makes their sum even."""
    parity = sum(seven >> i & 1 for i in range(7)) & 1
    return _signs(seven | parity << 7)


def _nibbles_in_turn(b: Bytes) -> Ints:
    """[N, n] bytes → [N, 2 n]: low and high nibble of each."""
    return np.stack([b & 15, b >> 4], axis=-1).reshape(len(b), -1).astype(np.int64)


def _fields(word: Ints, bits: int, count: int) -> Ints:
    """[...] → [..., count] fields of `bits` bits, the lowest first"""
    return np.asarray(word[..., None] >> (bits * np.arange(count)) & (2**bits - 1), np.int64)


def _scaled(scale: FloatArray, values: FloatArray) -> FloatArray:
    """scale [N, groups], values [N, …] of 256 elements in order. → [N, 256]"""
    return np.asarray(scale[:, :, None] * values.reshape(*scale.shape, -1), np.float32).reshape(len(scale), 256)


def _tq1_0(b: Bytes) -> FloatArray:
    powers = np.array([1, 3, 9, 27, 81], np.uint8)[:, None]
    parts = (b[:, None, :32] * powers, b[:, None, 32:48] * powers, b[:, None, 48:52] * powers[:4])
    digits = np.concatenate([part.reshape(len(b), -1) for part in parts], axis=1)
    codes: FloatArray = ((digits.astype(np.int32) * 3 >> 8) - 1).astype(np.float32)
    return f16(b, 52) * codes


def _tq2_0(b: Bytes) -> FloatArray:
    codes = crumbs(b[:, :64].reshape(-1, 2, 32)).reshape(-1, 256).astype(np.float32)
    return f16(b, 64) * (codes - 1)


def _iq1(scale: FloatArray, points: Ints, minus: npt.NDArray[np.bool_]) -> FloatArray:
    """scale [N, groups]; points [N, 32], of the grid; minus, of the same shape: whether an eighth is taken off."""
    values = _grid("IQ1", IQ1_VALUES)[points] + np.where(minus, np.float32(-0.125), np.float32(0.125))[..., None]
    return _scaled(scale, values)


def _iq1_s(b: Bytes) -> FloatArray:
    high = words(b[:, 34:50], "<u2")  # [N, 8]
    points = b[:, 2:34] | _fields(high, 3, 4).reshape(-1, 32) << 8
    scale = f16(b, 0) * (2 * (high >> 12 & 7) + 1).astype(np.float32)
    return _iq1(scale, points, np.repeat(high >> 15 == 1, 4, axis=1))


def _iq1_m(b: Bytes) -> FloatArray:
    scales = words(b[:, 48:56], "<u2")  # [N, 4], each with a nibble of d on top
    d = ((scales >> 12) << np.array([0, 4, 8, 12])).sum(axis=1).astype("<u2").view("<f2").astype(np.float32)
    high = _nibbles_in_turn(b[:, 32:48])  # [N, 32]
    scale = d[:, None] * (2 * _fields(scales, 3, 4).reshape(-1, 16) + 1).astype(np.float32)
    return _iq1(scale, b[:, :32] | (high & 7) << 8, high >> 3 == 1)


def _half_more(scales: Ints) -> FloatArray:
    return scales.astype(np.float32) + np.float32(0.5)


def _iq2_xxs(b: Bytes) -> FloatArray:
    rest = words(b[:, 2:66], "<u4")[:, 1::2]  # [N, 8]
    points = b[:, 2:66].reshape(-1, 8, 8)[:, :, :4]
    scale = f16(b, 0) * _half_more(rest >> 28) * np.float32(0.25)
    return _scaled(scale, _grid("IQ2_XXS", IQ2_VALUES)[points] * _even_signs(_fields(rest, 7, 4)))


def _iq2_xs(b: Bytes) -> FloatArray:
    points = words(b[:, 2:66], "<u2")  # [N, 32]
    scale = f16(b, 0) * _half_more(_nibbles_in_turn(b[:, 66:74])) * np.float32(0.25)
    return _scaled(scale, _grid("IQ2_XS", IQ2_VALUES)[points & 511] * _even_signs(points >> 9))


def _iq2_s(b: Bytes) -> FloatArray:
    high = _fields(b[:, 66:74].astype(np.int64), 2, 4).reshape(-1, 32)
    scale = f16(b, 0) * _half_more(_nibbles_in_turn(b[:, 74:82])) * np.float32(0.25)
    grid = _grid("IQ2_S", IQ2_VALUES)[b[:, 2:34] | high << 8]
    return _scaled(scale, grid * _signs(b[:, 34:66].astype(np.int64)))


def _iq3_xxs(b: Bytes) -> FloatArray:
    rest = words(b[:, 66:98], "<u4")  # [N, 8]
    scale = f16(b, 0) * _half_more(rest >> 28) * np.float32(0.5)
    values = _grid("IQ3_XXS", IQ3_XXS_VALUES)[b[:, 2:66]].reshape(-1, 8, 4, 8)
    return _scaled(scale, values * _even_signs(_fields(rest, 7, 4)))


def _iq3_s(b: Bytes) -> FloatArray:
    high = _fields(b[:, 66:74].astype(np.int64), 1, 8).reshape(-1, 64)
    scale = f16(b, 0) * (2 * _nibbles_in_turn(b[:, 106:110]) + 1).astype(np.float32)
    values = _grid("IQ3_S", IQ3_S_VALUES)[b[:, 2:66] | high << 8].reshape(-1, 32, 8)
    return _scaled(scale, values * _signs(b[:, 74:106].astype(np.int64)))


DECODERS: dict[str, Callable[[Bytes], FloatArray]] = {
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
}
