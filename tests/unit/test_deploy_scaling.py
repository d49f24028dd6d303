"""How many engines a load asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda.deploy.scaling import EngineLoad, Targets, engines_for

TARGETS = Targets(requests=8, kv_usage=0.8)
IDLE = EngineLoad(0, 0, 0.0)


@pytest.mark.parametrize(
    ("loads", "now", "wanted"),
    [
        ([IDLE], 1, 1),
        ([IDLE, IDLE, IDLE], 3, 1),  # nothing to do: one is left
        ([EngineLoad(8, 0, 0.1)], 1, 1),  # exactly what one is to have
        ([EngineLoad(8, 8, 0.1)], 1, 2),  # a queue as long as what runs
        ([EngineLoad(8, 24, 0.1)], 1, 4),
        ([EngineLoad(4, 0, 0.8)], 1, 1),  # few, but long: the memory is full
        ([EngineLoad(4, 4, 0.8)], 1, 2),  # and those that wait will want as much
        ([EngineLoad(8, 0, 0.1), EngineLoad(8, 0, 0.1)], 2, 2),
        ([EngineLoad(8, 0, 0.1), EngineLoad(1, 0, 0.1)], 2, 2),
        ([EngineLoad(4, 0, 0.1), EngineLoad(4, 0, 0.1)], 2, 1),  # one can have all of it
        ([EngineLoad(8.7, 0, 0.1)], 1, 1),  # a little more than one's share
        ([EngineLoad(8.9, 0, 0.1)], 1, 2),
        ([EngineLoad(0, 6, 0.0)], 1, 1),  # no step has been taken yet
        ([EngineLoad(0.1, 6, 0.01)], 1, 1),  # a mean over a while that began without work
    ],
)
def test_demands_are_added_and_rounded_up(loads: list[EngineLoad], now: int, wanted: int) -> None:
    assert engines_for(loads, now, TARGETS) == wanted


def test_engines_that_say_nothing_change_nothing() -> None:
    assert engines_for([], 3, TARGETS) == 3
    assert engines_for([EngineLoad(8, 8, 0.1)], 2, TARGETS) == 2  # the second is still starting


LOADS = st.builds(EngineLoad, st.floats(0, 64), st.floats(0, 256), st.floats(0, 1))


@given(st.lists(LOADS, min_size=1, max_size=8), st.integers(1, 8), LOADS)
def test_more_work_never_asks_for_fewer(loads: list[EngineLoad], now: int, more: EngineLoad) -> None:
    assert engines_for([*loads, more], now, TARGETS) >= engines_for(loads, now, TARGETS)


@given(st.lists(LOADS, min_size=1, max_size=8), st.integers(1, 8))
def test_the_number_settles_at_once(loads: list[EngineLoad], now: int) -> None:
    """With the same loads, what is asked for does not go to and fro."""
    wanted = engines_for(loads, now, TARGETS)
    assert engines_for(loads, wanted, TARGETS) == wanted
