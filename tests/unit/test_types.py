"""Raw tensors: their rows, and parts of them, without a copy."""

from __future__ import annotations

import numpy as np
import pytest

from pagoda.formats.blocks import dequantize, tensor_bytes
from pagoda.types import RawTensor


def tensor(type: str, *shape: int) -> RawTensor:
    data = np.random.default_rng(0).integers(0, 60, tensor_bytes(type, shape), np.uint8)
    return RawTensor("w", type, shape, data)


@pytest.mark.parametrize(("type", "row_bytes"), [("F32", 256), ("BF16", 128), ("Q4_0", 36), ("Q8_0", 68)])
def test_rows_are_what_the_last_dimension_takes(type: str, row_bytes: int) -> None:
    assert tensor(type, 6, 64).rows().shape == (6, row_bytes)
    assert tensor(type, 3, 2, 64).rows().shape == (6, row_bytes)
    assert tensor(type, 64).rows().shape == (1, row_bytes)


@pytest.mark.parametrize("type", ["F32", "F16", "Q4_0"])
def test_a_part_is_a_view_of_those_rows(type: str) -> None:
    whole = tensor(type, 6, 64)
    part = whole.part(2, 5)
    expected = dequantize(whole.data, type, (6, 64))[2:5]
    np.testing.assert_array_equal(dequantize(part.data, type, part.shape), expected)
    assert np.shares_memory(part.data, whole.data)
    assert (part.name, part.shape, part.part_of) == ("w[2:5]", (3, 64), "w")


def test_parts_of_vectors_and_of_parts() -> None:
    vector = RawTensor("b", "F32", (6,), np.arange(6, dtype=np.float32).view(np.uint8))
    assert vector.part(1, 4).data.view(np.float32).tolist() == [1, 2, 3]
    again = tensor("F32", 6, 64).part(2, 6).part(1, 2)
    assert (again.name, again.part_of) == ("w[2:6][1:2]", "w")


def test_matrices_of_a_stack() -> None:
    stack = tensor("Q4_0", 3, 2, 64)
    second = stack.matrix(1)
    np.testing.assert_array_equal(second.rows(), stack.rows()[2:4])
    assert (second.name, second.shape, second.part_of) == ("w[1]", (2, 64), "w")
