"""Batch invariance with the real default model, bit for bit: tokens and logprobs are those that a request gets alone.

Alone means: in one batch of its own, the whole prompt in one chunk, nothing cached. The others come in one by one
while blocks are short, in chunks of random size, some are cancelled, some have several choices.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fake_drafters import FakeDrafter
from pagoda.config import EngineSettings
from pagoda.engine.load import LoadedEngine, load_engine
from pagoda.grammar.compiler import GrammarCompiler
from pagoda.grammar.constraint import CompiledGrammar, GrammarConstraint
from pagoda.grammar.source import GrammarSource
from pagoda.types import Delta, Request, SamplingParams, StepResult, TokenLogprobs

MAX_BATCH_TOKENS = 256
MAX_CONTEXT = 256
NUM_BLOCKS = 24  # 1.5 sequences of MAX_CONTEXT tokens

TEXT = """Sir Walter Elliot, of Kellynch Hall, in Somersetshire, was a man who, for his own amusement, never took up any
book but the Baronetage; there he found occupation for an idle hour, and consolation in a distressed one; there his
faculties were roused into admiration and respect, by contemplating the limited remnant of the earliest patents."""

SALTS = itertools.count()

Output = tuple[tuple[int, ...], tuple[TokenLogprobs, ...]]


@dataclass(frozen=True)
class Arrival:
    """A request that comes before step `at`, and perhaps goes away again."""

    at: int
    prompt: tuple[int, int]  # first token and length within TEXT, repeated
    params: SamplingParams
    abort_after: int | None

    def request(self, text_ids: list[int], id: str, salt: str) -> Request:
        start, length = self.prompt
        return Request(id, tuple((text_ids * 4)[start : start + length]), self.params, 0.0, cache_salt=salt)


def fresh_salt() -> str:
    """A salt under which nothing is in the prefix cache yet."""
    return str(next(SALTS))


arrivals = st.builds(
    Arrival,
    at=st.integers(0, 12),
    prompt=st.tuples(st.sampled_from([0, 0, 1, 16, 40]), st.sampled_from([1, 5, 16, 17, 33, 64, 90, 130, 200])),
    params=st.builds(
        SamplingParams,
        n=st.sampled_from([1, 1, 1, 2]),
        max_tokens=st.sampled_from([1, 6, 14]),
        temperature=st.sampled_from([0.0, 0.8]),
        seed=st.just(3),
        ignore_eos=st.just(True),
        logprobs=st.just(1),
    ),
    abort_after=st.sampled_from([None, None, None, 0, 5]),
)


@pytest.fixture(scope="module", params=["f16", "int16", "int8"])
def loaded(request: pytest.FixtureRequest, default_model: Path) -> Iterator[LoadedEngine]:
    kv_type: Literal["f16", "int16", "int8"] = request.param
    wide = {"max_num_seqs": 6, "max_context": MAX_CONTEXT, "max_batch_tokens": MAX_BATCH_TOKENS}
    probe = load_engine(EngineSettings(model=str(default_model), kv_type=kv_type, **wide))
    block_bytes = probe.kv_plan.footprint.block_bytes[0]
    probe.close()
    loaded = load_engine(
        EngineSettings(model=str(default_model), kv_type=kv_type, kv_memory_bytes=NUM_BLOCKS * block_bytes, **wide)
    )
    assert loaded.kv_plan.num_blocks == (NUM_BLOCKS,)
    yield loaded
    loaded.close()


class Alone:
    """What requests get when they have the engine to themselves; remembered, since examples repeat."""

    def __init__(self, loaded: LoadedEngine) -> None:
        self.loaded = loaded
        self.known: dict[object, list[Output]] = {}

    def __call__(self, arrival: Arrival, request: Request) -> list[Output]:
        key = (arrival.prompt, str(request.params))
        if key not in self.known:
            self.known[key] = self.compute(request)
        return self.known[key]

    def compute(self, request: Request) -> list[Output]:
        core = self.loaded.core
        core.scheduler.max_batch_tokens = MAX_BATCH_TOKENS
        core.add(replace(request, cache_salt=fresh_salt()))
        deltas: list[Delta] = []
        while core.has_work:
            deltas += core.step().deltas
        return [output(deltas, index) for index in range(request.params.n)]


def output(deltas: list[Delta], index: int) -> Output:
    own = [delta for delta in deltas if delta.index == index]
    return (
        tuple(token_id for delta in own for token_id in delta.token_ids),
        tuple(entry for delta in own for entry in delta.logprobs or ()),
    )


@pytest.fixture(scope="module")
def alone(loaded: LoadedEngine) -> Alone:
    return Alone(loaded)


@pytest.mark.slow
@settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
@given(st.lists(arrivals, min_size=3, max_size=7), st.lists(st.sampled_from([6, 17, 64, 256]), min_size=1, max_size=3))
def test_everybody_gets_what_they_get_alone(
    loaded: LoadedEngine, alone: Alone, coming: list[Arrival], budgets: list[int]
) -> None:
    text_ids = loaded.tokenizer.encode(TEXT)
    salt = fresh_salt()
    requests = {f"r{i}": arrival.request(text_ids, f"r{i}", salt) for i, arrival in enumerate(coming)}
    wanted = {id: alone(arrival, requests[id]) for id, arrival in zip(requests, coming, strict=True)}
    deltas, aborted = play(loaded, requests, coming, budgets)
    for id, request in requests.items():
        for index in range(request.params.n):
            tokens, logprobs = output([delta for delta in deltas if delta.request_id == id], index)
            count = len(tokens) if id in aborted else request.params.max_tokens
            assert (tokens, logprobs) == (wanted[id][index][0][:count], wanted[id][index][1][:count])
    assert loaded.core.kv.num_used_blocks == 0


def play(
    loaded: LoadedEngine, requests: dict[str, Request], coming: list[Arrival], budgets: list[int]
) -> tuple[list[Delta], set[str]]:
    """→ (all deltas, the requests that were cancelled)"""
    core, deltas, aborted, step = loaded.core, [], set(), 0
    while core.has_work or any(arrival.at >= step for arrival in coming):
        for (id, request), arrival in zip(requests.items(), coming, strict=True):
            if arrival.at == step:
                core.add(request)
            if arrival.abort_after is not None and arrival.at + arrival.abort_after + 1 == step and core.abort(id):
                aborted.add(id)
        core.scheduler.max_batch_tokens = budgets[step % len(budgets)]
        result: StepResult = core.step()
        core.check()
        deltas += result.deltas
        step += 1
    core.scheduler.max_batch_tokens = MAX_BATCH_TOKENS
    return deltas, aborted


def test_blocks_are_really_short(loaded: LoadedEngine, alone: Alone) -> None:
    """Four long sequences on 1.5 sequences' blocks: somebody is preempted, nobody is changed."""
    text_ids = loaded.tokenizer.encode(TEXT)
    params = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True, logprobs=1)
    coming = [Arrival(0, (i, 80), params, None) for i in range(4)]
    salt = fresh_salt()
    requests = {f"r{i}": arrival.request(text_ids, f"r{i}", salt) for i, arrival in enumerate(coming)}
    wanted = {id: alone(arrival, requests[id]) for id, arrival in zip(requests, coming, strict=True)}
    num_preempted, deltas = 0, []
    for request in requests.values():
        loaded.core.add(request)
    while loaded.core.has_work:
        result = loaded.core.step()
        num_preempted += result.num_preempted
        deltas += result.deltas
    assert num_preempted > 0
    for id in requests:
        assert output([delta for delta in deltas if delta.request_id == id], 0) == wanted[id][0]


