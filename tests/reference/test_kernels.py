"""Matrix kernels of every block format and instruction set against numpy on decoded weights.

Activations become 16-bit codes with a scale for each token, or bytes with one for 32 columns (csrc/kernels.h). Errors
are judged against what that rounding must cost: a step's uniform error is step / sqrt(12), and errors are independent.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pagoda import _native
from pagoda.formats.blocks import BLOCK_TYPES, dequantize
from pagoda.types import FloatArray
from tiny_blocks import RANDOM_BLOCKS, encode, noise

ISAS = _native.available_isas()
FLOAT_TYPES = ("F32", "F16", "BF16")
LARGEST_CODE = 127 * 256
LARGEST_FACTOR = 16383

TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 33)
ROWS = 37  # two panels of 16 and a part of one
COLUMNS = (256, 768, 1536, 2304)  # for every type; unpacking goes by stretches of 512 (AVX2) or 1024
LEGACY_COLUMNS = (32, 64, 576, 1056)
FLOAT_COLUMNS = (1, 31, 100)


def columns_of(type: str) -> tuple[int, ...]:
    elements = BLOCK_TYPES[type].elements
    if elements == 256:
        return COLUMNS
    return COLUMNS + LEGACY_COLUMNS + (FLOAT_COLUMNS if elements == 1 else ())


CASES = [(type, columns) for type in BLOCK_TYPES for columns in columns_of(type)]
each_isa = pytest.mark.parametrize("isa", ISAS)
each_type = pytest.mark.parametrize("type", BLOCK_TYPES)
each_case = pytest.mark.parametrize(("type", "columns"), CASES)


@functools.cache
def runtime(isa: str, bits: int = 16) -> _native.Runtime:
    return _native.Runtime(1, isa, bits)


@functools.cache
def blocks_of(type: str, columns: int, rows: int = ROWS) -> np.ndarray:
    """A weight of standard deviation 1 as bytes."""
    name = f"weight {columns}"
    return as_bytes(encode(noise(name, (rows, columns)), type, name))


def as_bytes(data: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(data).view(np.uint8).reshape(-1)


def matmul(isa: str, type: str, data: np.ndarray, x: FloatArray, rows: int = ROWS, bits: int = 16) -> FloatArray:
    weight = runtime(isa, bits).pack(data, type, rows, x.shape[1])
    out = np.full((len(x), rows), np.nan, np.float32)
    runtime(isa, bits).matmul(weight, np.ascontiguousarray(x), out)
    return out


def activations(columns: int, tokens: int = 33) -> FloatArray:
    """Every third token has outliers: one value in 40 is twenty times as large."""
    x = noise(f"activations {columns}", (tokens, columns)).copy()
    outliers = noise(f"outliers {columns}", (tokens, columns)) > 1.65
    outliers[np.arange(tokens) % 3 != 1] = False
    x[outliers] *= 20
    return x


def steps(x: FloatArray) -> Any:
    """The step in which a token's activations are rounded. [T, K] → [T, 1]"""
    return np.abs(x).max(axis=-1, keepdims=True).astype(np.float64) / LARGEST_CODE


