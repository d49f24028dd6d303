"""A draft model follows every sequence, whatever becomes of it, and changes no answer."""

from __future__ import annotations

import random
from array import array
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fake_backend import VOCAB_SIZE, FakeModel, fake_engine, mix
from fake_constraint import FakeGrammar
from pagoda.engine.drafters import DraftQuery, Price
from pagoda.engine.engine import Engine
from pagoda.engine.speculation.draft_model import DraftModelDrafter
from pagoda.engine.speculation.pacing import Pacer
from pagoda.sampling.base import StateSpec
from pagoda.sampling.reference import ReferenceSampler
from pagoda.types import BLOCK_SIZE, Batch, FloatArray, LoadedAdapter, Request, SamplingParams

PROMPT = (5, 9, 20, 11, 30)


class OtherModel(FakeModel):
    """A `FakeModel` that disagrees with it in about one row of `every`, and has a vocabulary of `vocab` tokens."""

    def __init__(self, windows: tuple[int | None, ...] = (None,), *, every: int = 3, vocab: int = VOCAB_SIZE) -> None:
        super().__init__(windows)
        self.every = every
        self.vocab = vocab

    def answer(self, batch: Batch) -> FloatArray:
        logits = super().answer(batch)
        wanted = (array[batch.logit_rows].astype(np.uint64) for array in (batch.tokens, batch.positions))
        seeds = mix(*wanted)
        for row, seed in enumerate(seeds.tolist()):
            if self.every and not seed % self.every:
                logits[row] = np.roll(logits[row], 1)
        missing = self.vocab - VOCAB_SIZE
        return np.pad(logits, ((0, 0), (0, missing)), constant_values=99.0) if missing > 0 else logits[:, : self.vocab]


def drafter_of(
    model: FakeModel, num_blocks: int = 48, *, max_context: int = 96, max_num_seqs: int = 8, chunk: int = 32
) -> DraftModelDrafter:
    return DraftModelDrafter(
        model,
        ReferenceSampler(),
        vocab_size=VOCAB_SIZE,
        windows=model.windows,
        num_blocks=[num_blocks] * len(model.windows),
        max_context=max_context,
        max_batch_tokens=chunk,
        max_num_seqs=max_num_seqs,
    )


def request(id: str = "r", prompt: tuple[int, ...] = PROMPT, **options: Any) -> Request:
    own = {name: options.pop(name) for name in ("constraint", "max_draft_tokens") if name in options}
    params = {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True, **options}
    return Request(id, prompt, SamplingParams(**params), 0.0, **own)


def run(engine: Engine, requests: list[Request], drafter: DraftModelDrafter | None = None) -> dict[Any, Any]:
    """→ tokens and the reason of the end of each choice"""
    found: dict[Any, list[Any]] = {}
    for one in requests:
        engine.add(one)
    while engine.has_work:
        for delta in engine.step().deltas:
            found.setdefault((delta.request_id, delta.index), []).extend([*delta.token_ids, delta.finish_reason])
        engine.check()
        if drafter is not None:
            drafter.check()
    if drafter is not None:
        assert drafter.kv.num_used_blocks == 0
    return {key: [x for x in tokens if x is not None] for key, tokens in found.items()}


def mixed(temperature: float, seed: int = 0) -> list[Request]:
    rng = random.Random(seed)
    requests = []
    for i in range(10):
        prompt = tuple(rng.randrange(10, 20) for _ in range(rng.randrange(3, 50)))
        constraint = FakeGrammar(i) if i % 4 == 1 else None
        most = (None, None, 2, 0)[rng.randrange(4)]
        options = {"max_tokens": rng.randrange(1, 40), "seed": i, "n": 1 + i % 3, "frequency_penalty": i % 2 / 2}
        own = {"constraint": constraint, "max_draft_tokens": most}
        requests.append(request(str(i), prompt, temperature=temperature, **options, **own))
    return requests


