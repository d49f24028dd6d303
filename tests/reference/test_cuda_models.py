"""The CUDA backend on torch's CPU, in plain torch: everything but the kernels, against the reference."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cuda_cases import need_torch

need_torch()

from op_graphs import SPEC, Bent, plain
from paged_run import PagedRun, chunk, error, reference_run, run_steps
from pagoda.backends.base import run_batch
from pagoda.backends.cuda.backend import CudaBackend
from pagoda.backends.cuda.eager import EagerOps
from pagoda.backends.cuda.model import CudaModel
from pagoda.backends.cuda.options import CudaOptions
from pagoda.backends.reference import ReferenceBackend
from pagoda.backends.specs import KVType
from pagoda.engine.llm import LLM
from pagoda.engine.load import LoadedEngine
from pagoda.errors import ConfigError, EngineError, UnsupportedError
from pagoda.models.layers import Decoder
from pagoda.models.registry import load_model
from pagoda.types import Batch, FloatArray, SamplingParams
from tiny_models import TINY, VOCAB, memory_checkpoint, write_gguf, write_safetensors

STEPS: list[dict[str, int]] = [{"a": 37}, {"a": 1, "b": 5}, {"c": 24, "a": 20, "b": 1}, {"b": 1, "a": 1, "c": 1}]
TOTALS = {name: sum(step.get(name, 0) for step in STEPS) for name in "abc"}


@functools.cache
def model_of(name: str) -> Decoder:
    model = load_model(memory_checkpoint(TINY[name]))
    assert isinstance(model, Decoder)
    return model


@functools.cache
def expected(name: str) -> dict[str, FloatArray]:
    return run_steps(reference_run(model_of(name)), STEPS)


def loaded(model: Decoder, kv_type: KVType = "f32", *, batch_invariant: bool = False) -> CudaModel:
    options = CudaOptions("cpu", "eager", batch_invariant)
    return CudaBackend(options).load(model, max_batch_tokens=128, max_batch_seqs=128, kv_type=kv_type)


def test_what_only_cpus_compute_is_refused_before_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = CudaBackend(CudaOptions("cpu", "eager"))
    with pytest.raises(UnsupportedError, match="encoders are computed on CPUs alone; use --device cpu"):
        backend.check(Bent(plain, replace(SPEC, causal=False)))
    monkeypatch.delattr(EagerOps, "multiply")
    with pytest.raises(UnsupportedError, match="multiply is computed on CPUs alone; use --device cpu"):
        backend.check(model_of("lfm2"))


@pytest.mark.parametrize("name", [name for name in TINY if name != "smollm2"])
def test_logits_of_every_family(name: str) -> None:
    assert error(run_steps(PagedRun(model_of(name), loaded(model_of(name))), STEPS), expected(name)) < 1e-5


@pytest.mark.parametrize(
    ("kv_type", "least", "most"), [("f16", 1e-6, 1e-3), ("bf16", 1e-5, 8e-3), ("int8", 1e-5, 0.02), ("fp8", 1e-3, 0.09)]
)
def test_kv_types_round_and_no_more(kv_type: KVType, least: float, most: float) -> None:
    for name in ("llama", "gemma3"):
        got = run_steps(PagedRun(model_of(name), loaded(model_of(name), kv_type)), STEPS)
        assert least < error(got, expected(name)) < most


def test_soft_caps_of_scores_and_logits() -> None:
    plain = model_of("llama")
    blocks = tuple(
        replace(b, attention=replace(b.attention, spec=replace(b.attention.spec, softcap=0.5))) for b in plain.blocks
    )
    capped = replace(plain, blocks=blocks, logit_softcap=1.5, embedding_scale=3.0)
    got = run_steps(PagedRun(capped, loaded(capped)), STEPS)
    assert error(got, run_steps(reference_run(capped), STEPS)) < 1e-5
    assert error(got, expected("llama")) > 0.1


@pytest.mark.parametrize("name", ["llama", "qwen2_windowed"])
def test_bits_do_not_depend_on_the_batch_when_asked_for(name: str) -> None:
    def run(seed: int) -> PagedRun:
        return PagedRun(model_of(name), loaded(model_of(name), batch_invariant=True), seed=seed)

    together = run_steps(run(0), STEPS)
    for sequence, total in TOTALS.items():
        alone = run_steps(run(1), [{sequence: total}])
        np.testing.assert_array_equal(alone[sequence], together[sequence])


@pytest.mark.parametrize("type", ["BF16", "F16"])
def test_sixteen_bit_folders(type: str, tmp_path: Path) -> None:
    """Activations are of the weights' type: what that rounds, and no more."""
    from pagoda.formats.checkpoint import open_checkpoint

    model = load_model(open_checkpoint(write_safetensors(tmp_path, TINY["qwen3"], type=type)))
    assert isinstance(model, Decoder)
    got = run_steps(PagedRun(model, loaded(model, "f16")), STEPS)
    assert error(got, run_steps(reference_run(model), STEPS)) < (2e-2 if type == "BF16" else 3e-3)


