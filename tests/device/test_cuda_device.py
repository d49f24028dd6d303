"""On a real GPU: kernels through whole models against the reference, bits, preemption, graphs on and off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cuda_cases import need_gpu

need_gpu()

from paged_run import PagedRun, chunk, error, reference_run, run_steps
from pagoda.backends.cuda.backend import CudaBackend
from pagoda.backends.cuda.options import CudaOptions
from pagoda.backends.reference import ReferenceBackend
from pagoda.backends.specs import KVType, LoraDelta, LoraType
from pagoda.engine.llm import LLM
from pagoda.models.layers import Decoder
from pagoda.models.registry import load_model
from pagoda.types import RawTensor, SamplingParams
from tiny_blocks import noise
from tiny_models import TINY, memory_checkpoint, write_gguf

STEPS: list[dict[str, int]] = [{"a": 300}, {"a": 1, "b": 5}, {"c": 24, "a": 20, "b": 1}, {"b": 1, "a": 1, "c": 1}]


def model_of(name: str) -> Decoder:
    model = load_model(memory_checkpoint(TINY[name].with_config(max_position_embeddings=512)))
    assert isinstance(model, Decoder)
    return model


def gpu_run(model: Decoder, kv_type: KVType = "f32", *, graphs: bool = True, invariant: bool = False) -> PagedRun:
    backend = CudaBackend(CudaOptions("cuda", "fast", invariant, graphs))
    return PagedRun(model, backend.load(model, max_batch_tokens=512, max_batch_seqs=512, kv_type=kv_type))


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("name", [name for name in TINY if name != "smollm2"])
def test_logits_of_every_family(name: str, graphs: bool) -> None:
    model = model_of(name)
    assert error(run_steps(gpu_run(model, graphs=graphs), STEPS), run_steps(reference_run(model), STEPS)) < 1e-4


@pytest.mark.parametrize(("kv_type", "most"), [("f16", 1e-3), ("bf16", 8e-3), ("int8", 0.02), ("fp8", 0.09)])
def test_kv_types(kv_type: KVType, most: float) -> None:
    model = model_of("llama")
    assert error(run_steps(gpu_run(model, kv_type), STEPS), run_steps(reference_run(model), STEPS)) < most


@pytest.mark.parametrize("name", ["qwen2_windowed", "gpt_oss", "gemma4", "qwen35moe", "lfm2"])
def test_bits_do_not_depend_on_the_batch_when_asked_for(name: str) -> None:
    model = model_of(name)
    together = run_steps(gpu_run(model, invariant=True), STEPS)
    for sequence, rows in together.items():
        alone = run_steps(gpu_run(model, invariant=True, graphs=False), [{sequence: len(rows)}])
        np.testing.assert_array_equal(alone[sequence], rows)


@pytest.mark.parametrize("type", ["f32", "bf16", "int8"])
def test_adapters_beside_each_other(type: LoraType) -> None:
    """Two of other ranks, and a sequence without one; then decoding, which no graph with adapters serves."""
    model = model_of("llama")
    matrices = [matrix for block in model.blocks for matrix in block.matrices]

    def delta(raw: RawTensor, rank: int) -> LoraDelta:
        a = noise(f"{rank} a {raw.name}", (rank, raw.shape[1]), 0.1)
        return LoraDelta(a, noise(f"{rank} b {raw.name}", (raw.shape[0], rank), 0.3))

    weights = [{matrix.name: delta(matrix, rank) for matrix in matrices} for rank in (5, 20)]
    found = []
    for loaded in (
        CudaBackend(CudaOptions("cuda", "fast")).load(model, max_batch_tokens=512, max_batch_seqs=64, kv_type="f32"),
        ReferenceBackend().load(model, max_batch_tokens=512, max_batch_seqs=64, kv_type="f32"),
    ):
        placed = [loaded.place_adapter(w, type=type) for w in weights]
        run, asked = PagedRun(model, loaded), dict(zip("ac", placed, strict=True))
        steps = [run.step({n: chunk(n, at, count) for n in "abc"}, adapters=asked) for at, count in ((0, 40), (40, 1))]
        found.append({n: np.concatenate([step[n] for step in steps]) for n in "abc"})
    assert error(*found) < {"f32": 1e-4, "bf16": 0.02, "int8": 0.05}[type]


@pytest.mark.parametrize("type", ["Q4_0", "Q4_K", "Q6_K", "Q8_0", "BF16"])
def test_preemption_changes_no_token(type: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", TINY["llama_256"], type=type)
    prompts = [chunk(name, 0, 24) for name in "abc"]
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    answers = []
    for blocks in (7, 64):
        settings = {"backend": "cuda", "kv_memory_bytes": blocks << 15, "batch_invariant": True, "kv_type": "f32"}
        with LLM(str(path), max_context=64, prefix_caching=False, **settings) as llm:
            answers.append([output.token_ids for output in llm.generate(prompts, params)])
    assert answers[0] == answers[1]


def test_the_default_model_answers_as_on_the_cpu(default_model: Path) -> None:
    prompts = ["The capital of France is", "Water boils at", "Once upon a time"]
    params = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
    answers = []
    for backend in ("cpu", "cuda"):
        with LLM(str(default_model), backend=backend, max_context=256) as llm:
            answers.append([output.token_ids for output in llm.generate(prompts, params)])
    first = [
        next((i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), 64)
        for pair in zip(*answers, strict=True)
    ]
    assert min(first) >= 8, first
