"""The blocks of one KV group, and the rows of its block tables."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pagoda.kv.published import Outside, PublishedPool
from pagoda.kv.table import BlockTable
from pagoda.types import Int32Array

GIVEN_BACK = -1  # in the int32 rows that backends read, for a block that a window has passed


class KVGroupBlocks(PublishedPool):
    """A pool with block tables: row r has the blocks of the sequence that holds it."""

    def __init__(
        self, index: int, window: int | None, num_blocks: int, max_seqs: int, max_blocks: int, outside: Outside | None
    ) -> None:
        super().__init__(index, window, num_blocks, outside)
        self.window = window
        self.rows: Int32Array = np.full((max_seqs, max_blocks), GIVEN_BACK, np.int32)

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
