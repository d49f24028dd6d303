"""How the CUDA backend shares out a GPU's memory, on torch's CPU with a figure made up for what is free."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cuda_cases import need_torch

need_torch()

import torch

from pagoda.backends.cuda import model as cuda_model
from pagoda.backends.cuda.backend import CudaBackend
from pagoda.backends.cuda.weights import WeightLoader
from pagoda.config import EngineSettings
from pagoda.engine.load import load_engine
from pagoda.errors import CapacityError
from tiny_models import TINY, write_gguf

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(write_gguf(tmp_path / "model.gguf", TINY["llama_256"], type="Q8_0"))


def gpu_with(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(CudaBackend, "available_memory", lambda self: free)


def out_of_memory(*args: object, **kwargs: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_blocks_take_what_is_left(path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    gpu_with(monkeypatch, 16 * MIB)
    with caplog.at_level(logging.INFO):
        loaded = load_engine(EngineSettings(path, backend="torch-cpu", memory_utilization=0.5))
    plan, block = loaded.kv_plan, loaded.model.block_bytes(0)
    taken = loaded.model.weight_bytes + loaded.model.buffer_bytes
    assert 8 * MIB - taken - block < plan.kv_bytes <= 8 * MIB - taken
    assert f"memory: weights {loaded.model.weight_bytes / MIB:,.0f} MiB + " in caplog.text
    assert f"KV blocks {plan.kv_bytes / MIB:,.0f} MiB ({plan.num_blocks[0]} of 16 tokens)" in caplog.text
    assert (loaded.settings.max_batch_tokens, loaded.settings.max_num_seqs) == (4096, 256)
    loaded.close()


def test_without_memory_of_its_own_it_has_the_limits_of_a_cpu(path: str) -> None:
    loaded = load_engine(EngineSettings(path, backend="torch-cpu", kv_memory_bytes=MIB))
    assert (loaded.settings.max_batch_tokens, loaded.settings.max_num_seqs) == (512, 64)
    loaded.close()


@pytest.mark.parametrize(
    ("share", "what"), [(0.9, "in Q5_K they would take .* and fit"), (0.1, "no format is small enough")]
)
def test_weights_that_cannot_fit_are_not_loaded(
    path: str, share: float, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_engine(EngineSettings(path, backend="torch-cpu", kv_memory_bytes=MIB))
    needed = loaded.model.weight_bytes
    loaded.close()
    gpu_with(monkeypatch, int(share * needed))
    monkeypatch.setattr(WeightLoader, "_load", out_of_memory)
    with pytest.raises(CapacityError, match=rf"the weights take .* GiB free; {what}"):
        load_engine(EngineSettings(path, backend="torch-cpu"))


def test_running_out_while_loading_is_said_with_the_remedy(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EngineSettings(path, backend="torch-cpu", kv_memory_bytes=MIB)
    with monkeypatch.context() as patch:
        patch.setattr(cuda_model, "KVBlocks", out_of_memory)
        with pytest.raises(CapacityError, match=r"cannot hold the KV cache; lower --kv-memory"):
            load_engine(settings)
    monkeypatch.setattr(WeightLoader, "_load", out_of_memory)
    with pytest.raises(CapacityError, match=r"ran out after 0.0 GiB of weights; take a smaller"):
        load_engine(settings)
