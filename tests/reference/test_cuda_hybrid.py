"""Models with recurrent layers under the whole engine, on the CUDA backend in plain torch: chunks, shared prefixes,
preemption, drafts and steps planned ahead change no token, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cuda_cases import need_torch

need_torch()

from pagoda import LLM, SamplingParams
from pagoda.engine.load import LoadedEngine
from tiny_models import TINY, VOCAB, write_safetensors

SHARED = [(41 * i + 5) % VOCAB for i in range(70)]
PROMPTS = [SHARED + [(37 * i + 11 + 7 * j) % VOCAB for i in range(10 + 7 * j)] for j in range(3)]
REPEATING = [[(3 * i + j) % 9 + 40 for i in range(50)] for j in range(2)]  # so that n-grams are found
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)

Answer = list[tuple[tuple[int, ...], list[float]]]


@pytest.fixture(scope="module", params=["qwen35", "lfm2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_safetensors(tmp_path_factory.mktemp(request.param), TINY[request.param])


def opened(folder: Path, **settings: Any) -> LLM:
    usual = {"backend": "torch-cpu", "kv_type": "f32", "batch_invariant": True, "kv_memory_bytes": 1 << 24}
    return LLM(str(folder), **({**usual, "max_num_seqs": 8, "speculation": ("off",)} | settings))


def answers(llm: LLM, prompts: list[list[int]], params: SamplingParams = GREEDY) -> list[Answer]:
    """Tokens and their log-probabilities, of every choice of every prompt."""
    found = []
    for output in llm.generate(prompts, params):
        choices = output.outputs
        found.append([(one.token_ids, [token.chosen.logprob for token in one.logprobs or ()]) for one in choices])
    return found


def alone(folder: Path, prompts: list[list[int]], params: SamplingParams = GREEDY) -> list[Answer]:
    with opened(folder, prefix_caching=False) as llm:
        return [answers(llm, [prompt], params)[0] for prompt in prompts]


def test_tokens_are_those_of_the_cpus_kernels(folder: Path) -> None:
    with LLM(str(folder), backend="cpu", threads=1, kv_type="f32", kv_memory_bytes=1 << 24) as llm:
        right = [answer[0][0] for answer in answers(llm, PROMPTS)]
    assert [answer[0][0] for answer in alone(folder, PROMPTS)] == right


def test_a_prompt_in_chunks_among_others_is_a_prompt_alone(folder: Path) -> None:
    with opened(folder, max_batch_tokens=9, prefix_caching=False) as llm:
        assert answers(llm, PROMPTS) == alone(folder, PROMPTS)


def test_shared_prefixes_and_forks(folder: Path) -> None:
    params = SamplingParams(n=2, temperature=1.0, seed=3, max_tokens=8, ignore_eos=True, logprobs=0)
    with opened(folder, state_interval=32) as llm:
        assert [answers(llm, [prompt])[0] for prompt in PROMPTS] == alone(folder, PROMPTS)
        again = [llm.generate([prompt], GREEDY)[0].outputs[0].usage.cached_tokens for prompt in PROMPTS]
        assert again == [(len(prompt) - 1) // 16 * 16 for prompt in PROMPTS], "the end of a prompt is a snapshot"
        assert answers(llm, PROMPTS, params) == alone(folder, PROMPTS, params)


def test_what_is_preempted_is_computed_again(folder: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, logprobs=0)
    with opened(folder, max_context=128, kv_memory_bytes=140_000) as llm:
        assert isinstance(llm.loaded, LoadedEngine)
        preempted: list[int] = []
        step = llm.loaded.core.step

        def counted() -> Any:
            result = step()
            preempted.append(result.num_preempted)
            return result

        llm.loaded.core.step = counted  # type: ignore[method-assign]
        assert answers(llm, PROMPTS * 2, params) == alone(folder, PROMPTS, params) * 2
        assert sum(preempted) > 0


def test_a_restart_finds_keys_values_and_states(folder: Path, tmp_path: Path) -> None:
    settings = {"kv_offload": f"{tmp_path}:100MB", "state_interval": 16}
    expected = alone(folder, PROMPTS[:2])
    with opened(folder, **settings) as first:
        assert answers(first, PROMPTS[:2]) == expected
    with opened(folder, **settings) as again:
        usages = [output.outputs[0].usage for output in again.generate(PROMPTS[:2], GREEDY)]
        assert [usage.cached_tokens for usage in usages] == [(len(prompt) - 1) // 16 * 16 for prompt in PROMPTS[:2]]
        assert answers(again, PROMPTS[:2]) == expected


def test_rejected_drafts_leave_no_trace(folder: Path) -> None:
    with opened(folder, speculation=("ngram",)) as llm:
        assert answers(llm, REPEATING) == alone(folder, REPEATING)
        usages = [output.outputs[0].usage for output in llm.generate(REPEATING, GREEDY)]
        assert sum(usage.draft_tokens for usage in usages) > sum(usage.accepted_draft_tokens for usage in usages)


def test_the_sum_of_memory_counts_states(folder: Path) -> None:
    with opened(folder) as llm:
        assert isinstance(llm.loaded, LoadedEngine)
        plan, model = llm.loaded.kv_plan, llm.loaded.model
        pools = model._caches  # type: ignore[attr-defined]
        states = sum(pool.numel() * pool.element_size() for pool in pools.states.values())
        kv = sum(part.numel() * part.element_size() for layer in pools.kv.values() for part in (layer.k, layer.v))
        assert plan.num_states > 0
        assert states == plan.num_states * model.state_bytes
        assert plan.kv_bytes == states + kv
