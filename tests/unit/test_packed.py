"""Bit layouts of quantized layers: what one weight's bits are, and that packing and unpacking are inverses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pagoda.errors import FormatError
from pagoda.formats.nf4 import DoubleQuantized, pack_nf4, unpack_nf4
from pagoda.formats.packed import (
    NF4_VALUES,
    GroupedWeight,
    even_groups,
    pack_awq,
    pack_compressed,
    pack_gptq,
    pack_int8,
    pack_words,
    unpack_awq,
    unpack_compressed,
    unpack_gptq,
    unpack_int8,
    unpack_words,
)

ROWS, COLUMNS, SIZE = 32, 96, 32
RNG = np.random.default_rng(7)


def weight(bits: int, *, shuffled: bool = False, columns: int = COLUMNS, size: int = SIZE) -> GroupedWeight:
    groups = even_groups(columns, size)
    num_groups = int(groups[-1]) + 1
    return GroupedWeight(
        bits=bits,
        codes=RNG.integers(0, 1 << bits, (ROWS, columns), np.uint8),
        scales=RNG.uniform(0.01, 0.1, (ROWS, num_groups)).astype(np.float16).astype(np.float32),
        zeros=RNG.integers(1, 1 << bits, (ROWS, num_groups), np.int32),
        groups=RNG.permutation(groups) if shuffled else groups,
    )


def same(a: GroupedWeight, b: GroupedWeight) -> None:
    for field in ("codes", "scales", "zeros", "groups"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), field)
    np.testing.assert_array_equal(a.dequantize(), b.dequantize())


def bits_of(words: np.ndarray, first: int, bits: int) -> int:
    """The number in bits [first, first + bits) of a row of words, as one long little-endian integer."""
    return int.from_bytes(np.ascontiguousarray(words).tobytes(), "little") >> first & ((1 << bits) - 1)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_words_are_a_dense_little_endian_stream(bits: int) -> None:
    codes = RNG.integers(0, 1 << bits, (64, 5))
    words = pack_words(codes, bits)
    assert words.shape == (2 * bits, 5)
    assert words.dtype == np.int32
    assert [bits_of(words[:, 3], i * bits, bits) for i in range(64)] == codes[:, 3].tolist()
    np.testing.assert_array_equal(unpack_words(words, bits), codes)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(bits: int, shuffled: bool, version: int) -> None:
    w = weight(bits, shuffled=shuffled)
    parts = pack_gptq(w, version=version)
    assert bits_of(parts["qweight"][:, 6], 40 * bits, bits) == w.codes[6, 40]
    stored = bits_of(parts["qzeros"][1], 6 * bits, bits)
    assert (stored + (version == 1)) % (1 << bits) == w.zeros[6, 1]
    same(unpack_gptq(parts, bits, version=version), w)
    if not shuffled:
        same(unpack_gptq({k: v for k, v in parts.items() if k != "g_idx"}, bits, version=version), w)


def test_a_zero_of_0_in_the_first_version_borrows_from_the_next() -> None:
    w = weight(4)
    w.zeros[:2, 0] = 0, 5
    parts = pack_gptq(w)
    assert parts["qzeros"][0, 0] & 0xFF == 0x50 - 0x11
    same(unpack_gptq(parts, 4), w)


def test_a_last_group_may_be_short() -> None:
    w = weight(4, columns=96, size=64)
    parts = pack_gptq(w)
    del parts["g_idx"]
    same(unpack_gptq(parts, 4, group_size=64), w)
    same(unpack_awq(pack_awq(w), group_size=64), w)


def test_awq() -> None:
    w = weight(4)
    parts = pack_awq(w)
    word = int(parts["qweight"].view(np.uint32)[40, 1])  # rows 8 … 15 of column 40
    assert [word >> 4 * i & 15 for i in range(8)] == w.codes[[8, 10, 12, 14, 9, 11, 13, 15], 40].tolist()
    same(unpack_awq(parts), w)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_compressed(bits: int, shuffled: bool, symmetric: bool) -> None:
    w = weight(bits, shuffled=shuffled)
    if symmetric:
        w.zeros[:] = 1 << (bits - 1)
    parts = pack_compressed(w, symmetric=symmetric)
    assert bits_of(parts["weight_packed"][6], 40 * bits, bits) == w.codes[6, 40]
    assert ("weight_zero_point" in parts, "weight_g_idx" in parts) == (not symmetric, shuffled)
    same(unpack_compressed(parts, bits), w)


def test_compressed_rows_need_not_be_whole_words() -> None:
    w = weight(4, columns=45, size=15)
    parts = pack_compressed(w, symmetric=False)
    assert parts["weight_packed"].shape == (ROWS, 6)
    same(unpack_compressed(parts, 4, group_size=15), w)


def test_int8() -> None:
    w = weight(8)
    parts = pack_int8(w)
    assert parts["weight"][3, 4] == int(w.codes[3, 4]) - 128
    same(unpack_int8(parts, group_size=SIZE), w)
    w.zeros[:] = 128
    assert "weight_zero_point" not in pack_int8(w)
    tensor_wide = {"weight": parts["weight"], "weight_scale": np.array([0.5], np.float32)}
    np.testing.assert_array_equal(unpack_int8(tensor_wide).dequantize(), 0.5 * parts["weight"].astype(np.float32))


@pytest.mark.parametrize("columns", [64, 96, 40])
@pytest.mark.parametrize("double", [False, True])
def test_nf4_scales_64_weights_in_row_major_order(double: bool, columns: int) -> None:
    codes = RNG.integers(0, 16, (ROWS, columns), np.uint8)
    num_blocks = -(-codes.size // 64)
    absmax: Any = RNG.uniform(0.5, 1, num_blocks).astype(np.float32)
    if double:
        values = np.linspace(-1, 1, 256, dtype=np.float32)
        eight_bits = RNG.integers(0, 256, num_blocks, np.uint8)
        absmax = DoubleQuantized(eight_bits, values, np.array([0.25], np.float32), 0.75)
    parts = pack_nf4(codes, absmax)
    assert parts[""][1, 0] == codes.flat[2] << 4 | codes.flat[3]
    w = unpack_nf4(parts)
    scales = absmax.dequantize() if double else absmax
    expected = NF4_VALUES[codes.reshape(-1)] * np.repeat(scales, 64)[: codes.size]
    np.testing.assert_array_equal(w.dequantize(), expected.reshape(codes.shape))
    if double:
        assert scales[0] == values[eight_bits[0]] * np.float32(0.25) + np.float32(0.75)


GPTQ, AWQ = pack_gptq(weight(4)), pack_awq(weight(4))
COMPRESSED, INT8 = pack_compressed(weight(4), symmetric=False), pack_int8(weight(8))
NF4 = pack_nf4(weight(4).codes, np.ones(ROWS * COLUMNS // 64, np.float32))


@pytest.mark.parametrize("part", ["qweight", "qzeros", "g_idx"])
def test_gptq_parts_must_fit(part: str) -> None:
    with pytest.raises(FormatError, match=r"layer 'x' has a (qweight|qzeros|g_idx) of shape"):
        unpack_gptq(GPTQ | {part: GPTQ[part][:-1]}, 4, name="x")


def test_group_sizes_must_fit_the_scales() -> None:
    for unpack in (
        lambda: unpack_gptq(GPTQ, 4, group_size=64, name="x"),
        lambda: unpack_awq(AWQ, group_size=64, name="x"),
        lambda: unpack_compressed(COMPRESSED, 4, group_size=64, name="x"),
        lambda: unpack_int8(INT8, group_size=64, name="x"),
    ):
        with pytest.raises(FormatError, match="layer 'x' has scales for 3 groups, but groups of 64 make 2 of 96"):
            unpack()
    with pytest.raises(FormatError, match="but one group make 1"):
        unpack_awq(AWQ, group_size=-1)


def test_columns_must_be_of_a_group_that_there_is() -> None:
    wrong = GPTQ | {"g_idx": GPTQ["g_idx"] + 1}
    with pytest.raises(FormatError, match="columns of groups up to 3, but 3 groups"):
        unpack_gptq(wrong, 4)


@pytest.mark.parametrize("part", ["weight_packed", "weight_zero_point", "weight_scale"])
def test_compressed_parts_must_fit(part: str) -> None:
    with pytest.raises(FormatError, match="layer 'x' has"):
        unpack_compressed(COMPRESSED | {part: COMPRESSED[part][:-1]}, 4, name="x")


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("", NF4[""][:-1], "does not fit 1535 bytes"),
        (".absmax", NF4[".absmax"][:-1], "48 blocks, but 47 scales"),
        (".absmax", NF4[".absmax"].astype(np.uint8), "impossible nested_blocksize None"),
        (".quant_state.bitsandbytes__nf4", np.frombuffer(b"{", np.uint8), "not JSON"),
        (".quant_state.bitsandbytes__nf4", np.frombuffer(b'{"shape": [-1, 2]}', np.uint8), "impossible shape"),
    ],
)
def test_nf4_parts_must_fit(part: str, value: np.ndarray, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        unpack_nf4(NF4 | {part: value}, name="x")
