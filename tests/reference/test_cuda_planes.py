"""Weights as the CUDA backend keeps them: the numbers of the file, bit for bit, in hardly more bytes."""

from __future__ import annotations

import numpy as np
import pytest

from cuda_cases import need_torch

need_torch()

import torch

from pagoda.backends.cuda.grouped_weights import from_grouped
from pagoda.backends.cuda.planes import PlaneWeight, dequantize, pack, stack
from pagoda.backends.cuda.unpack import KINDS
from pagoda.backends.cuda.weights import WeightLoader, compute_type
from pagoda.errors import UnsupportedError
from pagoda.formats import blocks
from pagoda.formats.mxfp4 import Mxfp4Tensor, unpack_matrix
from pagoda.formats.packed import NF4_VALUES, GroupedWeight, even_groups
from pagoda.types import RawTensor
from tiny_blocks import encode, noise

CPU = torch.device("cpu")


def raw(type: str, shape: tuple[int, int], name: str = "w") -> RawTensor:
    data = np.ascontiguousarray(encode(noise(name, shape), type, name)).view(np.uint8).reshape(-1)
    return RawTensor(name, type, shape, data)


def test_there_is_a_kind_for_every_block_type_that_is_written() -> None:
    packed = {type for type, block in blocks.BLOCK_TYPES.items() if block.elements > 1}
    assert set(KINDS) == packed - blocks.READ_ONLY | {"MXFP4"}


@pytest.mark.parametrize("type", sorted(blocks.READ_ONLY - {*KINDS}))
def test_other_types_are_decoded(type: str) -> None:
    tensor, loader = raw(type, (24, 512)), WeightLoader(torch.float32, CPU)
    assert loader.layout(tensor) == "floats"
    expected = blocks.dequantize(tensor.data, type, (24, 512))
    np.testing.assert_array_equal(loader.matrix(tensor).numpy(), expected)


@pytest.mark.parametrize("type", KINDS)
def test_planes_hold_the_numbers_of_the_file(type: str) -> None:
    shape = (24, 768)
    tensor = raw(type, shape)
    weight = WeightLoader(torch.float16, CPU).matrix(tensor)
    assert isinstance(weight, PlaneWeight)
    expected = blocks.dequantize(tensor.data, type, shape)
    np.testing.assert_array_equal(dequantize(weight).numpy(), expected)
    np.testing.assert_array_equal(dequantize(weight, torch.tensor([5, 0, 5])).numpy(), expected[[5, 0, 5]])
    assert weight.num_bytes <= 1.04 * tensor.num_bytes


def test_mxfp4_of_folders_is_that_of_gguf_files() -> None:
    blocks_of = np.random.default_rng(0).integers(0, 256, (24, 4, 16), dtype=np.uint8)
    scales = np.random.default_rng(1).integers(0, 240, (24, 4), dtype=np.uint8)
    parts = {
        "_blocks": RawTensor("b", "U8", blocks_of.shape, blocks_of),
        "_scales": RawTensor("s", "U8", scales.shape, scales),
    }
    tensor = Mxfp4Tensor("w", "MXFP4", (24, 128), blocks_of, parts=parts, unpacker=unpack_matrix)
    weight = WeightLoader(torch.float16, CPU).matrix(tensor)
    assert isinstance(weight, PlaneWeight)
    np.testing.assert_array_equal(dequantize(weight).numpy(), tensor.unpack().dequantize())
    assert weight.num_bytes == tensor.num_bytes


@pytest.mark.parametrize("type", ["Q4_1", "Q5_0", "Q8_0"])
def test_columns_that_are_no_whole_runs_are_padded(type: str) -> None:
    tensor = raw(type, (8, 96))
    weight = WeightLoader(torch.float16, CPU).matrix(tensor)
    np.testing.assert_array_equal(dequantize(weight).numpy(), blocks.dequantize(tensor.data, type, (8, 96)))


