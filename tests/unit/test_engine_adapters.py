"""Adapters in the engine: how many a step has, who waits for whom, and whose prefixes are shared."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_backend import fake_engine
from pagoda.types import LoadedAdapter, Request, SamplingParams

ADAPTERS = [LoadedAdapter(name, f"digest of {name}", name) for name in "abcde"]


def request(
    id: int, adapter: LoadedAdapter | None, *, max_tokens: int = 6, prompt: tuple[int, ...] = (5, 9)
) -> Request:
    return Request(str(id), prompt, SamplingParams(temperature=0.0, max_tokens=max_tokens), 0.0, adapter=adapter)


@pytest.mark.parametrize("overlap", [False, True])
@settings(max_examples=40, deadline=None)
@given(
    asked=st.lists(st.tuples(st.integers(-1, 4), st.integers(1, 12)), min_size=1, max_size=24),
    max_loras=st.integers(1, 3),
    blocks=st.integers(6, 40),
)
def test_a_step_has_no_more_adapters_than_it_may_and_all_get_their_turn(
    overlap: bool, asked: list[tuple[int, int]], max_loras: int, blocks: int
) -> None:
    engine = fake_engine(max_loras=max_loras, num_blocks=[blocks], overlap=overlap)
    for i, (which, max_tokens) in enumerate(asked):
        engine.add(request(i, None if which < 0 else ADAPTERS[which], max_tokens=max_tokens))
    ended, steps = set(), 0
    while engine.has_work:
        ended |= {one.request_id for one in engine.step().finished}
        engine.check()
        running = {seq.request.adapter for seq in engine.scheduler.running if seq.request.adapter is not None}
        assert len(running) <= max_loras
        steps += 1
        assert steps < 2000
    assert ended == {str(i) for i in range(len(asked))}


def test_requests_without_an_adapter_do_not_wait_for_one() -> None:
    engine = fake_engine(max_loras=1)
    for i, adapter in enumerate([ADAPTERS[0], ADAPTERS[1], None]):
        engine.add(request(i, adapter))
    engine.step()
    assert {seq.request.id for seq in engine.scheduler.running} == {"0", "2"}


def test_who_waits_longest_for_an_adapter_is_next() -> None:
    """Though more requests for the one that runs keep coming."""
    engine = fake_engine(max_loras=1)
    engine.add(request(0, ADAPTERS[0]))
    engine.step()
    engine.add(request(1, ADAPTERS[1]))
    engine.add(request(2, ADAPTERS[0]))
    order = []
    while engine.has_work:
        order += [one.request_id for one in engine.step().finished]
    assert order == ["0", "1", "2"]


def test_prefixes_are_shared_by_content() -> None:
    engine = fake_engine()
    prompt = tuple(range(2, 34))
    same = LoadedAdapter("another name", ADAPTERS[0].digest, "a")
    cached = []
    for i, adapter in enumerate([ADAPTERS[0], same, ADAPTERS[1], None]):
        engine.add(request(i, adapter, prompt=prompt))
        while engine.has_work:
            cached += [one.cached_tokens for one in engine.step().finished]
    assert cached == [0, 16, 0, 0]
