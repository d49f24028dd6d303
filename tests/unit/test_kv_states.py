"""Slots of states: where a step begins and saves, what is kept for prefixes, and what must never be written over."""

from __future__ import annotations

import numpy as np
import pytest

from pagoda.kv.states import HeldStates, StatePool

KEYS = [bytes([i]) for i in range(20)]


def stepped(pool: StatePool, held: HeldStates, start: int, end: int, num_drafts: int = 0) -> HeldStates:
    """Computes tokens [start, end) and takes all as certain."""
    pool.grow(held, start, end - num_drafts, 0)
    pool.grow(held, start, end, num_drafts)
    pool.commit(held, KEYS, end)
    return held


def test_a_state_of_ones_own_is_written_over() -> None:
    pool = StatePool(3, 32)
    held = stepped(pool, pool.open([], 0, 0), 0, 5)
    first = held.start
    assert stepped(pool, held, 5, 6).start == first
    assert pool.pool.num_used == 1


def test_a_snapshot_is_kept_and_found() -> None:
    pool = StatePool(4, 32)
    held = stepped(pool, pool.open([], 0, 0), 0, 70)
    assert pool.prefix.usable(KEYS[:5]) == [True, False, True, False, True, False], "after 32 tokens, and after 64"
    other = pool.open(KEYS, 4, 0)
    assert other.start not in (None, held.start)
    pool.free(held)
    pool.free(other)
    pool.check([])
    assert pool.prefix.usable(KEYS[:2])[2], "nobody holds it, but it is still there"


def test_the_end_of_a_prompt_is_a_snapshot_too() -> None:
    pool = StatePool(4, 1024)
    held = stepped(pool, pool.open([], 0, 53), 0, 53)
    assert pool.prefix.usable(KEYS[:3]) == [True, False, False, True]
    stepped(pool, held, 53, 64)
    assert not pool.prefix.usable(KEYS[:4])[4]


def test_a_snapshot_that_a_sequence_stands_on_is_not_written_over_while_there_is_room() -> None:
    pool = StatePool(2, 16)
    held = stepped(pool, pool.open([], 0, 0), 0, 16)
    kept = held.start
    assert stepped(pool, held, 16, 17).start != kept
    assert pool.prefix.usable(KEYS[:1])[1]


def test_without_room_it_is_given_up() -> None:
    pool = StatePool(1, 16)
    held = stepped(pool, pool.open([], 0, 0), 0, 16)
    assert pool.prefix.usable(KEYS[:1])[1]
    assert pool.can_grow(held)
    stepped(pool, held, 16, 17)
    assert not pool.prefix.usable(KEYS[:1])[1]
    pool.check([held])


def test_forks_go_on_from_one_state_each_in_a_place_of_its_own() -> None:
    pool = StatePool(2, None)
    held = stepped(pool, pool.open([], 0, 0), 0, 5)
    child = pool.fork(held)
    assert child.start == held.start
    assert pool.num_missing(held) == pool.num_missing(child) == 1
    stepped(pool, held, 5, 6)
    assert pool.num_missing(child) == 0, "it has the place to itself by now"
    assert stepped(pool, child, 5, 6).start != held.start


@pytest.mark.parametrize("num_accepted", [0, 1, 3])
def test_a_sequence_goes_on_after_the_last_draft_that_was_right(num_accepted: int) -> None:
    pool = StatePool(6, None)
    held = stepped(pool, pool.open([], 0, 0), 0, 5)
    pool.grow(held, 5, 6, 0)
    pool.grow(held, 5, 9, 3)
    wanted = held.saves[6 + num_accepted]
    pool.commit(held, KEYS, 6 + num_accepted)
    assert held.start == wanted
    assert pool.pool.num_used == 1
    pool.check([held])


def test_drafts_leave_what_others_need() -> None:
    pool = StatePool(4, None)
    stepped(pool, pool.open([], 0, 0), 0, 5)
    assert pool.num_rewindable(9) == 3
    pool.open([], 0, 0)
    assert pool.num_rewindable(9) == 2, "the new sequence must have one"


def test_rows_say_where_each_token_of_a_batch_saves() -> None:
    pool = StatePool(8, 16)
    first, second = pool.open([], 0, 0), stepped(pool, pool.open([], 0, 0), 0, 7)
    pool.grow(first, 0, 20, 0)
    pool.grow(second, 7, 8, 0)
    pool.grow(second, 7, 10, 2)
    rows = pool.rows([(first, 0), (second, 7)], np.array([0, 20, 23], np.int32))
    assert rows is not None
    starts, saves = rows
    assert starts.tolist() == [-1, second.start]
    assert {i: int(slot) for i, slot in enumerate(saves) if slot >= 0} == {
        15: first.saves[16],
        19: first.saves[20],
        20: second.saves[8],
        21: second.saves[9],
        22: second.saves[10],
    }


def test_of_earlier_tokens_a_state_says_nothing() -> None:
    pool = StatePool(2, None)
    held = stepped(pool, pool.open([], 0, 0), 0, 9)
    assert [pool.can_truncate(n, 9) for n in (9, 8, 1, 0)] == [True, False, False, True]
    pool.restart(held)
    assert (held.start, pool.pool.num_used) == (None, 0)