def test_stacked_weights_are_one_above_the_other() -> None:
    loader = WeightLoader(torch.float16, CPU)
    a, b, other = raw("Q4_K", (8, 256), "a"), raw("Q4_K", (16, 256), "b"), raw("Q6_K", (8, 256), "c")
    assert loader.layout(a) == loader.layout(b) != loader.layout(other)
    both = loader.matrix(a, b)
    parts = [blocks.dequantize(t.data, t.type, t.shape) for t in (a, b)]
    np.testing.assert_array_equal(dequantize(both).numpy(), np.concatenate(parts))
    assert loader.num_bytes == both.num_bytes
    assert stack([both]) is both


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["in order", "out of order", "symmetric", "one group"])
def test_layers_of_hugging_face_checkpoints(bits: int, kind: str) -> None:
    rng = np.random.default_rng(bits)
    rows, columns, size = 16, 256, 256 if kind == "one group" else 64
    groups = even_groups(columns, size)
    zeros = rng.integers(0, 1 << bits, (rows, columns // size), dtype=np.int32)
    weight = GroupedWeight(
        bits,
        rng.integers(0, 1 << bits, (rows, columns), dtype=np.uint8),
        rng.random((rows, columns // size), dtype=np.float32),
        np.full_like(zeros, 1 << (bits - 1)) if kind == "symmetric" else zeros,
        rng.permutation(groups) if kind == "out of order" else groups,
    )
    planes = from_grouped(weight, CPU)
    assert planes is not None
    assert (planes.order is not None) == (kind == "out of order")
    assert (planes.offsets is None) == (kind == "symmetric")
    np.testing.assert_allclose(dequantize(planes).numpy(), weight.dequantize(), atol=1e-4)


def test_nf4_is_a_codebook() -> None:
    rng = np.random.default_rng(0)
    weight = GroupedWeight(
        4,
        rng.integers(0, 16, (8, 128), dtype=np.uint8),
        rng.random((8, 2), dtype=np.float32),
        np.zeros((8, 2), np.int32),
        even_groups(128, 64),
        NF4_VALUES,
    )
    planes = from_grouped(weight, CPU)
    assert planes is not None
    np.testing.assert_allclose(dequantize(planes).numpy(), weight.dequantize(), rtol=1e-6)


def test_groups_of_different_sizes_are_left_to_decode() -> None:
    groups = np.array([0] * 40 + [1] * 88, np.int32)
    weight = GroupedWeight(
        4, np.zeros((4, 128), np.uint8), np.ones((4, 2), np.float32), np.zeros((4, 2), np.int32), groups
    )
    assert from_grouped(weight, CPU) is None


def test_what_is_computed_in() -> None:
    assert compute_type([raw("BF16", (4, 32)), raw("Q8_0", (2, 32), "b")]) == torch.bfloat16
    assert compute_type([raw("BF16", (1, 32)), raw("Q8_0", (2, 32), "b")]) == torch.float16
    assert compute_type([raw("F32", (4, 32))]) == torch.float32


def test_types_without_a_kernel_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="'w' has type 'Q4_2'"):
        WeightLoader(torch.float16, CPU).matrix(RawTensor("w", "Q4_2", (4, 256), np.zeros(9, np.uint8)))


def test_codes_use_every_bit_of_a_lane() -> None:
    """The sign bits of int16 and int32 lanes are codes too."""
    for type in ("Q4_0", "Q8_0"):
        block = blocks.BLOCK_TYPES[type]
        data = np.full((1, 4, block.bytes), 255, np.uint8)
        data[..., :2] = np.array([1.0], np.float16).view(np.uint8)
        weight = pack(KINDS[type].unpack(torch.from_numpy(data)), KINDS[type].scheme)
        expected = blocks.dequantize(data.reshape(-1), type, (1, 128))
        np.testing.assert_array_equal(dequantize(weight).numpy(), expected)


def test_groups_that_end_within_a_part_of_a_run_are_left_to_decode() -> None:
    weight = GroupedWeight(
        4, np.zeros((4, 96), np.uint8), np.ones((4, 2), np.float32), np.zeros((4, 2), np.int32), even_groups(96, 48)
    )
    assert from_grouped(weight, CPU) is None
