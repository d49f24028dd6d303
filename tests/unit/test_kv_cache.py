"""Block tables: growing, sharing by prefix and by fork, giving back what a window has passed."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import accumulate

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagoda.kv.cache import KVCache
from pagoda.kv.prefix import prefix_root
from pagoda.kv.table import BlockTable, peak_blocks
from pagoda.types import Int32Array

ROOT = prefix_root("", None)


class Cache:
    """A KVCache, the copies it asked for, and its open tables."""

    def __init__(self, windows: tuple[int | None, ...] = (None,), num_blocks: int = 8, **options: bool) -> None:
        self.copies: list[tuple[int, list[list[int]]]] = []
        self.kv = KVCache(windows, [num_blocks] * len(windows), max_seqs=3, max_context=128, copy=self.copy, **options)
        self.tables: list[BlockTable] = []

    def copy(self, group: int, pairs: Int32Array) -> None:
        assert pairs.dtype == np.int32
        self.copies.append((group, pairs.tolist()))

    def compute(self, tokens: list[int], table: BlockTable | None = None) -> BlockTable:
        """Get `tokens` into the cache, all of a sequence that had fewer or none."""
        if table is None:
            keys: list[bytes] = []
            num_cached = self.kv.match(ROOT, keys, array("i", tokens), len(tokens))
            table = self.kv.open(ROOT, keys, num_cached)
            self.tables.append(table)
        assert self.kv.can_grow(table, len(tokens))
        self.kv.grow(table, len(tokens))
        self.kv.commit(table, array("i", tokens), len(tokens))
        self.check()
        return table

    def fork(self, table: BlockTable) -> BlockTable:
        child = self.kv.fork(table)
        assert child is not None
        self.tables.append(child)
        self.check()
        return child

    def free(self, table: BlockTable) -> None:
        self.tables.remove(table)
        self.kv.free(table)
        self.check()

    def check(self) -> None:
        self.kv.check(self.tables)


def test_a_block_is_taken_when_a_token_needs_it() -> None:
    cache = Cache()
    table = cache.compute([1] * 16)
    assert table.blocks == [[0]]
    cache.compute([1] * 17, table)
    assert table.blocks == [[0, 1]]
    assert cache.kv.num_wasted_slots == 15
    cache.compute([1] * 32, table)
    assert table.num_blocks == 2
    assert cache.kv.num_wasted_slots == 0


def test_rows_are_what_the_backend_reads() -> None:
    cache = Cache()
    long, short = cache.compute([1] * 40), cache.compute([2] * 3)
    (rows,) = cache.kv.rows([short, long])
    assert rows.dtype == np.int32
    assert rows[1].tolist() == long.blocks[0]
    assert rows[0, :1].tolist() == short.blocks[0]


def test_a_prefix_is_shared_while_held_and_after() -> None:
    cache = Cache()
    first = cache.compute([1] * 40)
    second = cache.compute([1] * 33)
    assert second.blocks[0][:2] == first.blocks[0][:2]
    cache.free(first)
    cache.free(second)
    assert cache.kv.num_used_blocks == 0
    third = cache.compute([1] * 33)
    assert third.blocks[0][:2] == [0, 1]


def test_one_token_is_always_left_to_compute() -> None:
    cache = Cache()
    cache.compute([1] * 32)
    assert [cache.kv.match(ROOT, [], array("i", [1] * n), n) for n in (16, 17, 32, 33)] == [0, 1, 1, 2]


def test_another_root_shares_nothing() -> None:
    cache = Cache()
    cache.compute([1] * 32)
    assert cache.kv.match(prefix_root("salt", None), [], array("i", [1] * 33), 33) == 0


def test_without_prefix_caching_nothing_is_found() -> None:
    cache = Cache(prefix_caching=False)
    cache.compute([1] * 32)
    assert cache.kv.match(ROOT, [], array("i", [1] * 33), 33) == 0


def test_the_tail_of_a_prefix_is_evicted_before_its_head() -> None:
    cache = Cache(num_blocks=4)
    cache.free(cache.compute([1] * 48))
    other = cache.compute([2] * 32)  # the blank block, and one of the kept
    cache.free(other)
    assert cache.kv.match(ROOT, [], array("i", [1] * 49), 49) == 2


def test_a_reused_block_is_not_found_under_its_old_content() -> None:
    cache = Cache(num_blocks=2)
    cache.free(cache.compute([1] * 32))
    cache.compute([2] * 32)
    assert cache.kv.match(ROOT, [], array("i", [1] * 33), 33) == 0


def test_forks_share_until_they_write() -> None:
    cache = Cache()
    parent = cache.compute([1] * 20)
    child = cache.fork(parent)
    assert cache.kv.num_used_blocks == 2
    cache.compute([1] * 20 + [5], child)
    assert cache.copies == [(0, [[1, 2]])]
    assert child.blocks == [[0, 2]]
    cache.compute([1] * 20 + [6], parent)  # nobody else holds the old tail now
    assert len(cache.copies) == 1
    assert parent.blocks == [[0, 1]]


def test_forks_at_a_block_boundary_copy_nothing() -> None:
    for prefix_caching in (True, False):
        cache = Cache(prefix_caching=prefix_caching)
        parent = cache.compute([1] * 16)
        child = cache.fork(parent)
        cache.compute([1] * 17, child)
        cache.compute([1] * 17, parent)
        assert cache.copies == []
        assert parent.blocks[0][0] == child.blocks[0][0]
        assert parent.blocks[0][1] != child.blocks[0][1]


def test_a_copy_counts_as_a_block_to_take() -> None:
    cache = Cache(num_blocks=2)
    parent = cache.compute([1] * 20)
    child = cache.fork(parent)
    assert not cache.kv.can_grow(child, 21)
    cache.free(parent)
    assert cache.kv.can_grow(child, 21)


def test_no_row_no_fork() -> None:
    cache = Cache()
    table = cache.compute([1])
    cache.fork(table)
    cache.fork(table)
    assert cache.kv.fork(table) is None


def test_a_window_gives_back_what_it_has_passed() -> None:
    cache = Cache(windows=(None, 20))
    table = cache.compute([1] * 34)  # the next token, at position 34, sees 15 … 34
    assert table.first == [0, 0]
    cache.compute([1] * 35, table)
    assert table.first == [0, 1]
    assert cache.kv.rows([table])[1][0].tolist() == [-1, *table.blocks[1]]
    assert cache.kv.num_used_blocks == 3 + 2


def test_a_match_brings_only_the_windows_blocks() -> None:
    cache = Cache(windows=(None, 20))
    cache.free(cache.compute([1] * 64))
    table = cache.compute([1] * 65)
    assert table.num_tokens == 65
    assert table.blocks[0][:4] == [0, 1, 2, 3]
    assert (table.first[1], table.blocks[1][:2]) == (2, [2, 3])


def test_a_match_needs_all_of_the_window() -> None:
    cache = Cache(windows=(20,), num_blocks=4)
    cache.free(cache.compute([1] * 64))
    cache.free(cache.compute([2] * 16))  # evicts a block that the window had passed
    assert cache.kv.match(ROOT, [], array("i", [1] * 65), 65) == 4
    cache.free(cache.compute([3] * 32))  # evicts the other one, and the last
    assert cache.kv.match(ROOT, [], array("i", [1] * 65), 65) == 0


def test_what_others_will_need_is_not_given_away() -> None:
    cache = Cache(num_blocks=4)
    cache.free(cache.compute([1] * 32))  # two kept, two blank
    keys: list[bytes] = []
    num_cached = cache.kv.match(ROOT, keys, array("i", [1] * 64), 64)
    assert num_cached == 2
    assert cache.kv.can_open(keys, num_cached, 64, 64, [0, 0])  # two kept ones come back to life, two are taken
    assert not cache.kv.can_open(keys, num_cached, 64, 64, [1, 0])
    assert cache.kv.can_open(keys, num_cached, 48, 64, [1, 0])


@given(st.integers(1, 128), st.sampled_from([None, 1, 5, 16, 17, 40]), st.integers(1, 50))
def test_no_sequence_holds_more_than_its_peak(num_tokens: int, window: int | None, chunk: int) -> None:
    cache = Cache(windows=(window,))
    table = cache.kv.open(ROOT, [], 0)
    most = 0
    for end in [*range(chunk, num_tokens, chunk), num_tokens]:
        cache.kv.grow(table, end)
        most = max(most, cache.kv.num_used_blocks)
        cache.kv.commit(table, array("i", [1] * end), end)
    assert most <= peak_blocks(num_tokens, window, chunk)
    cache.kv.free(table)
    assert cache.kv.num_used_blocks == 0


# Truncation


def test_blocks_of_rejected_drafts_come_back() -> None:
    cache = Cache()
    table = cache.compute([1] * 15)
    cache.kv.grow(table, 15 + 20)  # a certain token and 19 drafts
    assert table.num_blocks == 3
    cache.kv.commit(table, array("i", [1] * 16), 16)
    cache.kv.truncate(table, 16)
    cache.check()
    assert (table.num_blocks, table.num_tokens, cache.kv.num_used_blocks) == (1, 16, 1)


def test_a_block_of_drafts_is_not_published() -> None:
    cache = Cache()
    table = cache.compute([1] * 10)
    cache.kv.grow(table, 32)
    cache.kv.commit(table, array("i", [1] * 12), 12)
    cache.kv.truncate(table, 12)
    assert cache.kv.match(ROOT, [], array("i", [1] * 33), 33) == 0


def test_what_is_truncated_and_written_again_is_not_found_under_its_old_content() -> None:
    cache = Cache()
    table = cache.compute([1] * 32)
    cache.kv.truncate(table, 20)
    cache.check()
    cache.compute([1] * 20 + [2] * 12, table)
    assert cache.kv.match(ROOT, [], array("i", [1] * 33), 33) == 1
    assert cache.kv.match(ROOT, [], array("i", [1] * 20 + [2] * 13), 33) == 2
    assert cache.copies == []


def test_a_truncated_block_that_another_sequence_holds_is_copied() -> None:
    cache = Cache()
    table, other = cache.compute([1] * 32), cache.compute([1] * 33)
    cache.kv.truncate(table, 20)
    cache.compute([1] * 20 + [2] * 12, table)
    assert cache.copies == [(0, [[other.blocks[0][1], table.blocks[0][1]]])]
    assert cache.kv.match(ROOT, [], array("i", [1] * 33), 33) == 2


def test_no_truncation_past_what_a_window_gave_back() -> None:
    cache = Cache(windows=(None, 20))
    table = cache.compute([1] * 64)  # the next token sees positions 45 … 64
    assert [cache.kv.can_truncate(table, n) for n in (64, 60, 51, 50)] == [True, True, True, False]
    cache.kv.truncate(table, 51)
    cache.check()
    assert cache.kv.can_grow(table, 64)


PIECES = [(1,) * 16, (1,) * 9 + (2,) * 7, (3,) * 5, (1,)]
texts = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map(lambda pieces: sum(pieces, ()))


def chain(tokens: Iterable[int]) -> list[int]:
    """For each token a number that stands for the text up to it."""
    return list(accumulate(tokens, lambda before, token: hash((before, token)), initial=0))[1:]


class KVMachine(RuleBasedStateMachine):
    """Random sequences of operations; every slot remembers which text was written to it, up to which token."""

    @initialize(
        windows=st.sampled_from([(None,), (20,), (None, 5), (33, None)]),
        num_blocks=st.integers(6, 16),
        prefix_caching=st.booleans(),
        num_states=st.integers(0, 9),
    )
    def start(self, windows: tuple[int | None, ...], num_blocks: int, prefix_caching: bool, num_states: int) -> None:
        self.windows = windows
        self.kv = KVCache(
            windows, [num_blocks] * len(windows), max_seqs=4, max_context=112, copy=self.copy,
            prefix_caching=prefix_caching, num_states=num_states, state_interval=32,
        )  # fmt: skip
        self.states: dict[int, int] = {}  # of each slot the text whose state was saved there
        self.slots: list[dict[tuple[int, int], int]] = [{} for _ in windows]
        self.live: list[tuple[BlockTable, array[int]]] = []

    def copy(self, group: int, pairs: Int32Array) -> None:
        for source, target in pairs.tolist():
            for slot in range(16):
                if (source, slot) in self.slots[group]:
                    self.slots[group][target, slot] = self.slots[group][source, slot]

    @rule(text=texts)
    def open(self, text: tuple[int, ...]) -> None:
        keys: list[bytes] = []
        tokens = array("i", text)
        num_cached = self.kv.match(ROOT, keys, tokens, len(tokens))
        if self.kv.can_open(keys, num_cached, len(tokens), 112, [0] * self.kv.num_pools):
            del keys[num_cached:]  # it goes on with other tokens
            self.live.append((self.kv.open(ROOT, keys, num_cached, len(tokens)), tokens[: num_cached * 16]))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), certain=texts, drafts=texts, num_accepted=st.integers(0, 3))
    def step(self, data: st.DataObject, certain: tuple[int, ...], drafts: tuple[int, ...], num_accepted: int) -> None:
        """Compute certain tokens and drafts, and keep some of the drafts."""
        table, tokens = data.draw(st.sampled_from(self.live))
        room = 112 - len(tokens) - len(certain)
        if room < 0:
            return
        drafts = drafts[:room]
        end = len(tokens) + len(certain) + len(drafts)
        if not self.kv.can_grow(table, end):
            return
        self.kv.grow(table, end - len(drafts))
        drafts = drafts[: self.kv.states.num_rewindable(len(drafts))]
        end = len(tokens) + len(certain) + len(drafts)
        self.kv.grow(table, end, num_drafts=len(drafts))
        written = chain([*tokens, *certain, *drafts])
        self.states |= {slot: written[length - 1] for length, slot in table.states.saves.items()}
        for g in range(len(self.windows)):
            for p in range(table.num_tokens, end):
                self.slots[g][self.slot(g, table, p)] = written[p]
        tokens.extend(certain + drafts[:num_accepted])
        self.kv.commit(table, tokens, len(tokens))
        self.kv.truncate(table, len(tokens))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), count=st.integers(1, 40))
    def truncate(self, data: st.DataObject, count: int) -> None:
        table, tokens = data.draw(st.sampled_from(self.live))
        left = max(0, len(tokens) - count)
        if self.kv.can_truncate(table, left):
            self.kv.truncate(table, left)
            del tokens[left:]

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        table, tokens = data.draw(st.sampled_from(self.live))
        child = self.kv.fork(table)
        if child is not None:
            self.live.append((child, tokens[:]))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.live))
        self.kv.free(one[0])
        self.live.remove(one)

    def slot(self, g: int, table: BlockTable, position: int) -> tuple[int, int]:
        return int(self.kv.rows([table])[g][0, position // 16]), position % 16

    @invariant()
    def every_sequence_finds_its_own_tokens(self) -> None:
        if not hasattr(self, "kv"):
            return
        self.kv.check([table for table, _ in self.live])
        for table, tokens in self.live:
            assert table.num_tokens == len(tokens)
            right = chain(tokens)
            if table.states.start is not None:
                assert self.states[table.states.start] == right[-1]
            for g, window in enumerate(self.windows):
                first = 0 if window is None else max(0, len(tokens) - window + 1)
                row = self.kv.rows([table])[g][0].tolist()
                found = [self.slots[g][row[p // 16], p % 16] for p in range(first, len(tokens))]
                assert found == right[first:]

    def teardown(self) -> None:
        if hasattr(self, "kv"):
            for table, _ in self.live:
                self.kv.free(table)
            assert self.kv.num_used_blocks == 0


TestKVMachine = KVMachine.TestCase
TestKVMachine.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
