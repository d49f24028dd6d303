"""Drafts make answers come in fewer steps, and change nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fake_backend import FakeDevice, FakeModel, FakeRankingDevice, FakeTokenizer, fake_engine
from fake_constraint import FakeGrammar
from fake_drafters import FakeDrafter
from pagoda.engine.engine import Engine
from pagoda.grammar.thinking import Marks, Thinking, ThinkingVocabulary
from pagoda.sampling.base import SamplerProtocol
from pagoda.sampling.reference import ReferenceSampler
from pagoda.sampling.sampler import Sampler
from pagoda.sampling.top_k import TopKSampler
from pagoda.types import Delta, Request, SamplingParams, StepResult

PROMPT = (5, 9, 20, 11, 30)
VOCAB = 40


def request(id: str = "r", prompt: tuple[int, ...] = PROMPT, **params: Any) -> Request:
    params = {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True, **params}
    return Request(id, prompt, SamplingParams(**params), 0.0)


def run(engine: Engine) -> tuple[list[Delta], list[StepResult]]:
    results = []
    while engine.has_work:
        results.append(engine.step())
        engine.check()
    assert engine.kv.num_used_blocks == 0
    return [delta for result in results for delta in result.deltas], results


def answers(deltas: list[Delta]) -> dict[tuple[str, int], tuple[Any, ...]]:
    """All that a client can see of each choice."""
    found = {}
    for key in {(delta.request_id, delta.index) for delta in deltas}:
        own = [delta for delta in deltas if (delta.request_id, delta.index) == key]
        assert all(delta.finish_reason is None for delta in own[:-1])
        found[key] = (
            "".join(delta.text for delta in own),
            [token_id for delta in own for token_id in delta.token_ids],
            [logprobs for delta in own for logprobs in delta.logprobs or ()],
            (own[0].prompt_logprobs, own[-1].finish_reason, own[-1].stop_reason, own[-1].usage, own[-1].error),
        )
    return found


def with_and_without(
    requests: list[Request], accuracy: float, **options: Any
) -> tuple[dict[Any, Any], dict[Any, Any], FakeDrafter, list[StepResult]]:
    """→ (answers with drafts, answers without, the drafter, the steps with drafts)"""
    plain = fake_engine(**options)
    for one in requests:
        plain.add(one)
    right = answers(run(plain)[0])
    prompts = {one.id: list(one.prompt_token_ids) for one in requests}
    drafter = FakeDrafter({key: prompts[key[0]] + answer[1] for key, answer in right.items()}, accuracy=accuracy)
    if "model" in options:
        options["model"] = type(options["model"])((None,))
    engine = fake_engine(**options, drafters=[drafter])
    for one in requests:
        engine.add(one)
    deltas, results = run(engine)
    assert not drafter.proposed
    return answers(deltas), right, drafter, results


KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 1.0, "seed": 3},
    "penalties": {"temperature": 1.0, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.3},
    "top_k, top_p, min_p": {"temperature": 1.2, "top_k": 9, "top_p": 0.8, "min_p": 0.01},
    "bias, bad words": {"temperature": 1.0, "logit_bias": {7: 2.0}, "bad_words": ("ab", "k")},
    "stop string": {"temperature": 1.0, "seed": 8, "stop": ("q", "7", "e")},
    "stop token": {"temperature": 1.0, "stop_token_ids": (9, 10, 11)},
    "eos": {"temperature": 1.0, "ignore_eos": False, "max_tokens": 60},
    "min_tokens": {"temperature": 1.0, "stop_token_ids": tuple(range(20)), "min_tokens": 9},
    "mirostat": {"temperature": 1.0, "mirostat": 2, "mirostat_tau": 2.0},
    "dry, xtc": {"temperature": 1.0, "dry_multiplier": 0.8, "xtc_probability": 0.5, "min_p": 0.02},
    "logprobs": {"temperature": 1.0, "logprobs": 2},
    "prompt logprobs": {"prompt_logprobs": 1},
    "choices": {"temperature": 1.0, "n": 4},
    "one token": {"max_tokens": 1},
    "until the context is full": {"max_tokens": None},
}


@pytest.mark.parametrize("accuracy", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_without_drafts(kind: str, accuracy: float) -> None:
    got, right, drafter, _ = with_and_without([request(**KINDS[kind])], accuracy, max_rows=40)
    assert got == right
    kept = sum(accepted for _, accepted in drafter.outcomes)
    assert kept > 0 or kind == "one token" or accuracy < 1


@pytest.mark.parametrize("accuracy", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("setting", ["cpu", "device", "ranking device", "native sampler", "few tokens", "few blocks"])
def test_all_together(setting: str, accuracy: float) -> None:
    models = {"device": FakeDevice((None,)), "ranking device": FakeRankingDevice((None,))}
    samplers: dict[str, SamplerProtocol] = {"ranking device": TopKSampler(VOCAB), "native sampler": Sampler(VOCAB)}
    options: dict[str, Any] = {
        "model": models.get(setting, FakeModel((None,))),
        "sampler": samplers.get(setting, ReferenceSampler()),
        "max_batch_tokens": 7 if setting == "few tokens" else 64,
        "num_blocks": [7] if setting == "few blocks" else None,
        "max_num_seqs": 4,
        "max_rows": 40,
    }
    requests = [request(kind, PROMPT * (1 + i % 3), **params) for i, (kind, params) in enumerate(KINDS.items())]
    got, right, _, _ = with_and_without(requests, accuracy, **options)
    assert got == right


@pytest.mark.parametrize("accuracy", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("budget", [None, 0, 7])
def test_thinking_and_its_budget(budget: int | None, accuracy: float) -> None:
    vocabulary = ThinkingVocabulary(FakeTokenizer(), Marks("q", "z9", "."))
    thinking = Thinking(vocabulary, opened=True, budget=budget, answer=FakeGrammar(3))
    one = replace(request(temperature=1.0, seed=4, max_tokens=30), constraint=thinking)
    got, right, _, _ = with_and_without([one], accuracy)
    assert got == right
    text = got["r", 0][0]
    assert budget is None or text[budget : budget + 3] == "z9."


def test_right_drafts_come_together_and_save_steps() -> None:
    got, right, drafter, results = with_and_without([request(max_tokens=21)], 1.0)
    assert got == right
    # The draft after the prompt, then 7 tokens a step; no draft goes further than the end.
    assert [len(delta.token_ids) for result in results for delta in result.deltas] == [7, 7, 7]
    assert drafter.outcomes == [(6, 6)] * 3


def test_wrong_drafts_cost_no_step() -> None:
    _, _, drafter, results = with_and_without([request()], 0.0)
    assert len(results) == 20
    assert sum(accepted for _, accepted in drafter.outcomes) == 0


def test_what_is_drafted_after_a_stop_string_is_dropped() -> None:
    text = answers(run_alone(request()))["r", 0][0]
    got, right, drafter, _ = with_and_without([request(stop=(text[3:5],))], 1.0)
    assert got == right
    assert got["r", 0][0] == text[:3]
    assert drafter.outcomes == [(6, 5)]
    assert got["r", 0][3][3].completion_tokens == 5


def run_alone(one: Request) -> list[Delta]:
    engine = fake_engine()
    engine.add(one)
    return run(engine)[0]


def test_facts_of_drafts() -> None:
    answer = list(PROMPT) + answers(run_alone(request(max_tokens=10)))["r", 0][1]
    wrong = [*answer[:12], (answer[12] + 1) % VOCAB, *answer[13:]]
    drafter = FakeDrafter({}, longest=6)
    drafter._propose = lambda query: drafter.proposed.setdefault(query.key, wrong[len(query.tokens) :][:4])  # type: ignore[method-assign]
    engine = fake_engine(drafters=[drafter])
    engine.add(request(max_tokens=10))
    _, results = run(engine)
    counts = [result.drafts["fake"] for result in results]
    assert [c.num_draft_tokens for c in counts] == [4, 4, 1]
    assert [c.accepted_per_position for c in counts] == [(1, 1, 1, 1), (1, 1, 0, 0), (1,)]
    assert [r.num_generation_tokens for r in results] == [5, 3, 2]
    assert [len(r.ttft_s) for r in results] == [1, 0, 0]
    assert [len(r.inter_token_s) for r in results] == [4, 3, 2]
    usage = results[-1].deltas[-1].usage
    assert usage is not None
    assert (usage.draft_tokens, usage.accepted_draft_tokens) == (9, 7)
    (finished,) = results[-1].finished
    assert finished.first_token is not None
    assert 0 < sum(sum(r.inter_token_s) for r in results) <= finished.finished - finished.first_token + 1e-9
    assert len(set(results[1].inter_token_s)) == 1


def test_drafts_get_what_budget_and_rows_leave() -> None:
    drafter = FakeDrafter()
    model = FakeModel((None,))
    engine = fake_engine(model=model, max_batch_tokens=10, max_num_seqs=4, max_rows=7, drafters=[drafter])
    for id in "ab":
        engine.add(request(id, (3, 4)))
    engine.step()
    assert model.batches[-1] == (4, 4)  # 7 rows: 2 for the sequences themselves, and 2 drafts for each
    engine.add(request("c", PROMPT * 4))
    engine.step()
    assert model.batches[-1] == (1, 1, 8)  # a prompt goes before drafts


def test_drafts_take_no_blocks_from_anybody() -> None:
    drafter = FakeDrafter()
    drafter.active = False
    model = FakeModel((None,))
    engine = fake_engine(model=model, num_blocks=[3], max_context=48, max_num_seqs=2, max_rows=40, drafters=[drafter])
    engine.add(request("a", (3,) * 14))
    engine.add(request("b", (4,) * 16))
    engine.step()
    drafter.active = True
    result = engine.step()
    assert model.batches[-1] == (1 + 1, 1 + 6)  # b's token took the last block: a's draft has one slot left in its own
    assert result.num_preempted == 0


def test_of_several_drafters_the_first_that_has_a_guess_is_taken() -> None:
    silent, loud = FakeDrafter(longest=0, name="silent"), FakeDrafter(name="loud")
    engine = fake_engine(drafters=[silent, loud])
    engine.add(request())
    assert list(engine.step().drafts) == ["loud"]
    loud.active = False
    assert not engine.step().drafts


def test_a_device_is_planned_ahead_while_no_drafter_is_active() -> None:
    drafter = FakeDrafter(accuracy=0.0)
    model = FakeDevice((None,))
    engine = fake_engine(model=model, drafters=[drafter])
    engine.add(request(max_tokens=6))
    engine.step()
    assert model.log[-1] == ("wait", 1)
    drafter.active = False
    engine.step()
    assert model.log[-1] == ("launch", 3)
    drafter.active = True
    run(engine)
    assert len(model.batches) <= 6
