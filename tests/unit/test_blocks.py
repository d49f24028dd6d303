"""Block decoders on blocks made by hand, and what they refuse."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from pagoda.errors import FormatError, UnsupportedError
from pagoda.formats.blocks import BLOCK_TYPES, IQ4_VALUES, dequantize, tensor_bytes


def f16(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}e", *values)


def decode(type: str, block: bytes) -> list[float]:
    block_type = BLOCK_TYPES[type]
    return dequantize(np.frombuffer(block, np.uint8), type, (block_type.elements,)).tolist()


def test_plain_types() -> None:
    numbers = [0.0, 1.5, -2.0, 3.0e5]
    assert dequantize(np.array(numbers, "<f4").view(np.uint8), "F32", (2, 2)).tolist() == [numbers[:2], numbers[2:]]
    assert dequantize(np.array([0.5, -4], "<f2").view(np.uint8), "F16", (2,)).tolist() == [0.5, -4]
    assert dequantize(np.array([0x3F80, 0xC000], "<u2").view(np.uint8), "BF16", (2,)).tolist() == [1, -2]


def test_q4_0_low_nibbles_come_first() -> None:
    # Byte i holds element i in its low nibble and element i + 16 in its high one.
    assert decode("Q4_0", f16(2) + bytes(i | (15 - i) << 4 for i in range(16))) == [
        2.0 * (q - 8) for q in [*range(16), *range(15, -1, -1)]
    ]


def test_q4_1_adds_the_minimum() -> None:
    assert decode("Q4_1", f16(0.5, -3) + bytes([0xF0]) * 16) == [-3.0] * 16 + [4.5] * 16


def test_q5_fifth_bits() -> None:
    fifth = struct.pack("<I", 1 << 0 | 1 << 31)
    values = [0.0] * 32
    values[0] = values[31] = 16.0
    assert decode("Q5_1", f16(1, 0) + fifth + bytes(16)) == values
    assert decode("Q5_0", f16(1) + fifth + bytes(16)) == [v - 16 for v in values]


def test_q8_0_is_signed() -> None:
    assert decode("Q8_0", f16(0.25) + struct.pack("<32b", *range(-16, 16))) == [0.25 * q for q in range(-16, 16)]


def test_iq4_nl_levels() -> None:
    block = f16(1) + bytes(i | i << 4 for i in range(16))
    assert decode("IQ4_NL", block) == [*IQ4_VALUES.tolist()] * 2


def test_q2_k_groups_of_16() -> None:
    # All quants 3; group g has scale g and minimum 15 - g.
    block = bytes(g | (15 - g) << 4 for g in range(16)) + b"\xff" * 64 + f16(1, 2)
    assert decode("Q2_K", block) == [3.0 * g - 2 * (15 - g) for g in range(16) for _ in range(16)]


def test_q3_k_high_bit_and_scales() -> None:
    # High bits set in element groups of 32 with even index only; quants 0; every scale 33 - 32 = 1.
    scales = b"\x11" * 8 + b"\xaa" * 4
    block = b"\x55" * 32 + bytes(64) + scales + f16(1)
    assert decode("Q3_K", block) == [0.0 if g % 2 == 0 else -4.0 for g in range(8) for _ in range(32)]


def k4_header(d: float, dmin: float, scales: list[int], minima: list[int]) -> bytes:
    """Pack 8 six-bit scales and minima by setting bits one at a time, straight from the format's description."""
    packed = bytearray(12)
    for j in range(4):
        packed[j] = scales[j] | (scales[j + 4] >> 4) << 6
        packed[j + 4] = minima[j] | (minima[j + 4] >> 4) << 6
        packed[j + 8] = (scales[j + 4] & 15) | (minima[j + 4] & 15) << 4
    return f16(d, dmin) + bytes(packed)


def test_q4_k_and_q5_k_scales() -> None:
    scales, minima = [1, 17, 33, 63, 5, 20, 41, 62], [0, 63, 2, 31, 16, 47, 9, 50]
    header = k4_header(1, 0.5, scales, minima)
    q4 = header + bytes([0x21]) * 128  # even groups 1, odd groups 2
    expected = [s * (1 + g % 2) - 0.5 * m for g, (s, m) in enumerate(zip(scales, minima, strict=True))]
    assert decode("Q4_K", q4) == [v for v in expected for _ in range(32)]
    q5 = header + b"\x80" * 32 + bytes([0x21]) * 128  # fifth bit in the last group
    expected[7] += 16 * scales[7]
    assert decode("Q5_K", q5) == [v for v in expected for _ in range(32)]


def test_q6_k_places_bits() -> None:
    ql, qh = bytearray(128), bytearray(64)
    ql[64 + 33] = 0xA0  # second half, high nibbles, second run of 32: element 128 + 64 + 33
    qh[32 + 1] = 0b10 << 6
    block = bytes(ql) + bytes(qh) + struct.pack("<16b", *range(-8, 8)) + f16(0.5)
    expected = [0.5 * (g - 8) * -32 for g in range(16) for _ in range(16)]
    expected[225] = 0.5 * (225 // 16 - 8) * (0x2A - 32)
    assert decode("Q6_K", block) == expected


def test_iq4_xs_scales() -> None:
    # Group 3: low bits in the high nibble of byte 1, high bits at bit 6 of the 16-bit field.
    block = f16(1) + struct.pack("<H", 0b11 << 6) + bytes([0, 0x50, 0, 0]) + bytes([0x88]) * 128
    expected = [-32.0] * 256
    expected[96:128] = [float(0x35 - 32)] * 32
    assert decode("IQ4_XS", block) == expected


def test_mxfp4_places_and_powers() -> None:
    # Byte j holds element j in its low nibble and element j + 16 in its high one; 128 stands for 2 to the 0.
    values = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]
    codes = bytes(i | (15 - i) << 4 for i in range(16))
    assert decode("MXFP4", bytes([128]) + codes) == [*values, *values[::-1]]
    for exponent in (0, 1, 2, 100, 250):
        assert decode("MXFP4", bytes([exponent]) + b"\x01" * 16)[0] == 2.0 ** (exponent - 128)


def test_tq2_0_is_ternary() -> None:
    assert (
        decode("TQ2_0", bytes([0b11_10_01_00]) * 64 + f16(0.5))
        == ([-0.5] * 32 + [0.0] * 32 + [0.5] * 32 + [1.0] * 32) * 2
    )


def test_tensor_bytes() -> None:
    assert tensor_bytes("Q4_K", (3, 512)) == 3 * 2 * 144
    assert tensor_bytes("F32", ()) == 4
    assert tensor_bytes("F32", (0, 7)) == 0
    with pytest.raises(FormatError, match="does not divide a row of 100"):
        tensor_bytes("Q4_0", (32, 100))


def test_refuses_wrong_sizes_and_types() -> None:
    with pytest.raises(FormatError, match=r"takes 36 bytes, not 35"):
        dequantize(np.zeros(35, np.uint8), "Q4_0", (2, 32))
    with pytest.raises(UnsupportedError, match="'Q9_9' is not supported"):
        dequantize(np.zeros(36, np.uint8), "Q9_9", (2, 32))


def test_infinite_scales_do_not_warn() -> None:
    assert np.isnan(decode("Q8_0", f16(float("inf")) + bytes(32))).all()
