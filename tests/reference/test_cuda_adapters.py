"""Adapters on torch's CPU: models against the reference, and kernels, in Triton's interpreter, against torch."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cuda_cases import NO_GPU, need_torch

need_torch()

import torch

from paged_run import PagedRun, chunk, error
from pagoda.backends.cuda.adapters import AdapterTables, CudaAdapter, StepAdapters, places_of, sites_of
from pagoda.backends.cuda.adapters import place as place_on
from pagoda.backends.cuda.backend import CudaBackend
from pagoda.backends.cuda.eager import EagerOps
from pagoda.backends.cuda.options import CudaOptions
from pagoda.backends.cuda.parallel import ParallelBackend
from pagoda.backends.cuda.shard import WHOLE, Shard
from pagoda.backends.reference import ReferenceBackend
from pagoda.backends.specs import AdapterWeights, LoraDelta, LoraType
from pagoda.errors import UnsupportedError
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.layers import Decoder
from pagoda.models.registry import load_model
from pagoda.types import Batch, FloatArray, RawTensor
from tiny_blocks import noise
from tiny_models import TINY, memory_checkpoint, write_gguf

CPU = torch.device("cpu")
STEPS = ({"a": 20, "b": 5, "c": 18}, {"a": 1, "b": 1, "c": 1, "d": 3}, {"d": 1, "a": 1})
WHICH = {"a": 0, "c": 1, "d": 0}  # of the sequences; b has none


def model_of(name: str) -> Decoder:
    model = load_model(memory_checkpoint(TINY[name]))
    assert isinstance(model, Decoder)
    return model


def delta(seed: str, rank: int, rows: int, columns: int, *, bias: bool = False, scaled: bool = False) -> LoraDelta:
    return LoraDelta(
        noise(f"{seed} a", (rank, columns), columns**-0.5),
        noise(f"{seed} b", (rows, rank), 0.7 * rank**-0.5),
        noise(f"{seed} bias", (rows,), 0.1) if bias else None,
        1.3 + noise(f"{seed} scale", (rows,), 0.2) if scaled else None,
    )


def adapters_of(model: Decoder) -> list[AdapterWeights]:
    """One on all linears with biases and scaled rows, one of another rank on some."""
    matrices = [m for block in model.blocks for m in block.matrices if ".experts." not in m.name]
    every = {m.name: delta(f"x {m.name}", 5, *m.shape, bias="attn" in m.name, scaled=True) for m in matrices}
    some = {m.name: delta(f"y {m.name}", 17, *m.shape) for m in matrices if m.shape[0] >= 17 <= m.shape[1]}
    return [every, dict(list(some.items())[::2])]


def answers(backend: CudaBackend | ReferenceBackend, model: Decoder, type: LoraType = "f32") -> dict[str, FloatArray]:
    loaded = backend.load(model, max_batch_tokens=128, max_batch_seqs=128, kv_type="f32")
    placed = [loaded.place_adapter(weights, type=type) for weights in adapters_of(model)]
    assert all(adapter.bytes > 0 for adapter in placed)
    run = PagedRun(model, loaded)
    found: dict[str, list[FloatArray]] = {}
    for step in STEPS:
        chunks = {name: chunk(name, run.lengths.get(name, 0), count) for name, count in step.items()}
        asked = {name: placed[WHICH[name]] for name in step if name in WHICH}
        for name, rows in run.step(chunks, adapters=asked).items():
            found.setdefault(name, []).append(rows)
    return {name: np.concatenate(rows) for name, rows in found.items()}


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "mixtral", "qwen35", "falcon_h1"])
def test_models_with_adapters(name: str) -> None:
    model = model_of(name)
    expected = answers(ReferenceBackend(), model)
    assert error(answers(CudaBackend(CudaOptions("cpu", "eager")), model), expected) < 1e-5


@pytest.mark.parametrize(("type", "most"), [("bf16", 0.03), ("int8", 0.08)])
def test_smaller_numbers_are_close(type: LoraType, most: float) -> None:
    model = model_of("llama")
    expected = answers(ReferenceBackend(), model)
    assert 1e-5 < error(answers(CudaBackend(CudaOptions("cpu", "eager")), model, type), expected) < most


def test_rows_do_not_depend_on_the_batch_when_asked_for() -> None:
    model = model_of("llama")
    backend = CudaBackend(CudaOptions("cpu", "eager", True))
    together = answers(backend, model)
    loaded = backend.load(model, max_batch_tokens=128, max_batch_seqs=128, kv_type="f32")
    placed = loaded.place_adapter(adapters_of(model)[1], type="f32")
    alone = PagedRun(model, loaded).step({"c": chunk("c", 0, 18)}, adapters={"c": placed})
    np.testing.assert_array_equal(alone["c"], together["c"][:18])


def test_refusals() -> None:
    model = model_of("llama")
    loaded = CudaBackend(CudaOptions("cpu", "eager")).load(model, max_batch_tokens=64, max_batch_seqs=64, kv_type="f32")
    weights = adapters_of(model)[0]
    name, first = next(iter(weights.items()))
    with pytest.raises(UnsupportedError, match="nowhere"):
        loaded.place_adapter({"nowhere.weight": first}, type="f32")
    with pytest.raises(ValueError, match="shape"):
        loaded.place_adapter({name: replace(first, a=first.a[:, 1:])}, type="f32")
    run = PagedRun(model, loaded)
    one, other = (loaded.place_adapter(weights, type=type) for type in ("f32", "bf16"))
    with pytest.raises(ValueError, match="one type"):
        run.step({"a": [1], "b": [1]}, adapters={"a": one, "b": other})
    with pytest.raises(ValueError, match="of this model"):
        run.step({"a": [1]}, adapters={"a": object()})


@pytest.mark.parametrize("cuts_columns", [True, False])
def test_parts_of_a_cut_linear_make_the_whole(cuts_columns: bool) -> None:
    """Rows side by side, or products of parts of the columns summed."""
    whole = delta("x", 3, 8, 12, bias=True, scaled=True)
    x, product = noise("h", (12,)), noise("p", (8,))
    size = (8, 6) if cuts_columns else (4, 12)
    (site,) = sites_of([RawTensor("w", "F32", size, np.zeros(0, np.uint8))], cuts_columns=cuts_columns)
    added = []
    for rank in range(2):
        part = site.part(whole, Shard(rank, 2))
        mine = x[rank * 6 : rank * 6 + 6] if cuts_columns else x
        added.append(part.b @ (part.a @ mine) + (0 if part.bias is None else part.bias))
        assert part.row_scale is not None
        assert len(part.row_scale) == len(part.b)
    assert whole.bias is not None
    found = added[0] + added[1] if cuts_columns else np.concatenate(added)
    np.testing.assert_allclose(found, whole.b @ (whole.a @ x) + whole.bias, atol=1e-5)
    assert product.shape == found.shape


def reopened(path: str) -> Decoder:
    model = load_model(open_checkpoint(Path(path)), max_context=256)
    assert isinstance(model, Decoder)
    return model


def test_two_processes_give_the_logits_of_one(tmp_path: Path) -> None:
    """Each with its part of every adapter; one that nobody holds any more is dropped by all."""
    path = str(write_gguf(tmp_path / "model.gguf", TINY["llama_256"], type="F32"))
    model = reopened(path)
    backend = ParallelBackend(CudaOptions("cpu", "eager"), 2, partial(reopened, path))
    parallel = backend.load(model, max_batch_tokens=128, max_batch_seqs=128, kv_type="f32")
    alone = CudaBackend(CudaOptions("cpu", "eager")).load(
        model, max_batch_tokens=128, max_batch_seqs=128, kv_type="f32"
    )
    found = []
    try:
        for loaded in (parallel, alone):
            first, second = (loaded.place_adapter(weights, type="f32") for weights in adapters_of(model))
            run = PagedRun(model, loaded)
            steps = [run.step({"a": chunk("a", 0, 9), "b": chunk("b", 0, 3)}, adapters={"a": first, "b": second})]
            del first
            steps.append(run.step({"a": [5], "b": [6]}, adapters={"b": second}))
            found.append({name: np.concatenate([step[name] for step in steps]) for name in "ab"})
        with pytest.raises(UnsupportedError, match="nowhere"):
            parallel.place_adapter({"nowhere": delta("x", 1, 2, 2)}, type="f32")
    finally:
        parallel.close()
    assert error(*found) < 1e-5


# Kernels


def step_of(adapters: list[CudaAdapter], counts: list[int], which: list[int]) -> StepAdapters:
    zeros, starts = np.zeros(sum(counts), np.int32), np.cumsum([0, *counts]).astype(np.int32)
    of = np.array(which, np.int32)
    batch = Batch(zeros, zeros, starts, zeros, (), zeros, adapters=tuple(adapters), adapter_of=of)
    return StepAdapters.of(batch, AdapterTables.of(adapters, CPU))


@pytest.mark.skipif(NO_GPU is None, reason="there is a GPU: tests/device runs the kernels on it")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    ("type", "dtype", "most"),
    [
        ("f32", torch.float32, 2e-6),
        ("int8", torch.float32, 2e-6),
        ("int8", torch.float16, 2e-3),
        ("f32", torch.float16, 2e-3),
    ],
)
def test_kernels_of_adapters(type: LoraType, dtype: torch.dtype, most: float, scaled: bool) -> None:
    """Ranks beyond one block and none, a tile that is full and one that is not, products in parts, biases alone."""
    from pagoda.backends.cuda.fast import FastOps

    raws = [RawTensor(name, "F32", (rows, 40), np.zeros(0, np.uint8)) for name, rows in (("q", 150), ("k", 20))]
    sites = sites_of(raws, cuts_columns=False)
    by_name = {site.name: site for site in sites}
    weights: list[AdapterWeights] = [
        {"q": delta("q0", 3, 150, 40, bias=True, scaled=scaled), "k": delta("k0", 20, 20, 40)},
        {"k": delta("k1", 16, 20, 40, scaled=scaled)},
        {"q": LoraDelta(np.zeros((0, 40), np.float32), np.zeros((150, 0), np.float32), noise("only", (150,)))},
    ]
    placed = [place_on(w, by_name, type, WHOLE, CPU) for w in weights]
    step = step_of(placed, [2, 17, 1, 3, 16], [1, 0, -1, 2, 0])
    x = torch.from_numpy(noise("x", (1, 39, 40)).copy()).to(dtype)
    parts = 3 if scaled else 1
    product = torch.from_numpy(noise("product", (parts, 39, 170)).copy()).to(torch.float32 if parts > 1 else dtype)
    results = []
    for ops in (EagerOps(dtype), FastOps(dtype, max_context=64, max_seqs=4)):
        results.append(product.clone())
        ops.add_adapters(x, results[-1], sites, places_of(sites, CPU), step)
    moved, right = (result.to(torch.float32).sum(0) for result in results[::-1])
    assert float((moved - right).norm() / right.norm()) < most
    assert torch.equal(results[1][:, 19], product[:, 19])  # of the sequence without an adapter
    assert (right - product.to(torch.float32).sum(0)).abs().max() > 0.5
