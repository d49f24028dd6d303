"""Encoders of block formats: the bytes of the `gguf` package where it writes a type, else no larger error than that of
llama.cpp's encoders on the same numbers; and the same bytes on every instruction set and number of threads."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from pagoda import _native
from pagoda.formats.blocks import BLOCK_TYPES, READ_ONLY, dequantize
from pagoda.types import FloatArray
from tiny_blocks import noise

WRITTEN = [type for type in BLOCK_TYPES if type not in READ_ONLY]
PLAIN = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")

# Of ggml_quantize_chunk on `bell(64, 2048)`: root mean square error without importance; with `importance(2048)`, the
# root of the mean of importance times squared error.
LLAMA_CPP = {
    "Q4_0": (1.6350e-03, 2.2882e-03),
    "Q4_1": (1.5122e-03, 1.8916e-03),
    "Q5_0": (8.0914e-04, 1.1255e-03),
    "Q5_1": (7.3077e-04, 9.1387e-04),
    "Q2_K": (5.7503e-03, 6.9219e-03),
    "Q3_K": (2.9207e-03, 3.9949e-03),
    "Q4_K": (1.3766e-03, 1.9222e-03),
    "Q5_K": (6.9556e-04, 9.8280e-04),
    "Q6_K": (3.4120e-04, 4.7968e-04),
    "IQ4_NL": (1.4766e-03, 2.1227e-03),
    "IQ4_XS": (1.4875e-03, 2.1463e-03),
}


def bell(rows: int, columns: int) -> FloatArray:
    """Numbers of a bell curve, some columns larger than others: sums of four uniform ones."""
    parts = [noise(f"bell {i}", (rows, columns)) for i in range(4)]
    return np.ascontiguousarray(sum(parts) * 0.01, dtype=np.float32)


def importance(columns: int) -> FloatArray:
    """Positive, over four orders of magnitude."""
    return np.exp(1.5 * noise("importance", (columns,))).astype(np.float32)


def encode(
    x: FloatArray, type: str, weights: FloatArray | None = None, threads: int = 1, isa: str | None = None
) -> np.ndarray:
    block = BLOCK_TYPES[type]
    out = np.empty((len(x), x.shape[1] // block.elements * block.bytes), np.uint8)
    assert _native.quantize(np.ascontiguousarray(x), type, out, weights, threads, isa) == -1
    return out


def error(data: np.ndarray, type: str, x: FloatArray, weights: FloatArray | None = None) -> float:
    squares = np.square(dequantize(data, type, x.shape).astype(np.float64) - x)
    return float(np.sqrt((squares if weights is None else squares * weights).mean()))


@pytest.mark.parametrize("type", [*PLAIN, "F16", "BF16", "F32"])
def test_plain_types_are_the_reference_packages_to_the_byte(type: str) -> None:
    x = bell(37, 576)
    x[5, 32:64] = 0.0  # a block of zeros
    x[5, 96:128] = np.abs(x[5, 96:128])
    x[5, 98] = -0.0
    x[6, :32] = 0.25  # of one number
    x[7, 3] = -x[7].max() * 2  # an outlier
    x[8, :32] = np.linspace(-1, 1, 32)  # two largest of both signs
    x[9, :32] = np.arange(-16, 16) / 8  # ties between codes
    expected = gguf.quants.quantize(x, gguf.GGMLQuantizationType[type]).view(np.uint8).reshape(len(x), -1)
    np.testing.assert_array_equal(encode(x, type), expected)


@pytest.mark.parametrize("type", LLAMA_CPP)
def test_error_is_no_larger_than_llama_cpps(type: str) -> None:
    x, weights = bell(64, 2048), importance(2048)
    plain, weighted = LLAMA_CPP[type]
    assert error(encode(x, type), type, x) <= plain * 1.0001
    assert error(encode(x, type, weights), type, x, weights) <= weighted * 1.0001


@pytest.mark.parametrize("type", WRITTEN)
@pytest.mark.parametrize("weights", [None, importance(768)], ids=["plain", "importance"])
def test_same_bytes_on_every_instruction_set_and_number_of_threads(type: str, weights: FloatArray | None) -> None:
    x = bell(131, 768)  # rows that no number of lanes divides
    expected = encode(x, type, weights, isa="generic")
    for isa in _native.available_isas():
        np.testing.assert_array_equal(encode(x, type, weights, isa=isa), expected)
    np.testing.assert_array_equal(encode(x, type, weights, threads=3), expected)
    np.testing.assert_array_equal(encode(x[7:8], type, weights), expected[7:8])


@pytest.mark.parametrize("type", WRITTEN)
@pytest.mark.parametrize("fill", [0.0, 1.0, -1.0, 1e-38, -6e4, 6e4])
def test_constant_rows_come_back(type: str, fill: float) -> None:
    x = np.full((2, 256), fill, np.float32)
    x[1, ::2] = 0.0
    decoded = dequantize(encode(x, type), type, x.shape)
    np.testing.assert_allclose(decoded, x, rtol=0.07, atol=max(0.02 * abs(fill), 1e-7))  # IQ4's levels have no 0


@pytest.mark.parametrize("type", ["Q4_K", "Q8_0", "F16", "IQ4_NL"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 7e4])
def test_numbers_that_no_block_can_hold_are_found(type: str, bad: float) -> None:
    x = bell(40, 512)
    x[33, 100] = bad
    out = np.empty((40, 512 // BLOCK_TYPES[type].elements * BLOCK_TYPES[type].bytes), np.uint8)
    assert _native.quantize(x, type, out, None, 2) == 33 * 512 + 100


def test_columns_without_importance_cost_nothing() -> None:
    """Half of the columns do not count: the other half is as good as if it were alone in its group."""
    x = bell(16, 512)
    weights = np.tile(np.array([1.0, 0.0], np.float32), 256)
    free = error(encode(x, "Q4_K", weights), "Q4_K", x, weights)
    assert free < 0.9 * error(encode(x, "Q4_K"), "Q4_K", x, weights)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, out = bell(2, 320), np.empty((2, 180), np.uint8)
    with pytest.raises(ValueError, match="shapes"):
        _native.quantize(x, "Q4_K", out)
    with pytest.raises(ValueError, match="column"):
        _native.quantize(x, "Q4_0", out, np.ones(32, np.float32))
