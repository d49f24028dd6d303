"""Models with recurrent layers under the whole engine, on the CPU's kernels: chunks, shared prefixes, forks, preemption
and drafts change no token, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pagoda import LLM, SamplingParams
from pagoda.engine.load import LoadedEngine
from pagoda.errors import ConfigError, PagodaError, UnsupportedError
from tiny_models import TINY, VOCAB, write_safetensors

NAMES = ["qwen35", "qwen35moe", "lfm2", "granite4", "falcon_h1"]
TIGHT = {"falcon_h1": 260_000}  # bytes of KV memory in which some are preempted; of others 200,000
SHARED = [(41 * i + 5) % VOCAB for i in range(90)]
PROMPTS = [SHARED + [(37 * i + 11 + 7 * j) % VOCAB for i in range(20 + 17 * j)] for j in range(3)]
REPEATING = [[(3 * i + j) % 9 + 40 for i in range(70)] for j in range(3)]  # so that n-grams are found
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=0)

Answer = list[tuple[tuple[int, ...], list[float]]]


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_safetensors(tmp_path_factory.mktemp(request.param), TINY[request.param])


def opened(folder: Path, **settings: Any) -> LLM:
    usual = {"backend": "cpu", "threads": 2, "kv_memory_bytes": 1 << 24, "max_num_seqs": 8, "speculation": ("off",)}
    return LLM(str(folder), **(usual | settings))


def answers(llm: LLM, prompts: list[list[int]], params: SamplingParams = GREEDY) -> list[Answer]:
    """Tokens and their log-probabilities, of every choice of every prompt."""
    found = []
    for output in llm.generate(prompts, params):
        choices = output.outputs
        found.append([(one.token_ids, [token.chosen.logprob for token in one.logprobs or ()]) for one in choices])
    return found


def alone(folder: Path, prompts: list[list[int]], params: SamplingParams = GREEDY) -> list[Answer]:
    llm = opened(folder, prefix_caching=False)
    return [answers(llm, [prompt], params)[0] for prompt in prompts]


@pytest.mark.parametrize("chunk", [7, 40, 512])
def test_a_prompt_in_chunks_among_others_is_a_prompt_alone(folder: Path, chunk: int) -> None:
    llm = opened(folder, max_batch_tokens=chunk, prefix_caching=False)
    assert answers(llm, PROMPTS) == alone(folder, PROMPTS)


def test_a_shared_prefix_is_computed_once(folder: Path) -> None:
    llm = opened(folder, state_interval=32)
    wanted = alone(folder, PROMPTS)
    assert [answers(llm, [prompt])[0] for prompt in PROMPTS] == wanted
    again = [llm.generate([prompt], GREEDY)[0].outputs[0].usage.cached_tokens for prompt in PROMPTS]
    assert again == [(len(prompt) - 1) // 16 * 16 for prompt in PROMPTS], "the end of a prompt is a snapshot"
    assert [answers(llm, [prompt])[0] for prompt in PROMPTS] == wanted
    other = llm.generate([[*SHARED, 1, 2, 3]], GREEDY)[0].outputs[0]
    assert other.usage.cached_tokens == 64, "a snapshot every 32 tokens"


def test_choices_fork_off_one_prompt(folder: Path) -> None:
    params = SamplingParams(n=3, temperature=1.0, seed=3, max_tokens=20, ignore_eos=True, logprobs=0)
    assert answers(opened(folder), PROMPTS, params) == alone(folder, PROMPTS, params)


def test_what_is_preempted_is_computed_again(folder: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=80, ignore_eos=True, logprobs=0)
    memory = next((bytes for name, bytes in TIGHT.items() if folder.name.startswith(name)), 200_000)
    llm = opened(folder, max_context=256, kv_memory_bytes=memory)
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
    expected = alone(folder, PROMPTS)
    with opened(folder, **settings) as first:
        assert answers(first, PROMPTS) == expected
    with opened(folder, **settings) as again:
        assert answers(again, PROMPTS[:1]) == expected[:1]
        usages = [output.outputs[0].usage for output in again.generate(PROMPTS[1:], GREEDY)]
        assert [usage.cached_tokens for usage in usages] == [(len(prompt) - 1) // 16 * 16 for prompt in PROMPTS[1:]]
        assert answers(again, PROMPTS) == expected


def test_rejected_drafts_leave_no_trace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagoda.engine.load.Pacer", lambda: None)  # drafts whether they pay or not
    llm = opened(folder, speculation=("ngram",))
    assert answers(llm, REPEATING) == alone(folder, REPEATING)
    usages = [output.outputs[0].usage for output in llm.generate(REPEATING, GREEDY)]
    assert sum(usage.draft_tokens for usage in usages) > sum(usage.accepted_draft_tokens for usage in usages)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"speculation": ("draft",), "draft_model": "{folder}"}, UnsupportedError, "has recurrent layers"),
        ({"state_interval": 100}, ConfigError, "--state-interval 100 must be a multiple of 16"),
    ],
)
def test_what_does_not_go_with_states_is_refused(
    settings: dict[str, Any], error: type[PagodaError], match: str, folder: Path, tmp_path: Path
) -> None:
    places = {"tmp": tmp_path, "folder": folder}
    given = {key: value.format(**places) if isinstance(value, str) else value for key, value in settings.items()}
    with pytest.raises(error, match=match):
        opened(folder, **given)