@pytest.mark.parametrize("type", ["Q4_K", "Q6_K", "Q8_0", "IQ4_XS"])
def test_quantized_files(type: str, tmp_path: Path) -> None:
    from pagoda.formats.checkpoint import open_checkpoint

    model = load_model(open_checkpoint(write_gguf(tmp_path / "model.gguf", TINY["llama_256"], type=type)))
    assert isinstance(model, Decoder)
    got = run_steps(PagedRun(model, loaded(model, "f16")), STEPS[:2])
    assert error(got, run_steps(reference_run(model), STEPS[:2])) < 5e-3


def test_preemption_changes_no_token(tmp_path: Path) -> None:
    """Through the engine, with so few KV blocks that sequences are computed again."""
    path = write_gguf(tmp_path / "model.gguf", TINY["llama_256"], type="Q8_0")
    prompts = [chunk(name, 0, 24) for name in "abc"]
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    answers = []
    for blocks in (7, 64):
        settings = {"backend": "torch-cpu", "kv_memory_bytes": blocks << 15, "batch_invariant": True}
        with LLM(str(path), max_context=64, kv_type="f32", prefix_caching=False, **settings) as llm:
            assert llm.loaded.kv_plan.num_blocks[0] <= blocks
            answers.append([output.token_ids for output in llm.generate(prompts, params)])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("kv_type", ["f16", "f32", "int8", "fp8"])
def test_blocks_come_back_as_they_were(kv_type: KVType) -> None:
    model, zeros = loaded(model_of("llama"), kv_type), np.zeros(1, np.int32)
    model.allocate_kv((3,))
    step = Batch(zeros, zeros, np.array([0, 1], np.int32), zeros + 1, (zeros[:, None],), zeros)
    run_batch(model, step)
    contents = model.read_blocks(0, np.array([0, 1], np.int32))
    assert contents.shape == (2, model.block_bytes(0))
    assert contents[0].any()
    model.write_blocks(0, np.array([2, 0], np.int32), contents)
    np.testing.assert_array_equal(model.read_blocks(0, np.array([2, 0], np.int32)), contents)
    follow = replace(step, positions=zeros + 1, context_lens=zeros + 2, block_tables=(zeros[:, None] + 2,))
    straight = loaded(model_of("llama"), kv_type)
    straight.allocate_kv((3,))
    run_batch(straight, step)
    expected = run_batch(straight, replace(follow, block_tables=(zeros[:, None],)))
    np.testing.assert_array_equal(run_batch(model, follow), expected)


@pytest.mark.parametrize("name", ["qwen35", "lfm2"])
def test_states_come_back_as_they_were(name: str) -> None:
    model, zeros = loaded(model_of(name)), np.zeros(1, np.int32)
    model.allocate_kv((3,), 3)
    step = Batch(zeros, zeros, np.array([0, 1], np.int32), zeros + 1, (zeros[:, None],), zeros)
    run_batch(model, replace(step, state_starts=zeros - 1, state_saves=zeros + 1))
    contents = model.read_blocks(1, np.array([1], np.int32))
    assert contents.shape == (1, model.moved_bytes(1)) == (1, model.state_bytes)
    follow = replace(step, positions=zeros + 1, context_lens=zeros + 2, state_saves=zeros)
    expected = run_batch(model, replace(follow, state_starts=zeros + 1)).copy()
    model.write_blocks(1, np.array([2], np.int32), contents)
    np.testing.assert_array_equal(run_batch(model, replace(follow, state_starts=zeros + 2)), expected)
    assert not np.array_equal(run_batch(model, replace(follow, state_starts=zeros - 1)), expected)


def test_steps_without_their_states_are_refused() -> None:
    model, zeros = loaded(model_of("lfm2")), np.zeros(1, np.int32)
    model.allocate_kv((1,), 2)
    step = Batch(zeros, zeros, np.array([0, 1], np.int32), zeros + 1, (zeros[:, None],), zeros)
    for starts, saves in ((None, None), (zeros, None), (zeros, zeros + 2), (zeros - 2, zeros), (zeros + 2, zeros - 1)):
        with pytest.raises(ValueError, match="state"):
            run_batch(model, replace(step, state_starts=starts, state_saves=saves))


