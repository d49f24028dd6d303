"""NVFP4 of GGUF files: what its blocks stand for, its factors, and models that hold it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from paged_run import PagedRun, reference_run, run_steps
from pagoda.backends.cpu import CpuBackend
from pagoda.errors import FormatError
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.formats.nvfp4_blocks import Nvfp4Blocks, fold
from pagoda.formats.quantized import as_floats
from pagoda.models.registry import load_model
from pagoda.types import RawTensor
from tiny_models import TINY, memory_checkpoint, raw

TYPE = gguf.GGMLQuantizationType.NVFP4
FACTOR = 0.37


def blocks(name: str, *shape: int) -> RawTensor:
    """A tensor of random codes, with scales of 2^-6 to 2^-4."""
    rng = np.random.default_rng(len(name) + math.prod(shape))
    packed = rng.integers(0, 256, (math.prod(shape) // 64, 36), np.uint8)
    packed[:, :4] = rng.integers(8, 24, (len(packed), 4))
    return RawTensor(name, "NVFP4", shape, packed.reshape(-1))


def decoded(tensor: RawTensor) -> np.ndarray:
    """By gguf."""
    return gguf.quants.dequantize(tensor.data.reshape(*tensor.shape[:-1], -1), TYPE)


def factors(name: str, *values: float) -> RawTensor:
    return raw(name, np.array(values, np.float32))


@pytest.mark.parametrize("columns", [64, 192])
def test_blocks_are_what_gguf_decodes(columns: int) -> None:
    tensor = blocks("w.weight", 10, columns)
    (held,) = fold({"w.weight": tensor}).values()
    assert isinstance(held, Nvfp4Blocks)
    np.testing.assert_array_equal(as_floats(held), decoded(tensor))
    np.testing.assert_array_equal(as_floats(held.part(3, 7)), decoded(tensor)[3:7])


def test_any_bytes_are_what_gguf_decodes() -> None:
    """Scales of every byte but those with a sign, which is not looked at."""
    data = np.random.default_rng(0).integers(0, 256, (32, 36), np.uint8)
    data[:, :4] = np.arange(128, dtype=np.uint8).reshape(32, 4)
    tensor = RawTensor("w.weight", "NVFP4", (32, 64), data.reshape(-1))
    np.testing.assert_array_equal(as_floats(fold({"w.weight": tensor})["w.weight"]), decoded(tensor))


def test_a_factor_counts_and_an_input_scale_does_not() -> None:
    tensor = blocks("w.weight", 4, 64)
    tensors = {"w.weight": tensor, "w.scale": factors("w.scale", FACTOR), "w.input_scale": factors("w.i", 9.0)}
    folded = fold(tensors)
    assert list(folded) == ["w.weight"]
    np.testing.assert_allclose(as_floats(folded["w.weight"]), decoded(tensor) * np.float32(FACTOR), rtol=1e-6)


def test_experts_of_a_stack_have_a_factor_each() -> None:
    tensor, by = blocks("w.weight", 3, 4, 64), (0.5, 2.0, 7.0)
    stack = fold({"w.weight": tensor, "w.scale": factors("w.scale", *by)})["w.weight"]
    for i, factor in enumerate(by):
        np.testing.assert_allclose(as_floats(stack.matrix(i)), decoded(tensor)[i] * factor, rtol=1e-6)


@pytest.mark.parametrize("wrong", [factors("w.scale", 1.0, 2.0), replace(factors("w.scale", 1.0), type="F16")])
def test_factors_of_another_shape_or_type_are_refused(wrong: RawTensor) -> None:
    with pytest.raises(FormatError, match=r"'w\.weight' has factors of shape"):
        fold({"w.weight": blocks("w.weight", 4, 64), "w.scale": wrong})


def test_a_model_computes_with_what_its_blocks_stand_for() -> None:
    """Beside the same model with the decoded numbers, in float32."""
    spec = TINY["llama_256"]
    whole = memory_checkpoint(spec, kind="gguf")
    matrices = [name for name in whole.tensors if name.startswith("blk.") and "norm" not in name]
    packed = {name: blocks(name, *whole.tensors[name].shape) for name in matrices}
    by = {name.replace(".weight", ".scale"): factors(name, FACTOR) for name in matrices}
    held = load_model(replace(whole, tensors=fold({**whole.tensors, **packed, **by})))
    plain = {name: raw(name, decoded(tensor) * np.float32(FACTOR)) for name, tensor in packed.items()}
    expected = run_steps(reference_run(load_model(replace(whole, tensors={**whole.tensors, **plain}))), [{"a": 20}])[
        "a"
    ]
    np.testing.assert_allclose(run_steps(reference_run(held), [{"a": 20}])["a"], expected, atol=1e-4)
    loaded = CpuBackend(threads=1).load(held, max_batch_tokens=32, max_batch_seqs=32, kv_type="f32")
    got = run_steps(PagedRun(held, loaded), [{"a": 20}])["a"]
    assert np.linalg.norm(got - expected) < 0.02 * np.linalg.norm(expected)


def test_a_file_is_opened_with_its_blocks_as_tensors(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    tensor = blocks("w.weight", 4, 128)
    writer.add_tensor("w.weight", tensor.data.reshape(4, -1), raw_dtype=TYPE)
    writer.add_tensor("w.scale", np.array([FACTOR], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(tmp_path / "a.gguf") as checkpoint:
        held = checkpoint.tensors["w.weight"]
        assert (held.type, held.shape) == ("NVFP4", (4, 128))
        np.testing.assert_allclose(as_floats(held), decoded(tensor) * np.float32(FACTOR), rtol=1e-6)
        checkpoint.release("w.weight")