@pytest.mark.parametrize("windows", [(None,), (None, 20)])
@pytest.mark.parametrize("draft_windows", [(None,), (17, None)])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("num_blocks", [48, 8])  # 8: sequences are preempted, and given up by the drafter
def test_answers_are_those_without(
    windows: tuple[int | None, ...], draft_windows: tuple[int | None, ...], temperature: float, num_blocks: int
) -> None:
    blocks = {"windows": windows, "num_blocks": [num_blocks] * len(windows)}
    plain = run(fake_engine(**blocks), mixed(temperature))
    drafter = drafter_of(OtherModel(draft_windows), num_blocks)
    assert run(fake_engine(**blocks, drafters=[drafter]), mixed(temperature), drafter) == plain


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_model_itself_as_draft_is_always_right(temperature: float) -> None:
    """It samples with the same random numbers, penalties and biases, so nothing is rejected."""
    options = {"temperature": temperature, "max_tokens": 40, "seed": 3, "presence_penalty": 0.5, "logit_bias": {7: 2.0}}
    drafter = drafter_of(FakeModel((None,)))
    engine = fake_engine(drafters=[drafter])
    engine.add(request(**options))
    counts = []
    while engine.has_work:
        counts += engine.step().drafts.values()
    assert sum(count.num_draft_tokens for count in counts) == sum(sum(c.accepted_per_position) for c in counts) > 30


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_it_drafts_what_the_grammar_allows(temperature: float) -> None:
    drafter = drafter_of(FakeModel((None,)))
    plain = run(fake_engine(), [request(temperature=temperature, seed=3, constraint=FakeGrammar(4, forces=False))])
    engine = fake_engine(drafters=[drafter], max_rows=20)
    engine.add(request(temperature=temperature, seed=3, constraint=FakeGrammar(4, forces=False)))
    counts, tokens = [], []
    while engine.has_work:
        result = engine.step()
        counts += result.drafts.values()
        tokens += [token for delta in result.deltas for token in delta.token_ids]
    assert [*tokens, "length"] == plain["r", 0]
    assert sum(count.num_draft_tokens for count in counts) == sum(sum(c.accepted_per_position) for c in counts) > 3


def test_a_step_of_the_draft_serves_all_sequences() -> None:
    model = FakeModel((None,))
    engine = fake_engine(drafters=[drafter_of(model)], max_rows=40)
    for id in "abc":
        engine.add(request(id, (*PROMPT, ord(id) % 40)))
    engine.step()
    assert not model.batches  # the first token waits for nobody
    engine.step()
    assert model.batches[0] == (7, 7, 7)
    assert set(model.batches[1:]) == {(1, 1, 1)}


def test_what_was_right_is_not_computed_again() -> None:
    model = FakeModel((None,))
    drafter = drafter_of(model)
    run(fake_engine(drafters=[drafter], max_rows=8), [request(max_tokens=40)], drafter)
    assert model.batches[0] == (6,)
    assert {sum(batch) for batch in model.batches[1:]} <= {1, 2}  # the last draft token, and the one sampled after it


def test_a_long_prompt_is_followed_in_chunks() -> None:
    model = FakeModel((None,))
    drafter = drafter_of(model, chunk=16)
    engine = fake_engine(drafters=[drafter])
    run(engine, [request(prompt=PROMPT * 8, max_tokens=12)], drafter)
    assert model.batches[:3] == [(16,), (16,), (11,)]  # 40 tokens, and those of the steps meanwhile


def test_prompts_that_begin_alike_are_computed_once_a_tenant() -> None:
    model = FakeModel((None,))
    drafter = drafter_of(model, chunk=64)
    engine = fake_engine(drafters=[drafter])
    prompt = tuple(range(1, 1 + 2 * BLOCK_SIZE)) + PROMPT[:2]
    for id, tenant in (("a", "x"), ("b", "x"), ("c", "y")):
        one = Request(id, prompt, SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True), 0.0, tenant=tenant)
        run(engine, [one], drafter)
    whole = len(prompt) + 1
    assert [sum(batch) for batch in model.batches if sum(batch) > 2] == [whole, whole - 2 * BLOCK_SIZE, whole]


@pytest.mark.parametrize("vocab", [VOCAB_SIZE - 3, VOCAB_SIZE + 5])
def test_vocabularies_may_be_padded_differently(vocab: int) -> None:
    plain = run(fake_engine(), [request(temperature=0.7, seed=1)])
    drafter = drafter_of(OtherModel(vocab=vocab))
    assert run(fake_engine(drafters=[drafter]), [request(temperature=0.7, seed=1)], drafter) == plain


class AdaptedModel(FakeModel):
    """A `FakeModel` that says something else for sequences with an adapter."""

    def answer(self, batch: Batch) -> FloatArray:
        logits = super().answer(batch)
        if batch.adapter_of is not None:
            owner = np.searchsorted(batch.seq_starts, batch.logit_rows, side="right") - 1
            adapted = batch.adapter_of[owner] >= 0
            logits[adapted] = np.roll(logits[adapted], 3, axis=1)
        return logits


