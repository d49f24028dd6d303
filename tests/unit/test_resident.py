"""What the planner says that the engine takes: what the engine takes, for every family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pagoda.backends.cpu import CpuBackend
from pagoda.engine.speculation.mtp import waiting_bytes
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.registry import load_head, load_model
from pagoda.plan.cost.memory import cpu_runtime_bytes
from pagoda.plan.cost.resident import engine_bytes
from pagoda.plan.model.models import builtin_shape, shape_of_file
from pagoda.plan.model.weights import STORED, weights_in
from tiny_heads import with_head
from tiny_models import TINY, write_gguf

NOT_IN_GGUF = {"qwen2_windowed", "qwen3moe_mixed"}


@pytest.mark.parametrize("type", ["F32", "Q8_0"])
@pytest.mark.parametrize("name", sorted(TINY.keys() - NOT_IN_GGUF))
def test_bytes_are_the_engines_own(name: str, type: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", TINY[name], type=type)
    shape = shape_of_file(path)
    sizes = engine_bytes(shape, weights_in(shape, STORED), "f16", batch_tokens=48, rows=5, threads=2)
    with open_checkpoint(path) as checkpoint:
        loaded = CpuBackend(threads=2).load(
            load_model(checkpoint), max_batch_tokens=48, max_batch_seqs=5, kv_type="f16"
        )
        assert sizes == (loaded.weight_bytes, loaded.buffer_bytes)
        loaded.close()


@pytest.mark.parametrize("name", ["glm4moe", "glm4lite", "qwen35"])
def test_a_head_beside_the_model_is_counted(name: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", with_head(name), type="Q8_0")
    shape = shape_of_file(path)
    weights = weights_in(shape, STORED)
    sizes = engine_bytes(shape, weights, "f16", batch_tokens=48, rows=5, threads=2, with_head=True)
    limits: dict[str, Any] = {"max_batch_tokens": 48, "max_batch_seqs": 5, "kv_type": "f16"}
    with open_checkpoint(path) as checkpoint:
        backend, model = CpuBackend(threads=2), load_model(checkpoint)
        head = load_head(checkpoint, model)
        assert head is not None
        target = backend.load(model, **limits)
        beside = backend.load_beside(head, target, **limits)
        waiting = waiting_bytes(48, shape.hidden_size)
        both = (target.weight_bytes + beside.weight_bytes, target.buffer_bytes + beside.buffer_bytes + waiting)
        assert sizes == both
        beside.close()
        target.close()
    assert shape.has_head
    assert shape.with_head().attention[0].num_layers == shape.attention[0].num_layers + 1
    assert not shape_of_file(write_gguf(tmp_path / "without.gguf", TINY[name])).has_head


@pytest.mark.parametrize("name", ["gemma-3-270m", "qwen3-30b-a3b", "mixtral-8x7b", "phi-4-mini"])
def test_a_model_without_a_file_is_sized_too(name: str) -> None:
    """Panels of whole rows are hardly more than the file's blocks, and the embedding table is not packed."""
    shape = builtin_shape(name)
    weights = weights_in(shape, "q8_0")
    sizes = engine_bytes(shape, weights, "f16", batch_tokens=512, rows=8, threads=1)
    assert sizes is not None
    table = weights.tensors["token_embd.weight"]
    assert sizes[0] == pytest.approx(weights.total - (0 if shape.is_tied else table), rel=0.01)


def test_what_the_engine_does_not_run_has_no_size() -> None:
    shape = builtin_shape("llama-3.2-1b")
    for strange, format in ((replace(shape, architecture="novel"), "q4_0"), (shape, "fp8")):
        assert engine_bytes(strange, weights_in(strange, format), "f16", batch_tokens=8, rows=1, threads=1) is None


def test_a_vocabulary_with_scores_takes_less_than_one_with_merges() -> None:
    shape = builtin_shape("gemma-3-270m")
    merged, scored = (cpu_runtime_bytes(replace(shape, scored_vocabulary=scored)) for scored in (False, True))
    assert merged - scored == 262_144 * (740 - 315)
