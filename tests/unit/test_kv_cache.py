"""Block tables: growing, sharing by prefix and by fork, giving back what a window has passed."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda.kv.cache import BlockTable, KVCache, blocks_for, peak_blocks
from pagoda.kv.prefix import prefix_root
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
    assert [blocks.count(-1) for blocks in table.blocks] == [0, 0]
    cache.compute([1] * 35, table)
    assert [blocks.count(-1) for blocks in table.blocks] == [0, 1]
    assert cache.kv.rows([table])[1][0].tolist() == table.blocks[1]
    assert cache.kv.num_used_blocks == 3 + 2


def test_a_match_brings_only_the_windows_blocks() -> None:
    cache = Cache(windows=(None, 20))
    cache.free(cache.compute([1] * 64))
    table = cache.compute([1] * 65)
    assert table.num_tokens == 65
    assert table.blocks[0][:4] == [0, 1, 2, 3]
    assert table.blocks[1][:4] == [-1, -1, 2, 3]


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
    assert cache.kv.can_open(keys, num_cached, 64, 64, [0])  # two kept ones come back to life, two are taken
    assert not cache.kv.can_open(keys, num_cached, 64, 64, [1])
    assert cache.kv.can_open(keys, num_cached, 48, 64, [1])


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


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_blocks_for(num_tokens: int, num_blocks: int) -> None:
    assert blocks_for(num_tokens) == num_blocks
