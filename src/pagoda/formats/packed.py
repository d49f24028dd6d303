"""Bit layouts of quantized linear layers in safetensors checkpoints, and one form that all of them unpack to.

Every layout stands for the same thing, `GroupedWeight`: a code a weight, a scale and a zero a group of columns.

    GPTQ   AutoGPTQ, GPTQModel        AWQ   AutoAWQ, version "gemm"       R output rows, C input columns, G groups
      qweight  int32 [C·b/32, R]        qweight  int32 [C, R/8]           codes: along C, or along R in AWQ_ORDER
      qzeros   int32 [G, R·b/32]        qzeros   int32 [G, R/8]           zeros along R, as the codes; see below
      scales   f16   [G, R]             scales   f16   [G, R]
      g_idx    int32 [C]                                                  each column's group
    compressed-tensors
      pack-quantized                    int-quantized
      weight_packed      int32 [R, C·b/32]  weight             int8 [R, C]    signed; packed: 2^(b-1) is added
      weight_scale       [R, G]             weight_scale       [R, G]
      weight_zero_point  int32 [R·b/32, G]  weight_zero_point  int8 [R, G]    signed; absent: zero
      weight_g_idx       int32 [C], absent: groups in order
    bitsandbytes, 4 bits: weight uint8 [R·C/2, 1], two codes a byte, the first one high; a scale (absmax) for each 64
      of the weights in row-major order, itself 8-bit codes for each 256 where quantization is double.

Words are dense little-endian bit streams: 3-bit codes run over into the next word. GPTQ's first version of the format
stores zeros less one, the second ("gptq_v2") as they are. A zero of 0 does not fit the first: GPTQModel takes the ones
off whole words, so that they borrow, and adds them back alike, as is done here; other readers get it wrong.

Sources: AutoGPTQ's `qlinear_cuda_old.py`, GPTQModel's `gptqmodel/nn_modules/qlinear`, AutoAWQ's
`awq/modules/linear/gemm.py`, compressed-tensors' `pack_quantized`, bitsandbytes' `functional.QuantState`.

Each `unpack_…` raises FormatError where shapes do not fit each other; `name` is the layer's, for messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

from pagoda.errors import FormatError
from pagoda.types import FloatArray

Codes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int32]
Arrays = Mapping[str, npt.NDArray[Any]]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight rows each nibble of a word holds, from the lowest

# QLoRA's NormalFloat: 16 quantiles of the normal distribution, as bitsandbytes rounds them.
NF4_VALUES = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    dtype=np.float32,
)


@dataclass(frozen=True, slots=True, eq=False)
class GroupedWeight:
    """w[r, c] = scales[r, g] * (codes[r, c] - zeros[r, g]) with g = groups[c], in float32.

    With a codebook, [2^bits], w = scales * codebook[codes], and zeros are not looked at.
    """

    bits: int
    codes: Codes  # [R, C], below 2^bits
    scales: FloatArray  # [R, G]
    zeros: Ints  # [R, G]
    groups: Ints  # [C]
    codebook: FloatArray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    def dequantize(self) -> FloatArray:
        """→ [R, C]"""
        scales = self.scales[:, self.groups]
        if self.codebook is not None:
            return scales * self.codebook[self.codes]
        return scales * (self.codes - self.zeros[:, self.groups]).astype(np.float32)

    @classmethod
    def join(cls, weights: Sequence[GroupedWeight]) -> GroupedWeight:
        """Weights whose columns are grouped alike, one below the other."""
        first = weights[0]
        assert all(np.array_equal(weight.groups, first.groups) for weight in weights)
        codes, scales, zeros = (
            np.concatenate([getattr(weight, part) for weight in weights]) for part in ("codes", "scales", "zeros")
        )
        return replace(first, codes=codes, scales=scales, zeros=zeros)

    def pick(self, rows: npt.NDArray[np.integer]) -> GroupedWeight:
        """Its rows of these numbers."""
        return replace(self, codes=self.codes[rows], scales=self.scales[rows], zeros=self.zeros[rows])

    def cut(self, rows: slice, columns: slice) -> GroupedWeight:
        """Some of its rows and columns."""
        codes, groups = self.codes[rows, columns], self.groups[columns]
        return replace(self, codes=codes, scales=self.scales[rows], zeros=self.zeros[rows], groups=groups)


def even_groups(columns: int, size: int) -> Ints:
    """Column → group, where each `size` columns in order share one (-1: all). → [columns]"""
    return (np.arange(columns) // (size if size > 0 else columns)).astype(np.int32)


# Words


def pack_words(codes: npt.NDArray[Any], bits: int) -> Ints:
    """[N, M] codes → [N * bits / 32, M] words, a dense stream along the first axis. N * bits a multiple of 32."""
    period, words = 32 // gcd(32, bits), bits // gcd(32, bits)
    stream = codes.reshape(-1, period, codes.shape[1]).astype(np.uint32)
    out = np.zeros((stream.shape[0], words, codes.shape[1]), np.uint32)
    for i in range(period):
        word, at = divmod(i * bits, 32)
        out[:, word] |= stream[:, i] << np.uint32(at)
        if at + bits > 32:
            out[:, word + 1] |= stream[:, i] >> np.uint32(32 - at)
    return out.reshape(-1, codes.shape[1]).view(np.int32)


def unpack_words(packed: npt.NDArray[Any], bits: int) -> Codes:
    """The inverse: [W, M] words → [W * 32 / bits, M] codes."""
    period, words = 32 // gcd(32, bits), bits // gcd(32, bits)
    stream = np.ascontiguousarray(packed).view(np.uint32).reshape(-1, words, packed.shape[1])
    out = np.empty((stream.shape[0], period, packed.shape[1]), np.uint8)
    mask = np.uint32((1 << bits) - 1)
    for i in range(period):
        word, at = divmod(i * bits, 32)
        code = stream[:, word] >> np.uint32(at)
        if at + bits > 32:
            code = code | stream[:, word + 1] << np.uint32(32 - at)
        out[:, i] = code & mask
    return out.reshape(-1, packed.shape[1])


# GPTQ


def pack_gptq(weight: GroupedWeight, *, version: int = 1) -> dict[str, npt.NDArray[Any]]:
    """→ qweight, qzeros, scales, g_idx. C * bits and R * bits must be multiples of 32."""
    qzeros = pack_words(weight.zeros, weight.bits)  # [R * bits / 32, G]
    if version == 1:
        qzeros = _plus_ones(qzeros, weight.bits, -1)
    return {
        "qweight": pack_words(weight.codes.T, weight.bits),
        "qzeros": np.ascontiguousarray(qzeros.T),
        "scales": np.ascontiguousarray(weight.scales.T, np.float16),
        "g_idx": weight.groups.astype(np.int32),
    }


def unpack_gptq(
    parts: Arrays, bits: int, *, group_size: int | None = None, version: int = 1, name: str = ""
) -> GroupedWeight:
    """From qweight, qzeros, scales and, where the layer has one, g_idx. `group_size` is what the settings say."""
    num_groups, rows = parts["scales"].shape
    columns = parts["qweight"].shape[0] * 32 // bits
    _check(name, "qweight", parts["qweight"], (columns * bits // 32, rows))
    _check(name, "qzeros", parts["qzeros"], (num_groups, rows * bits // 32))
    groups = _groups(name, columns, num_groups, group_size, parts.get("g_idx"))
    qzeros = parts["qzeros"].T if version > 1 else _plus_ones(parts["qzeros"].T, bits, 1)
    return GroupedWeight(
        bits=bits,
        codes=np.ascontiguousarray(unpack_words(parts["qweight"], bits).T),
        scales=np.ascontiguousarray(parts["scales"].T, np.float32),
        zeros=unpack_words(qzeros, bits).astype(np.int32),
        groups=groups,
    )


def _plus_ones(words: npt.NDArray[Any], bits: int, sign: int) -> Ints:
    """One more (or less) in each code, with carries up to the end of a word; in 3 bits each by itself."""
    if 32 % bits:
        return pack_words(unpack_words(words, bits).astype(np.int32) + sign & ((1 << bits) - 1), bits)
    ones = np.uint32(0xFFFFFFFF // ((1 << bits) - 1))
    unsigned = np.ascontiguousarray(words).view(np.uint32)
    return (unsigned + ones if sign > 0 else unsigned - ones).view(np.int32)


# AWQ


def pack_awq(weight: GroupedWeight) -> dict[str, npt.NDArray[Any]]:
    """→ qweight, qzeros, scales of a 4-bit weight whose groups are in order. R must be a multiple of 8."""
    return {
        "qweight": _pack_awq_rows(weight.codes),
        "qzeros": _pack_awq_rows(weight.zeros),
        "scales": np.ascontiguousarray(weight.scales.T, np.float16),
    }


def unpack_awq(parts: Arrays, *, group_size: int | None = None, name: str = "") -> GroupedWeight:
    """From qweight, qzeros (absent: 8 everywhere) and scales; 4 bits."""
    num_groups, rows = parts["scales"].shape
    columns = parts["qweight"].shape[0]
    _check(name, "qweight", parts["qweight"], (columns, rows // 8))
    zeros: npt.NDArray[np.int32] = np.full((rows, num_groups), 8, np.int32)
    if "qzeros" in parts:
        _check(name, "qzeros", parts["qzeros"], (num_groups, rows // 8))
        zeros = _unpack_awq_rows(parts["qzeros"]).astype(np.int32)
    return GroupedWeight(
        bits=4,
        codes=_unpack_awq_rows(parts["qweight"]),
        scales=np.ascontiguousarray(parts["scales"].T, np.float32),
        zeros=zeros,
        groups=_groups(name, columns, num_groups, group_size),
    )


def _pack_awq_rows(codes: npt.NDArray[Any]) -> Ints:
    """[R, N] → words [N, R / 8]"""
    ordered = codes.reshape(-1, 8, codes.shape[1])[:, AWQ_ORDER]
    return np.ascontiguousarray(pack_words(ordered.reshape(codes.shape), 4).T)


def _unpack_awq_rows(words: npt.NDArray[Any]) -> Codes:
    """words [N, R / 8] → [R, N]"""
    codes = unpack_words(words.T, 4).reshape(-1, 8, words.shape[0])
    return np.ascontiguousarray(codes[:, np.argsort(AWQ_ORDER)]).reshape(-1, words.shape[0])


# compressed-tensors


def pack_compressed(weight: GroupedWeight, *, symmetric: bool) -> dict[str, npt.NDArray[Any]]:
    """→ weight_packed, weight_scale, weight_shape, unless symmetric weight_zero_point; g_idx where out of order."""
    rows, columns = weight.shape
    size = int(np.count_nonzero(weight.groups == 0))
    parts: dict[str, npt.NDArray[Any]] = {
        "weight_packed": np.ascontiguousarray(_pack_padded(weight.codes.T, weight.bits).T),
        "weight_scale": weight.scales.astype(np.float16),
        "weight_shape": np.array([rows, columns], np.int64),
    }
    if not symmetric:
        parts["weight_zero_point"] = _pack_padded(weight.zeros, weight.bits)
    if not np.array_equal(weight.groups, even_groups(columns, size)):
        parts["weight_g_idx"] = weight.groups.astype(np.int32)
    return parts


def unpack_compressed(parts: Arrays, bits: int, *, group_size: int | None = None, name: str = "") -> GroupedWeight:
    """From weight_packed, weight_scale, weight_shape; weight_zero_point and weight_g_idx where there are any."""
    rows, columns = (int(size) for size in parts["weight_shape"].reshape(-1)[:2])
    scales = _scales_of_rows(name, parts["weight_scale"], rows)
    num_groups = scales.shape[1]
    _check(name, "weight_packed", parts["weight_packed"], (rows, -(-columns * bits // 32)))
    zeros: npt.NDArray[np.int32] = np.full((rows, num_groups), 1 << (bits - 1), np.int32)
    if "weight_zero_point" in parts:
        _check(name, "weight_zero_point", parts["weight_zero_point"], (-(-rows * bits // 32), num_groups))
        zeros = _unpack_padded(parts["weight_zero_point"], bits, rows).astype(np.int32)
    codes = _unpack_padded(parts["weight_packed"].T, bits, columns)
    groups = _groups(name, columns, num_groups, group_size, parts.get("weight_g_idx"))
    return GroupedWeight(bits, np.ascontiguousarray(codes.T), scales, zeros, groups)


def pack_int8(weight: GroupedWeight) -> dict[str, npt.NDArray[Any]]:
    """→ weight, weight_scale, and weight_zero_point where any zero is not 128. Eight bits."""
    parts: dict[str, npt.NDArray[Any]] = {
        "weight": (weight.codes ^ 128).view(np.int8),
        "weight_scale": weight.scales.astype(np.float32),
    }
    if (weight.zeros != 128).any():
        parts["weight_zero_point"] = (weight.zeros - 128).astype(np.int8)
    return parts


def unpack_int8(parts: Arrays, *, group_size: int | None = None, name: str = "") -> GroupedWeight:
    """From weight, weight_scale and, where there is one, weight_zero_point."""
    weight = np.ascontiguousarray(parts["weight"])
    rows, columns = weight.shape
    scales = _scales_of_rows(name, parts["weight_scale"], rows)
    zeros = np.full(scales.shape, 128, np.int32)
    if "weight_zero_point" in parts:
        zeros += _scales_of_rows(name, parts["weight_zero_point"], rows).astype(np.int32)
    groups = _groups(name, columns, scales.shape[1], group_size)
    return GroupedWeight(8, weight.view(np.uint8) ^ np.uint8(128), scales, zeros, groups)


def _scales_of_rows(name: str, scales: npt.NDArray[Any], rows: int) -> FloatArray:
    """[R, G], [R] or one for the whole tensor → [R, G]"""
    if scales.size == 1:
        scales = np.broadcast_to(scales.reshape(1, 1), (rows, 1))
    scales = scales.reshape(scales.shape[0], -1)
    if scales.shape[0] != rows or not scales.shape[1]:
        raise FormatError(f"layer {name!r} has {rows} rows, but scales or zeros of shape {scales.shape}")
    return np.ascontiguousarray(scales, np.float32)


def _pack_padded(codes: npt.NDArray[Any], bits: int) -> Ints:
    """`pack_words` for any N: the last word is filled up with zeros."""
    words = pack_words(np.pad(codes, ((0, -codes.shape[0] % 32), (0, 0))), bits)
    return words[: -(-codes.shape[0] * bits // 32)]


def _unpack_padded(words: npt.NDArray[Any], bits: int, count: int) -> Codes:
    """`unpack_words` of what `_pack_padded` made of [count, M]."""
    return unpack_words(np.pad(words, ((0, -words.shape[0] % (bits // gcd(32, bits))), (0, 0))), bits)[:count]


# Checks


def _check(name: str, part: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise FormatError(f"layer {name!r} has a {part} of shape {array.shape}, but its other parts say {shape}")


def _groups(
    name: str, columns: int, num_groups: int, group_size: int | None, stored: npt.NDArray[Any] | None = None
) -> Ints:
    """Each column's group: as stored, or in order; a group size has to give as many groups as there are scales."""
    if group_size is None:
        group_size = -(-columns // num_groups)
    expected = -(-columns // group_size) if group_size > 0 else 1
    if num_groups != expected:
        of = f"groups of {group_size}" if group_size > 0 else "one group"
        raise FormatError(f"layer {name!r} has scales for {num_groups} groups, but {of} make {expected} of {columns}")
    if stored is None:
        return even_groups(columns, group_size)
    _check(name, "g_idx", stored, (columns,))
    if not 0 <= int(stored.min()) <= int(stored.max()) < num_groups:
        raise FormatError(f"layer {name!r} has columns of groups up to {stored.max()}, but {num_groups} groups")
    return np.ascontiguousarray(stored, np.int32)