def test_the_draft_runs_without_adapters() -> None:
    adapter = LoadedAdapter("a", "digest", "placed")
    requests = [replace(request(id), adapter=own) for id, own in (("base", None), ("adapted", adapter))]
    plain = run(fake_engine(model=AdaptedModel((None,))), requests)
    assert plain["base", 0] != plain["adapted", 0]
    draft = FakeModel((None,))
    drafter = drafter_of(draft)
    engine = fake_engine(model=AdaptedModel((None,)), drafters=[drafter], max_rows=20)
    assert run(engine, requests, drafter) == plain
    assert len(draft.batches) > 3


def test_beyond_the_drafts_own_context_nothing_is_drafted() -> None:
    drafter = drafter_of(FakeModel((None,)), max_context=16)
    plain = run(fake_engine(), [request(max_tokens=60)])
    assert run(fake_engine(drafters=[drafter]), [request(max_tokens=60)], drafter) == plain


def test_cancelled_sequences_leave_nothing() -> None:
    drafter = drafter_of(OtherModel())
    engine = fake_engine(drafters=[drafter])
    for id in "ab":
        engine.add(request(id, max_tokens=40))
    for _ in range(3):
        engine.step()
    assert drafter.kv.num_used_blocks > 0
    engine.abort("a")
    engine.abort("b")
    engine.step()
    assert drafter.kv.num_used_blocks == 0


def test_it_is_asked_for_as_much_as_it_is_worth() -> None:
    def lengths(step: float, further: float, every: int) -> set[int]:
        pace = Pacer()
        for n in (1, 2, 4, 8, 16):
            pace.observe(n, 0.010 * (1 + 0.05 * (n - 1)))
        model = OtherModel(every=every)
        drafter = drafter_of(model)
        drafter.times.observe = lambda num_tokens, seconds: None  # type: ignore[method-assign]
        drafter.times._times = {1: step, 2: step + further}
        engine = fake_engine(drafters=[drafter], pace=_Fixed(pace), max_rows=40)
        drafted: set[int] = set()
        for i in range(3):
            engine.add(request(str(i), (*PROMPT, i), max_tokens=60))
            while engine.has_work:
                drafted |= {count.num_draft_tokens for count in engine.step().drafts.values()}
        return drafted

    cheap, dear = lengths(0.0005, 0.0, every=50), lengths(0.009, 0.0, every=2)
    assert max(cheap) > 4
    assert max(dear, default=0) <= 1


def test_a_sequence_that_is_far_behind_costs_more_the_sooner_it_ends() -> None:
    drafter = drafter_of(FakeModel((None,)))
    drafter.times._times = {1: 0.001, 64: 0.064}

    def first(prompt_len: int, max_tokens: int | None) -> float:
        tokens = array("i", [3] * (prompt_len + 1))
        one = request(prompt=tuple(tokens[:prompt_len]), max_tokens=max_tokens)
        state = ReferenceSampler().open(StateSpec(one.params, one.prompt_token_ids, 0, 0))
        price = drafter.price([DraftQuery(("r", 0), tokens, prompt_len, one, state, 4)])
        assert price is not None
        assert price.further == pytest.approx(0.001)
        return price.first

    assert first(3, 50) == pytest.approx(0.004)  # four tokens, each a millisecond
    assert first(15, 50) == pytest.approx(0.016)
    assert first(79, 2) == pytest.approx(0.016 + 0.064)  # 64 tokens more, which one step is to pay
    assert first(79, 33) == pytest.approx(0.016 + 0.064 / 16)
    assert first(79, None) == pytest.approx(0.016 + 0.064 / 8)  # until the context is full


class _Fixed:
    """A pace whose times are not those of this machine."""

    def __init__(self, pace: Pacer) -> None:
        self.choose, self.afford, self.may_pay = pace.choose, pace.afford, pace.may_pay
        self.verified, self.forget = pace.verified, pace.forget

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Not measured."""


def test_a_drafter_that_does_not_pay_is_tried_again() -> None:
    pace = Pacer()
    for n in (1, 4):
        pace.observe(n, 0.010)
    price = Price(0.004, 0.004, 2)
    key = ("r", 0)
    assert pace.afford("draft", price, [key], 1, 1) > 0
    for _ in range(100):
        pace.verified(key, "draft", 2, 1, 0)
    waited = 0
    while not pace.afford("draft", price, [key], 1, 1):
        waited += 1
        assert waited < 3000
    assert waited > 10