def test_drafts_change_nothing(loaded: LoadedEngine, alone: Alone) -> None:
    """Right and wrong drafts in one batch: tokens and logprobs are those of one token a step."""
    text_ids = loaded.tokenizer.encode(TEXT)
    greedy = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True, logprobs=1)
    kinds = [greedy, replace(greedy, temperature=0.8, seed=3, repetition_penalty=1.1, n=2)]
    coming = [Arrival(0, (i, 50), kind, None) for i in range(3) for kind in kinds]
    requests = {f"r{i}": arrival.request(text_ids, f"r{i}", "") for i, arrival in enumerate(coming)}
    wanted = {id: alone(arrival, requests[id]) for id, arrival in zip(requests, coming, strict=True)}
    answers = {
        (id, index): [*requests[id].prompt_token_ids, *tokens]
        for id, outputs in wanted.items()
        for index, (tokens, _) in enumerate(outputs)
    }
    drafter = FakeDrafter(answers, accuracy=0.8, vocab_size=loaded.core.vocab_size)
    settings = replace(loaded.settings, kv_memory_bytes=80 * loaded.kv_plan.footprint.block_bytes[0])
    drafting = load_engine(settings, drafters=[drafter])
    for request in requests.values():
        drafting.core.add(request)
    deltas: list[Delta] = []
    while drafting.core.has_work:
        deltas += drafting.core.step().deltas
        drafting.core.check()
    drafting.close()
    for id, request in requests.items():
        own = [delta for delta in deltas if delta.request_id == id]
        assert [output(own, index) for index in range(request.params.n)] == wanted[id]
    assert sum(kept for _, kept in drafter.outcomes) > 50


class Unforced(GrammarConstraint):
    """A constraint that does not tell which tokens it forces."""

    __slots__ = ()

    def forced(self) -> list[int]:
        return []


class UnforcedGrammar:
    def __init__(self, grammar: CompiledGrammar) -> None:
        self.grammar = grammar

    def start(self) -> GrammarConstraint:
        constraint = self.grammar.start()
        constraint.__class__ = Unforced
        return constraint


def test_forced_tokens_change_nothing(loaded: LoadedEngine) -> None:
    """A JSON schema: its keys come at once, and the answers are those of one token a step, every token sampled."""
    schema = {
        "type": "object",
        "properties": {"first_name": {"type": "string", "maxLength": 9}, "favourite": {"enum": ["red", "green"]}},
        "required": ["first_name", "favourite"],
    }
    compiled = GrammarCompiler(loaded.tokenizer).compile(GrammarSource("json_schema", json.dumps(schema)))
    prompt = tuple(loaded.tokenizer.encode("Ada, described in JSON:"))
    answers, num_steps = [], []
    for constraint in (compiled, UnforcedGrammar(compiled)):
        for i, temperature in enumerate((0.0, 0.9)):
            params = SamplingParams(max_tokens=40, temperature=temperature, seed=i)
            loaded.core.add(Request(str(i), prompt, params, 0.0, cache_salt=fresh_salt(), constraint=constraint))
        deltas: list[Delta] = []
        num_steps.append(0)
        while loaded.core.has_work:
            deltas += loaded.core.step().deltas
            num_steps[-1] += 1
        texts = ["".join(delta.text for delta in deltas if delta.request_id == str(i)) for i in range(2)]
        assert all(json.loads(text)["favourite"] in ("red", "green") for text in texts)
        answers.append((texts, [output([d for d in deltas if d.request_id == str(i)], 0) for i in range(2)]))
    assert answers[0] == answers[1]
    assert num_steps[0] < num_steps[1]