def test_copied_blocks_and_wrong_steps() -> None:
    model = loaded(model_of("llama"), "int8")
    zeros = np.zeros(1, np.int32)
    batch = Batch(zeros, zeros, np.array([0, 1], np.int32), zeros + 1, (zeros[:, None],), zeros)
    with pytest.raises(ValueError, match="allocate_kv"):
        run_batch(model, batch)
    model.allocate_kv((2,))
    before = run_batch(model, batch).copy()
    model.copy_blocks(0, np.array([[0, 1]], np.int32))
    after = run_batch(model, replace(batch, positions=zeros + 1, block_tables=(zeros[:, None] + 1,)))
    assert not np.array_equal(before, after)
    for wrong in (
        replace(batch, tokens=zeros + VOCAB),
        replace(batch, block_tables=(zeros[:, None] + 2,)),
        replace(batch, positions=zeros + 16),
        replace(batch, positions=zeros - 1),
        replace(batch, logit_rows=zeros + 1),
        replace(batch, seq_starts=np.array([0, 2], np.int32)),
        replace(batch, block_tables=()),
    ):
        with pytest.raises(ValueError, match=r"\w \w"):
            run_batch(model, wrong)
    with pytest.raises(ValueError, match="block"):
        model.copy_blocks(0, np.array([[0, 2]], np.int32))
    np.testing.assert_array_equal(run_batch(model, batch), before)
    model.close()
    model.close()
    with pytest.raises(EngineError, match="closed"):
        run_batch(model, batch)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    from cuda_cases import NO_GPU

    if NO_GPU is None:
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="no NVIDIA GPU"):
        LLM("smollm2-135m", backend="cuda")
    with pytest.raises(ConfigError, match="--tensor-parallel needs"):
        LLM("smollm2-135m", tensor_parallel=2)


@pytest.mark.parametrize(
    ("name", "type"),
    [
        ("qwen3", "F32"),
        ("llama_256", "Q8_0"),
        ("phi3", "F32"),
        ("granite", "F32"),
        ("cohere", "F32"),
        ("hunyuan", "F32"),
    ],
)
def test_two_processes_give_the_tokens_of_one(name: str, type: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", TINY[name], type=type)
    prompts = [chunk(name, 0, 20) for name in "ab"]
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, n=1)
    answers = []
    for size in (1, 2):
        settings = {"backend": "torch-cpu", "tensor_parallel": size, "kv_memory_bytes": 1 << 20, "kv_type": "f32"}
        with LLM(str(path), max_context=64, **settings) as llm:
            answers.append([output.token_ids for output in llm.generate(prompts, params)])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("where", ["files", "memory"])
def test_keys_and_values_come_back_to_every_process(size: int, where: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", TINY["llama_256"], type="F32")
    prompt = [chunk("a", 0, 40)]
    others = [chunk(name, 0, 40) for name in "bcdefg"]
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    kept = {"kv_offload": f"{tmp_path / 'kv'}:1MB"} if where == "files" else {"kv_host_memory_bytes": 1 << 20}
    settings = {"backend": "torch-cpu", "tensor_parallel": size, "kv_memory_bytes": 210_000 // size, "kv_type": "f32"}
    with LLM(str(path), max_context=64, max_num_seqs=1, **settings, **kept) as llm:
        first = llm.generate(prompt, params)[0]
        for other in others:
            llm.generate([other], params)
        again = llm.generate(prompt, params)[0]
        assert isinstance(llm.loaded, LoadedEngine)
        store = llm.loaded.kv_store
        assert store is not None
        assert store.counts.read > 0
    assert again.token_ids == first.token_ids
    assert again.outputs[0].usage.cached_tokens == 32


def test_what_cannot_be_shared_out_is_refused() -> None:
    from pagoda.backends.cuda.shard import Shard

    model = model_of("gemma3")  # one KV head
    with pytest.raises(ConfigError, match=r"--tensor-parallel 2: 1 KV heads|rows"):
        CudaBackend(CudaOptions("cpu", "eager"), Shard(0, 2)).load(
            model, max_batch_tokens=8, max_batch_seqs=8, kv_type="f16"
        )
    with pytest.raises(ConfigError, match="--tensor-parallel 2: experts cannot be shared out"):
        CudaBackend(CudaOptions("cpu", "eager"), Shard(0, 2)).check(model_of("mixtral"))
    with pytest.raises(ConfigError, match="--tensor-parallel 2: norms over all heads"):
        CudaBackend(CudaOptions("cpu", "eager"), Shard(0, 2)).check(model_of("olmo2"))
    assert ReferenceBackend().available_memory() is None
