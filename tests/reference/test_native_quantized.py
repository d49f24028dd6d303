"""Quantized layers on the CPU backend: products of grouped panels against numpy, whole models against the reference."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paged_run import PagedRun, reference_run
from pagoda import _native
from pagoda.backends.cpu import CpuBackend
from pagoda.backends.grouped import integer_codebook, pack, panel_groups
from pagoda.errors import UnsupportedError
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.formats.packed import NF4_VALUES, even_groups
from pagoda.formats.quant_methods import fold
from pagoda.formats.quantized import QuantizedTensor, as_floats
from pagoda.models.registry import load_model
from pagoda.types import FloatArray, RawTensor
from quantized_models import KINDS, ST_NAMES, quantized_arrays, rounded, write_folder, write_quantized
from tiny_blocks import noise
from tiny_models import TINY, VOCAB, hf_config

ISAS = _native.available_isas()
ROWS, COLUMNS = 37, 1088  # two panels and a part of one; more than one stretch of unpacking
LLAMA, SMOLLM2 = TINY["llama"], TINY["smollm2"]


@functools.cache
def runtime(isa: str) -> _native.Runtime:
    return _native.Runtime(1, isa)


def as_tensor(values: FloatArray, bits: int, size: int, *, symmetric: bool = False, ordered: bool = False) -> RawTensor:
    order = np.random.default_rng(3).permutation(values.shape[1]) if ordered else None
    weight = rounded(values, bits, size, symmetric=symmetric, order=order)
    parts = {".g_idx": RawTensor("g", "I32", weight.groups.shape, weight.groups.view(np.uint8))}
    return QuantizedTensor("w", "test", weight.shape, weight.codes, parts, lambda p: weight, ".g_idx")


WEIGHTS = {
    "4": {"bits": 4, "size": 32},
    "4-sym": {"bits": 4, "size": 128, "symmetric": True},
    "4-rows": {"bits": 4, "size": -1},
    "4-ordered": {"bits": 4, "size": 64, "ordered": True},
    "3": {"bits": 3, "size": 96},
    "2-sym": {"bits": 2, "size": 64, "symmetric": True},
    "8": {"bits": 8, "size": 64},
    "8-sym": {"bits": 8, "size": -1, "symmetric": True},
    "6": {"bits": 6, "size": 32},
    "codebook": {"bits": 4, "size": 64, "symmetric": True},
}


def made(kind: str) -> QuantizedTensor:
    tensor = as_tensor(noise("grouped", (ROWS, COLUMNS)), **WEIGHTS[kind])
    assert isinstance(tensor, QuantizedTensor)
    if kind == "codebook":
        weight = replace(tensor.unpack(), codebook=NF4_VALUES)
        tensor = replace(tensor, unpacker=lambda parts: weight)
    return tensor


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_products(kind: str, isa: str) -> None:
    """They err by the rounding of activations; alone or among others alike."""
    tensor, x = made(kind), noise("x", (33, COLUMNS))
    weight, order = pack(runtime(isa), tensor), tensor.column_order()
    ordered = x if order is None else np.ascontiguousarray(x[:, order])
    out = np.empty((33, ROWS), np.float32)
    runtime(isa).matmul(weight, ordered, out)
    expected = x.astype(np.float64) @ as_floats(tensor).T.astype(np.float64)
    error = np.linalg.norm(out - expected) / np.linalg.norm(expected)
    assert error < 0.002
    alone = np.empty((1, ROWS), np.float32)
    for t in (0, 7, 32):
        runtime(isa).matmul(weight, ordered[t : t + 1], alone)
        np.testing.assert_array_equal(alone[0], out[t])


def test_scales_take_no_more_room_than_groups_need() -> None:
    """Bytes a weight of whole panels: codes, a float32 scale a group and, where zeros differ, a minimum."""
    values = noise("room", (512, 1024))
    for size, symmetric, bits in ((128, True, 4.25), (128, False, 4.5), (64, False, 5), (-1, True, 4 + 32 / 1024)):
        tensor = as_tensor(values, 4, size, symmetric=symmetric)
        assert isinstance(tensor, QuantizedTensor)
        assert pack(runtime(ISAS[0]), tensor).bytes * 8 / values.size == pytest.approx(bits, rel=0.02)


def test_groups_become_runs_of_blocks() -> None:
    def shared(columns: int, size: int) -> tuple[list[int], int]:
        groups, shift = panel_groups("w", even_groups(columns, size))
        return groups.tolist(), shift

    assert shared(256, 128) == ([0, 1], 2)
    assert shared(576, 128) == ([0, 1, 2, 3, 4], 2)  # the last one is short
    assert shared(288, 96) == ([0, 0, 0, 1, 1, 1, 2, 2, 2], 0)
    assert shared(1088, -1) == ([0], 6)
    for columns, size in ((96, 48), (100, 50), (64, 16)):
        with pytest.raises(UnsupportedError, match=r"tensor .w. has .* quantize the model again with groups of 32"):
            shared(columns, size)


def test_nf4_values_as_integers_lose_little() -> None:
    grid, unit = integer_codebook(NF4_VALUES)
    assert grid[7] == 0
    assert np.abs(grid * unit - NF4_VALUES).max() < 0.0003
    exact, unit = integer_codebook(np.arange(-8, 8, dtype=np.float32))
    np.testing.assert_allclose(exact * unit, np.arange(-8, 8), atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("kind", "most"), [("fp8-blocks", 1e-6), ("fp8-rows", 1e-6), ("nvfp4", 1e-4), ("nvfp4-modelopt", 1e-4)]
)
def test_products_of_codes_that_are_floats(kind: str, most: float, isa: str) -> None:
    """Activations meet FP8 as floats, and FP4 in 16 bits: its codes and scales are exact."""
    values, x = noise("grouped", (ROWS, COLUMNS)), noise("x", (33, COLUMNS))
    parts = {"w" + part: array for part, array in KINDS[kind].pack(KINDS[kind].quantize("w", values)).items()}
    raws = {name: raw_of(name, array) for name, array in parts.items()}
    tensor = fold(raws, KINDS[kind].config)["w.weight"]
    assert isinstance(tensor, QuantizedTensor)
    weight, out = pack(runtime(isa), tensor), np.empty((33, ROWS), np.float32)
    runtime(isa).matmul(weight, x, out)
    expected = x.astype(np.float64) @ as_floats(tensor).T.astype(np.float64)
    assert np.linalg.norm(out - expected) < most * np.linalg.norm(expected)
    alone = np.empty((1, ROWS), np.float32)
    for t in (0, 7, 32):
        runtime(isa).matmul(weight, x[t : t + 1], alone)
        np.testing.assert_array_equal(alone[0], out[t])


def raw_of(name: str, array: np.ndarray) -> RawTensor:
    return RawTensor(name, ST_NAMES[array.dtype], array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8))


# Models

TOKENS = [(37 * i + 11) % VOCAB for i in range(40)]


def native_run(folder: Path, threads: int = 2) -> PagedRun:
    with open_checkpoint(folder) as checkpoint:
        model = load_model(checkpoint)
        loaded = CpuBackend(threads=threads).load(model, max_batch_tokens=64, max_batch_seqs=64, kv_type="f32")
        return PagedRun(model, loaded)


@pytest.mark.parametrize("kind", KINDS)
def test_models_agree_with_the_reference(kind: str, tmp_path: Path) -> None:
    folder = write_quantized(tmp_path, LLAMA, kind)
    with open_checkpoint(folder) as checkpoint:
        expected = reference_run(load_model(checkpoint)).step({"a": TOKENS})["a"]
    run = native_run(folder)
    together = run.step({"a": TOKENS})["a"]
    cosine = (together * expected).sum(1) / np.linalg.norm(together, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.999
    chunks = run.step({"b": TOKENS[:17], "c": TOKENS[5:12]})["b"], run.step({"b": TOKENS[17:]})["b"]
    np.testing.assert_array_equal(np.concatenate(chunks), together)


def test_act_order_may_differ_between_layers_that_read_the_same(tmp_path: Path) -> None:
    """q, k and v in one stage need one order; where they have three, each gets its own."""
    arrays = quantized_arrays(SMOLLM2, KINDS["gptq-act-order"])
    for name, own in (("k_proj", 1), ("v_proj", 2), ("up_proj", 3)):
        for key in [key for key in arrays if key.endswith(f"{name}.g_idx")]:
            arrays[key] = np.random.default_rng(own).permutation(arrays[key])
    config = {**hf_config(SMOLLM2), "quantization_config": KINDS["gptq-act-order"].config}
    folder = write_folder(tmp_path, config, arrays)
    with open_checkpoint(folder) as checkpoint:
        expected = reference_run(load_model(checkpoint)).step({"a": TOKENS})["a"]
    logits = native_run(folder).step({"a": TOKENS})["a"]
    assert np.linalg.norm(logits - expected) < 0.02 * np.linalg.norm(expected)
