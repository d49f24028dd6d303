"""The blocks of one KV group: its pool, its prefix index, and the rows of its block tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from pagoda.kv.blocks import BlockPool
from pagoda.kv.prefix import PrefixCache
from pagoda.kv.table import BlockTable
from pagoda.types import Int32Array

GIVEN_BACK = -1  # in the int32 rows that backends read, for a block that a window has passed


class Outside(Protocol):
    """Where blocks go that nobody holds, see `pagoda.engine.offload`."""

    def idle(self, group: int, key: bytes, block: int) -> None:
        """Nobody holds the block any more, but it keeps its content until it is `lost`."""

    def lost(self, group: int, key: bytes) -> None:
        """The block is about to get another content."""

    def __contains__(self, block: tuple[int, bytes]) -> bool:
        """Whether the block of that group and key can be had."""


class KVGroupBlocks:
    """Pool, prefix index and table rows of one KV group."""

    def __init__(
        self, index: int, window: int | None, num_blocks: int, max_seqs: int, max_blocks: int, outside: Outside | None
    ) -> None:
        self.index, self.outside = index, outside
        self.window = window
        self.pool = BlockPool(num_blocks)
        self.prefix = PrefixCache(window)
        self.rows: Int32Array = np.full((max_seqs, max_blocks), GIVEN_BACK, np.int32)

    def take(self) -> int:
        block, was_kept = self.pool.allocate()
        if was_kept:
            self.forget(block)
        return block

    def forget(self, block: int) -> None:
        """The published block is about to get another content."""
        if self.outside is not None:
            self.outside.lost(self.index, self.prefix.key(block))
        self.prefix.forget(block)

    def release(self, blocks: Iterable[int]) -> None:
        pool, prefix = self.pool, self.prefix
        for block in blocks:
            is_published = block in prefix
            pool.release(block, keep=is_published)
            if is_published and self.outside is not None and not pool.refs(block):
                self.outside.idle(self.index, prefix.key(block), block)

    def check(self, tables: Mapping[int, BlockTable]) -> None:
        """`tables`, by row, are all there are: reference counts are exactly their entries, rows say what they say, and
        no block that may be written is published."""
        self.pool.check()
        self.prefix.check(self.pool.num_blocks)
        refs = [0] * self.pool.num_blocks
        for row, table in tables.items():
            first, blocks = table.first[self.index], table.blocks[self.index]
            assert self.rows[row, : table.num_blocks].tolist() == [GIVEN_BACK] * first + blocks
            for i, block in enumerate(blocks, start=first):
                refs[block] += 1
                if table.num_published <= i and not (i == table.num_blocks - 1 and table.tail_shared):
                    assert block not in self.prefix, "a block that may be written is published"
        assert refs == [self.pool.refs(block) for block in range(self.pool.num_blocks)]
