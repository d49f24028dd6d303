"""Constrained answers: every token obeys, on every way on which tokens are sampled, and forced tokens save steps."""

from __future__ import annotations

import functools
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fake_backend import EOS_ID, VOCAB_SIZE, FakeDevice, FakeModel, FakeRankingDevice, fake_engine
from fake_constraint import FakeConstraint, FakeGrammar
from fake_drafters import FakeDrafter
from pagoda.engine.engine import Engine
from pagoda.sampling.base import SamplerProtocol
from pagoda.sampling.reference import ReferenceSampler
from pagoda.sampling.sampler import Sampler
from pagoda.sampling.top_k import TopKSampler
from pagoda.types import Batch, Delta, FloatArray, Request, SamplingParams, StepResult, UInt32Array
from serving import HANG_S

PROMPT = (5, 9, 20, 11, 30)
SEEDS = (1, 4, 5, 8, 13)


def request(grammar: FakeGrammar | None, id: str = "r", prompt: tuple[int, ...] = PROMPT, **params: Any) -> Request:
    params = {"temperature": 0.0, "max_tokens": 30, **params}
    return Request(id, prompt, SamplingParams(**params), 0.0, constraint=grammar)


def run(engine: Engine) -> tuple[list[Delta], list[StepResult]]:
    results = []
    while engine.has_work:
        results.append(engine.step())
        engine.check()
    engine.close()
    assert engine.kv.num_used_blocks == 0
    return [delta for result in results for delta in result.deltas], results


def answers(deltas: list[Delta]) -> dict[tuple[str, int], tuple[Any, ...]]:
    found: dict[tuple[str, int], tuple[Any, ...]] = {}
    for key in sorted({(delta.request_id, delta.index) for delta in deltas}):
        own = [delta for delta in deltas if (delta.request_id, delta.index) == key]
        assert all(delta.finish_reason is None for delta in own[:-1])
        token_ids = [token_id for delta in own for token_id in delta.token_ids]
        last = own[-1]
        found[key] = ("".join(d.text for d in own), token_ids, last.finish_reason, last.stop_reason, last.error)
    return found


def one_by_one(requests: list[Request]) -> dict[tuple[str, int], tuple[Any, ...]]:
    """What they get where nothing is forced, each in an engine of its own."""
    found = {}
    for one in requests:
        engine = fake_engine()
        grammar = one.constraint
        assert isinstance(grammar, FakeGrammar)
        engine.add(replace(one, constraint=replace(grammar, forces=False)))
        found |= answers(run(engine)[0])
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_every_token_obeys(seed: int) -> None:
    engine = fake_engine()
    engine.add(request(FakeGrammar(seed), temperature=1.0, n=3))
    for (_, _), (_, token_ids, reason, _, _) in answers(run(engine)[0]).items():
        constraint = FakeGrammar(seed).start()
        for token_id in token_ids:
            constraint.accept(token_id)  # asserts that it is allowed
        assert reason == ("stop" if constraint.finished or token_ids[-1] == EOS_ID else "length")


KINDS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 3, "n": 3},
    {"temperature": 1.0, "repetition_penalty": 1.3, "min_tokens": 5},
    {"temperature": 1.0, "seed": 8, "stop": ("q", "7", "e")},
    {"temperature": 1.0, "stop_token_ids": tuple(range(10)), "min_tokens": 3},
    {"temperature": 1.0, "logprobs": 1},
    {"temperature": 1.0, "mirostat": 2, "mirostat_tau": 2.0},
    {"temperature": 1.0, "dry_multiplier": 0.8, "xtc_probability": 0.5, "min_p": 0.02},
    {"temperature": 1.0, "ignore_eos": True, "max_tokens": None},
    {"bad_words": ("k", "ab"), "logit_bias": {7: -100.0}},
    {"allowed_token_ids": tuple(range(30))},
    {"prompt_logprobs": 0, "max_tokens": 1},
]


@functools.cache
def many_requests() -> tuple[list[Request], dict[tuple[str, int], tuple[Any, ...]]]:
    """→ (requests of all kinds, what they get one token a step)"""
    requests = [
        request(FakeGrammar(seed), f"{seed}-{i}", PROMPT * (1 + i % 3), **params)
        for seed in SEEDS
        for i, params in enumerate(KINDS)
    ]
    return requests, one_by_one(requests)


@pytest.mark.parametrize("accuracy", [None, 0.5, 1.0])
@pytest.mark.parametrize("setting", ["cpu", "device", "ranking device", "native sampler", "few tokens", "few blocks"])
def test_answers_are_those_of_one_token_a_step(setting: str, accuracy: float | None) -> None:
    requests, right = many_requests()
    prompts = {one.id: one.prompt_token_ids for one in requests}
    known = {key: [*prompts[key[0]], *answer[1]] for key, answer in right.items()}
    models = {"device": FakeDevice((None,)), "ranking device": FakeRankingDevice((None,))}
    samplers: dict[str, SamplerProtocol] = {
        "ranking device": TopKSampler(VOCAB_SIZE),
        "native sampler": Sampler(VOCAB_SIZE),
    }
    engine = fake_engine(
        model=models.get(setting, FakeModel((None,))),
        sampler=samplers.get(setting, ReferenceSampler()),
        max_batch_tokens=7 if setting == "few tokens" else 64,
        num_blocks=[7] if setting == "few blocks" else None,
        max_num_seqs=6,
        max_rows=40,
        drafters=[] if accuracy is None else [FakeDrafter(known, accuracy=accuracy)],
    )
    for one in requests:
        engine.add(one)
    assert answers(run(engine)[0]) == right