def byte_steps(x: FloatArray) -> Any:
    """The same of bytes: each 32 columns have their own. [T, K] → [T, K]"""
    largest = np.abs(x.reshape(len(x), -1, 32)).max(axis=-1, keepdims=True).astype(np.float64)
    unit = largest.max(axis=1, keepdims=True) / LARGEST_FACTOR
    factors = np.ceil(largest / np.where(unit > 0, unit, 1))
    return np.broadcast_to(factors * unit / 127, (len(x), x.shape[1] // 32, 32)).reshape(x.shape)


def expected_and_sigma(type: str, data: np.ndarray, x: FloatArray, bits: int = 16) -> tuple[Any, Any]:
    """x @ weight.T in float64, and the standard deviation of the kernels' rounding error. Two of [T, rows]."""
    rows = data.size // row_bytes(type, x.shape[1])
    weight = dequantize(data, type, (rows, x.shape[1])).astype(np.float64)
    exact = x.astype(np.float64) @ weight.T
    float_error = 2e-7 * np.sqrt(x.shape[1]) * np.sqrt(np.square(x, dtype=np.float64) @ np.square(weight.T))
    if type in FLOAT_TYPES:
        return exact, float_error
    if bits == 8:
        rounding = np.sqrt(np.square(byte_steps(x)) @ np.square(weight.T) / 12)
    else:
        rounding = steps(x) * np.sqrt(np.square(weight).sum(axis=1) / 12)
    return exact, rounding + float_error


def row_bytes(type: str, columns: int) -> int:
    return columns // BLOCK_TYPES[type].elements * BLOCK_TYPES[type].bytes


@each_isa
@each_case
def test_products_err_by_the_rounding_of_activations_and_no_more(type: str, columns: int, isa: str) -> None:
    x, data = activations(columns), blocks_of(type, columns)
    expected, sigma = expected_and_sigma(type, data, x)
    for tokens in (1, 33):
        errors = (matmul(isa, type, data, x[:tokens]) - expected[:tokens]) / sigma[:tokens]
        assert np.abs(errors).max() < 6
    assert np.sqrt(np.square(errors).mean()) < 1.15


@each_isa
@each_case
def test_in_bytes_products_err_by_the_rounding_of_bytes(type: str, columns: int, isa: str) -> None:
    """Where an instruction set is no faster in bytes it stays with 16 bits, and errs less."""
    x, data = activations(columns), blocks_of(type, columns)
    expected, sigma = expected_and_sigma(type, data, x, bits=8)
    together = matmul(isa, type, data, x, bits=8)
    errors = (together - expected) / sigma
    assert np.abs(errors).max() < 6
    assert np.sqrt(np.square(errors).mean()) < 1.15
    for tokens in TOKENS:
        np.testing.assert_array_equal(matmul(isa, type, data, x[:tokens], bits=8), together[:tokens])


def as_bfloat16(x: FloatArray) -> FloatArray:
    """Rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@each_isa
@pytest.mark.parametrize("columns", COLUMNS + FLOAT_COLUMNS)
@pytest.mark.parametrize("type", ["F16", "BF16"])
def test_bfloat16_products_are_those_of_rounded_numbers(type: str, columns: int, isa: str) -> None:
    """Where the instructions are missing, products stay those of float32."""
    asked = _native.Runtime(1, isa, 16, bf16_products=True)
    x, data = activations(columns, 150), blocks_of(type, columns)
    weight = dequantize(data, type, (ROWS, columns))
    packed, out = asked.pack(data, type, ROWS, columns), np.full((len(x), ROWS), np.nan, np.float32)
    asked.matmul(packed, x, out)
    plain = matmul(isa, type, data, x)
    if np.array_equal(out, plain):
        assert isa != "avx512" or "avx512_bf16" not in Path("/proc/cpuinfo").read_text()
        return
    rounded_x, rounded_weight = as_bfloat16(x).astype(np.float64), as_bfloat16(weight).astype(np.float64)
    most = 1e-6 * np.sqrt(columns) * np.sqrt(np.square(rounded_x) @ np.square(rounded_weight.T)) + 1e-30
    assert (np.abs(out - rounded_x @ rounded_weight.T) <= 6 * most).all()
    for tokens in TOKENS:
        few = np.full((tokens, ROWS), np.nan, np.float32)
        asked.matmul(packed, np.ascontiguousarray(x[:tokens]), few)
        np.testing.assert_array_equal(few, out[:tokens])


@each_isa
def test_bytes_are_taken_where_they_are_asked_for(isa: str) -> None:
    x, data = activations(1536), blocks_of("Q4_0", 1536)
    expected, sigma = expected_and_sigma("Q4_0", data, x)
    errors = (matmul(isa, "Q4_0", data, x, bits=8) - expected) / sigma
    assert np.sqrt(np.square(errors).mean()) > 5
    with pytest.raises(ValueError, match="8 or 16 bits"):
        _native.Runtime(1, isa, 4)


def test_eight_bits_would_show() -> None:
    """The bound of the test for 16 bits is meant to notice: codes of a byte err far more."""
    x, data = activations(1536), blocks_of("Q8_0", 1536)
    scale = np.abs(x.reshape(33, -1, 32)).max(axis=-1, keepdims=True) / 127
    rough = (np.round(x.reshape(33, -1, 32) / scale) * scale).reshape(x.shape).astype(np.float32)
    (expected, sigma), (got, _) = expected_and_sigma("Q8_0", data, x), expected_and_sigma("Q8_0", data, rough)
    assert np.sqrt(np.square((got - expected) / sigma).mean()) > 5


@each_isa
@each_case
def test_a_token_has_the_same_bits_whoever_stands_beside_it(type: str, columns: int, isa: str) -> None:
    x, data = activations(columns), blocks_of(type, columns)
    together = matmul(isa, type, data, x)
    for tokens in TOKENS:
        np.testing.assert_array_equal(matmul(isa, type, data, x[:tokens]), together[:tokens])
        np.testing.assert_array_equal(matmul(isa, type, data, x[33 - tokens :][::-1]), together[33 - tokens :][::-1])
    loud = x * np.where(np.arange(33) == 5, 1, 1e4).astype(np.float32)[:, None]
    np.testing.assert_array_equal(matmul(isa, type, data, loud)[5], together[5])


@each_isa
@each_type
def test_a_row_has_the_same_bits_in_any_weight(type: str, isa: str) -> None:
    """Rows of 1, 15, 16, 17 and 48: the last panel's padding takes no part."""
    x, data = activations(768, 9), blocks_of(type, 768, 48).reshape(48, -1)
    whole = matmul(isa, type, data.reshape(-1), x, 48)
    for rows in (1, 15, 16, 17):
        got = matmul(isa, type, np.ascontiguousarray(data[48 - rows :]).reshape(-1), x, rows)
        np.testing.assert_array_equal(got, whole[:, 48 - rows :])


@each_isa
@each_type
def test_zeros(type: str, isa: str) -> None:
    x, data = activations(256, 9), blocks_of(type, 256)
    x[4] = 0
    x[6, :128] = 0  # whole blocks
    out = matmul(isa, type, data, x)
    assert not out[4].any()
    expected, sigma = expected_and_sigma(type, data, x)
    assert (np.abs(out[6] - expected[6]) < 6 * sigma[6]).all()
    if type not in ("Q4_0", "Q5_0", "Q3_K", "Q6_K", "IQ4_NL", "IQ4_XS"):  # where a zeroed block holds zeros
        assert not matmul(isa, type, np.zeros_like(data), x).any()


@each_isa
@each_type
@pytest.mark.parametrize("factor", [1e-20, 1e-9, 1e9, 1e20])
def test_small_and_large_activations_scale(type: str, factor: float, isa: str) -> None:
    scaled, data = activations(512, 9) * np.float32(factor), blocks_of(type, 512)
    expected, sigma = expected_and_sigma(type, data, scaled)
    assert (np.abs(matmul(isa, type, data, scaled) - expected) < 6 * sigma).all()


# Codes at their extremes: activations of one magnitude are exact, and so then is the whole product.

SCALES_AT = {type: tuple(scales) for type, (_, _, scales, _) in RANDOM_BLOCKS.items() if scales} | {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "TQ1_0": (52,), "TQ2_0": (64,),
}  # fmt: skip


def filled(type: str, byte: int, columns: int, rows: int = ROWS) -> np.ndarray:
    """Blocks whose every byte is `byte`, but for f16 scales of 1, 2 …"""
    blocks = np.full((rows * columns // BLOCK_TYPES[type].elements, BLOCK_TYPES[type].bytes), byte, np.uint8)
    for i, at in enumerate(SCALES_AT[type]):
        blocks[:, at : at + 2] = np.array([i + 1], "<f2").view(np.uint8)
    return blocks.reshape(-1)


@each_isa
@pytest.mark.parametrize("type", SCALES_AT)
@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0x81, 0x88, 0xF0, 0x0F, 0xFF])
def test_extreme_codes_times_extreme_activations_are_exact(type: str, byte: int, isa: str) -> None:
    """Sums of 16 bits would overflow here if anywhere; integers this small are exact in float32."""
    signs = np.ones((4, 512), np.float32)
    signs[1], signs[2, ::2], signs[3, 1::2] = -1, -1, -1
    x = np.concatenate([signs, signs, signs])  # 12 tokens: the path for many, too
    data = filled(type, byte, 512)
    expected = x.astype(np.float64) @ dequantize(data, type, (ROWS, 512)).astype(np.float64).T
    magnitude = np.abs(dequantize(data, type, (ROWS, 512)).astype(np.float64)).sum(axis=1)
    for tokens in (1, 4, 12):
        error = np.abs(matmul(isa, type, data, x[:tokens]) - expected[:tokens])
        assert (error <= 2e-6 * magnitude + 1e-30).all()


@each_isa
def test_q8_0_with_a_code_of_minus_128_beside_every_other(isa: str) -> None:
    """ggml never writes -128, but a file may hold it, and its magnitude fits in no int8."""
    codes = np.resize(np.arange(-128, 128, dtype=np.int8), (ROWS, 256))
    blocks = np.zeros((ROWS, 8, 34), np.uint8)
    blocks[..., :2] = np.array([1.0], "<f2").view(np.uint8)
    blocks[..., 2:] = codes.view(np.uint8).reshape(ROWS, 8, 32)
    x = np.where(np.arange(9 * 256).reshape(9, 256) % 3, 127.0, -127.0).astype(np.float32)
    expected = x.astype(np.float64) @ codes.T.astype(np.float64)
    np.testing.assert_allclose(matmul(isa, "Q8_0", blocks.reshape(-1), x), expected, rtol=1e-6)


@each_isa
@each_type
def test_what_is_not_finite_stays_in_its_token(type: str, isa: str) -> None:
    x, data = activations(256, 9), blocks_of(type, 256)
    clean = matmul(isa, type, data, x)
    for bad in (np.nan, np.inf, -np.inf, 3e38):
        dirty = x.copy()
        dirty[3, 7] = bad
        out = matmul(isa, type, data, dirty)
        np.testing.assert_array_equal(np.delete(out, 3, axis=0), np.delete(clean, 3, axis=0))
        assert bad == 3e38 or np.isnan(out[3]).all() or type in FLOAT_TYPES


# Decoding


def random_bytes(type: str, columns: int, rows: int = 8) -> np.ndarray:
    """Any bits at all: infinite and nan scales as well."""
    size = rows * row_bytes(type, columns)
    return np.random.default_rng(BLOCK_TYPES[type].id).integers(0, 256, size, dtype=np.uint8)


@each_type
def test_native_decoding_equals_numpy_bit_for_bit(type: str) -> None:
    for data in (blocks_of(type, 512, 8), random_bytes(type, 512)):
        out = np.empty((8, 512), np.float32)
        _native.dequantize(data, type, 512, out)
        expected = dequantize(data, type, (8, 512))
        np.testing.assert_array_equal(out, expected)  # nan equals nan
        assert np.array_equal(np.signbit(out) | np.isnan(out), np.signbit(expected) | np.isnan(expected))


def test_all_half_floats_decode_alike() -> None:
    """Subnormal, infinite and nan halves included."""
    data = np.arange(1 << 16, dtype="<u2").view(np.uint8)
    for type in ("F16", "BF16"):
        out = np.empty((256, 256), np.float32)
        _native.dequantize(data, type, 256, out)
        np.testing.assert_array_equal(out, dequantize(data, type, (256, 256)))


@each_isa
@pytest.mark.parametrize("type", ["F16", "BF16", "F32"])
def test_float_weights_of_every_size_meet_ones(type: str, isa: str) -> None:
    """A column of one: the product is the weight itself, subnormal or not."""
    bits = np.arange(0, 1 << 16, 7, dtype="<u2")
    data = (bits.astype("<u4") << 16 if type == "F32" else bits).view(np.uint8)
    values = dequantize(data, type, (len(bits), 1))[:, 0]
    with np.errstate(invalid="ignore"):
        expected = values * 1.0
    out = matmul(isa, type, data, np.ones((1, 1), np.float32), len(bits))
    np.testing.assert_array_equal(out[0], expected)


# Refusals


@pytest.mark.parametrize(
    ("type", "rows", "columns", "size"),
    [
        ("Q4_0", 4, 64, 4 * 36 - 1),
        ("Q4_0", 4, 64, 4 * 36 + 18),
        ("Q4_0", 4, 48, 4 * 27),
        ("Q4_K", 4, 128, 4 * 72),
        ("F32", 0, 64, 0),
        ("F32", 4, 0, 0),
        ("F32", -4, 16, 256),
        ("I8", 4, 16, 64),
        ("", 4, 16, 64),
    ],
)
def test_pack_refuses_shapes_that_are_none(type: str, rows: int, columns: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"columns|rows|long|type"):
        runtime(ISAS[0]).pack(np.zeros(size, np.uint8), type, rows, columns)


@pytest.mark.parametrize(
    ("x", "out"), [((2, 63), (2, 4)), ((2, 64), (2, 5)), ((2, 64), (3, 4)), ((4097, 64), (4097, 4))]
)
def test_matmul_refuses_shapes_that_do_not_match(x: tuple[int, int], out: tuple[int, int]) -> None:
    weight = runtime(ISAS[0]).pack(blocks_of("Q8_0", 64, 4), "Q8_0", 4, 64)
    with pytest.raises(ValueError, match="shapes"):
        runtime(ISAS[0]).matmul(weight, np.zeros(x, np.float32), np.zeros(out, np.float32))


def test_an_unknown_isa_or_no_thread_is_refused() -> None:
    with pytest.raises(ValueError, match="'sse9'"):
        _native.Runtime(1, "sse9")
    with pytest.raises(ValueError, match="thread"):
        _native.Runtime(0)


def test_generic_kernels_are_in_every_build() -> None:
    assert ISAS[-1] == "generic"
