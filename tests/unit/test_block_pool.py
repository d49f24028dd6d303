"""The pool of blocks: who holds what, and what goes next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagoda.kv.blocks import BlockPool


def test_low_blocks_go_first_and_the_last_freed_blank_is_next() -> None:
    pool = BlockPool(4)
    assert [pool.allocate() for _ in range(3)] == [(0, False), (1, False), (2, False)]
    pool.release(0, keep=False)
    pool.release(2, keep=False)
    assert [pool.allocate()[0] for _ in range(3)] == [2, 0, 3]


def test_kept_blocks_go_last_the_least_recently_used_first() -> None:
    pool = BlockPool(3)
    blocks = [pool.allocate()[0] for _ in range(3)]
    for block in blocks:
        pool.release(block, keep=True)
    pool.share(0)  # used again
    pool.release(0, keep=True)
    assert [pool.allocate() for _ in range(3)] == [(1, True), (2, True), (0, True)]


def test_a_shared_block_is_free_after_the_last_holder() -> None:
    pool = BlockPool(1)
    block, _ = pool.allocate()
    pool.share(block)
    pool.release(block, keep=False)
    assert pool.num_free == 0
    pool.release(block, keep=False)
    assert pool.num_free == 1


def test_a_block_released_too_often_is_our_mistake() -> None:
    pool = BlockPool(1)
    block, _ = pool.allocate()
    pool.release(block, keep=True)
    with pytest.raises(AssertionError, match="too often"):
        pool.release(block, keep=True)


@given(st.integers(1, 9), st.data())
def test_allocating_all_gives_every_block_once(num_blocks: int, data: st.DataObject) -> None:
    pool = BlockPool(num_blocks)
    for block in [pool.allocate()[0] for _ in range(num_blocks)]:
        pool.release(block, keep=data.draw(st.booleans()))
    assert sorted(pool.allocate()[0] for _ in range(num_blocks)) == list(range(num_blocks))
    assert pool.num_free == 0


class PoolMachine(RuleBasedStateMachine):
    """Against a model: a list of holders."""

    @initialize(num_blocks=st.integers(1, 6))
    def start(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.held: list[int] = []
        self.kept: list[int] = []

    @precondition(lambda self: self.pool.num_free)
    @rule()
    def allocate(self) -> None:
        block, was_kept = self.pool.allocate()
        assert block not in self.held
        assert was_kept == (block in self.kept)
        if was_kept:
            assert self.kept.pop(0) == block
        self.held.append(block)

    @precondition(lambda self: self.held or self.kept)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.held + self.kept))
        self.pool.share(block)
        self.held.append(block)
        if block in self.kept:
            self.kept.remove(block)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), keep=st.booleans())
    def release(self, data: st.DataObject, keep: bool) -> None:
        block = data.draw(st.sampled_from(self.held))
        self.pool.release(block, keep=keep)
        self.held.remove(block)
        if keep and block not in self.held:
            self.kept.append(block)

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check()
            assert self.pool.num_used == len(set(self.held))
            assert all(self.pool.refs(block) == self.held.count(block) for block in range(self.pool.num_blocks))


TestPoolMachine = PoolMachine.TestCase