def forcing_grammar() -> FakeGrammar:
    """One that begins with a choice, and goes on with several forced tokens."""
    for seed in range(1000):
        grammar = FakeGrammar(seed)
        constraint = grammar.start()
        if len(constraint.rules[0]) > 1:
            found = [FakeConstraint(grammar) for _ in constraint.rules[0]]
            for token_id, each in zip(constraint.rules[0], found, strict=True):
                each.accept(token_id)
            if all(len(each.forced()) > 3 for each in found):
                return grammar
    raise AssertionError("no such grammar")


@pytest.mark.parametrize("model", [FakeModel, FakeDevice])
def test_forced_tokens_come_at_once_and_are_computed_together(model: type[FakeModel]) -> None:
    grammar = forcing_grammar()
    right = one_by_one([request(grammar, max_tokens=6)])
    loaded = model((None,))
    engine = fake_engine(model=loaded)
    engine.add(request(grammar, max_tokens=6))
    deltas, results = run(engine)
    assert answers(deltas) == right
    assert len(deltas[0].token_ids) > 3
    assert sum(result.num_forced_tokens for result in results) == sum(len(delta.token_ids) - 1 for delta in deltas)
    num_steps = 6 if model is FakeModel else 7  # one was planned before tokens were forced
    assert len(loaded.batches) < num_steps


def test_forced_tokens_have_logprobs_where_they_are_asked_for() -> None:
    grammar = forcing_grammar()
    engine = fake_engine()
    engine.add(request(grammar, max_tokens=6, logprobs=0))
    deltas, results = run(engine)
    assert [[entry.chosen.token_id for entry in d.logprobs or ()] for d in deltas] == [
        list(d.token_ids) for d in deltas
    ]
    assert sum(result.num_forced_tokens for result in results) == 0


def test_a_grammar_that_gives_up_ends_its_own_sequence() -> None:
    engine = fake_engine()
    engine.add(request(replace(FakeGrammar(5), fails_after=2, forces=False), "bad", temperature=1.0, n=2))
    engine.add(request(None, "good", max_tokens=8, ignore_eos=True))
    deltas, _ = run(engine)
    for index in range(2):
        own = [delta for delta in deltas if (delta.request_id, delta.index) == ("bad", index)]
        assert [delta.finish_reason for delta in own] == [None, None, "error"]
        assert own[-1].error == "the grammar is too complex"
        assert own[-1].fault == "request"
    assert sum(len(delta.token_ids) for delta in deltas if delta.request_id == "good") == 8


def test_a_mask_that_leaves_nothing_ends_with_the_reason() -> None:
    class Nothing(FakeConstraint):
        def fill(self, allowed: UInt32Array) -> str | None:
            allowed[:] = 0
            return None

    class Grammar(FakeGrammar):
        def start(self) -> FakeConstraint:
            return Nothing(self)

    engine = fake_engine()
    engine.add(request(Grammar(1)))
    ((_, token_ids, reason, _, error),) = answers(run(engine)[0]).values()
    assert (token_ids, reason) == ([], "error")
    assert "ruled out by masks" in error


@pytest.mark.parametrize("model", [FakeModel, FakeDevice])
def test_masks_are_computed_while_the_model_computes(model: type[FakeModel]) -> None:
    """The forward pass does not end before the mask is there: it would wait for ever if the mask came after it."""
    filled = threading.Semaphore(0)

    class Beside(FakeConstraint):
        def fill(self, allowed: UInt32Array) -> str | None:
            assert threading.current_thread() is not threading.main_thread()
            error = super().fill(allowed)
            filled.release()
            return error

    class Grammar(FakeGrammar):
        def start(self) -> FakeConstraint:
            return Beside(self)

    class Waiting(model):  # type: ignore[misc, valid-type]
        def answer(self, batch: Batch) -> FloatArray:
            if len(batch.logit_rows):
                assert filled.acquire(timeout=HANG_S)
            return super().answer(batch)

    engine = fake_engine(model=Waiting((None,)))
    engine.add(request(Grammar(2, forces=False), max_tokens=5, temperature=1.0))
    run(engine)


def test_a_draft_that_the_grammar_forbids_is_not_computed() -> None:
    grammar = FakeGrammar(13)
    free = next(token_id for token_id in range(VOCAB_SIZE) if token_id not in grammar.start().rules[0])
    drafter = FakeDrafter()
    drafter._propose = lambda query: drafter.proposed.setdefault(query.key, [free] * 4)  # type: ignore[method-assign]
    model = FakeModel((None,))
    engine = fake_engine(model=model, drafters=[drafter])
    engine.add(request(grammar))
    engine.step()
    assert model.batches == [(len(PROMPT),)]
    drafter.proposed.clear()
    engine.abort("r")
    run(engine)


def test_masks_have_a_bit_for_each_token() -> None:
    mask = np.zeros(-(-VOCAB_SIZE // 32), np.uint32)
    constraint = FakeGrammar(4).start()
    constraint.fill(mask)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    assert np.flatnonzero(bits).tolist() == sorted(constraint.rules[0])
