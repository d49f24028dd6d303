"""The blocks of one KV group, and the rows of its block tables: what `KVCache` does to a sequence, in one group.

The invariant of a table stands in `cache.py`. Counts that all groups share (`num_blocks`, `num_published`,
`tail_shared`) are the cache's to change, after all groups have done their part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pagoda.kv.prefix import first_needed_block
from pagoda.kv.published import Outside, PublishedPool
from pagoda.kv.table import BlockTable, blocks_for, peak_blocks
from pagoda.types import BLOCK_SIZE, Int32Array

CopyBlocks = Callable[[int, Int32Array], None]  # (group, pairs [N, 2] of source and destination)
GIVEN_BACK = -1  # in the int32 rows that backends read, for a block that a window has passed


class KVGroupBlocks(PublishedPool):
    """A pool with block tables: row r has the blocks of the sequence that holds it."""

    def __init__(
        self, index: int, window: int | None, num_blocks: int, max_seqs: int, max_blocks: int, outside: Outside | None
    ) -> None:
        super().__init__(index, window, num_blocks, outside)
        self.window = window
        self.rows: Int32Array = np.full((max_seqs, max_blocks), GIVEN_BACK, np.int32)

    def can_open(self, keys: Sequence[bytes], num_cached: int, num_tokens: int, chunk: int, reserved: int) -> bool:
        """Whether a new sequence, its first num_cached blocks shared, can get to num_tokens, `reserved` blocks left."""
        first = first_needed_block(num_cached * BLOCK_SIZE, self.window)
        revived = sum(self.pool.refs(self.prefix.block(key)) == 0 for key in keys[first:num_cached])
        held = num_cached - first
        needed = max(0, min(blocks_for(num_tokens) - first, peak_blocks(num_tokens, self.window, chunk)) - held)
        return self.pool.num_free - revived - reserved >= needed

    def open(self, table: BlockTable, num_cached: int) -> None:
        """Share the blocks of the prefix cache that a new table begins with."""
        first = table.first[self.index] = first_needed_block(num_cached * BLOCK_SIZE, self.window)
        shared = [self.prefix.block(key) for key in table.keys[first:num_cached]]
        for block in shared:
            self.pool.share(block)
        table.blocks[self.index] = shared
        self.rows[table.row, :first] = GIVEN_BACK
        self.rows[table.row, first:num_cached] = shared

    def num_missing(self, table: BlockTable, num_tokens: int, chunk: int) -> int:
        """Blocks that the table still has to take to get to num_tokens, without a copy of its last one."""
        missing = blocks_for(num_tokens) - table.num_blocks
        held = table.num_blocks - table.first[self.index]
        return max(0, min(missing, peak_blocks(num_tokens, self.window, chunk) - held))

    def grow(self, table: BlockTable, count: int) -> None:
        taken = [self.take() for _ in range(count)]
        table.blocks[self.index].extend(taken)
        self.rows[table.row, table.num_blocks : table.num_blocks + count] = taken

    def must_copy(self, table: BlockTable) -> bool:
        """Whether the table's last block is to be copied before it is written, since a fork holds it too."""
        return table.tail_shared and self.pool.refs(table.blocks[self.index][-1]) > 1

    def own_tail(self, table: BlockTable, copy: CopyBlocks) -> None:
        """Copy-on-write of the last block: nobody else holds it then, and nobody finds it in the prefix cache."""
        shared = table.blocks[self.index][-1]
        if self.must_copy(table):
            own = self.take()
            copy(self.index, np.array([[shared, own]], np.int32))
            self.release([shared])
            table.blocks[self.index][-1] = own
            self.rows[table.row, table.num_blocks - 1] = own
        elif shared in self.prefix:
            self.forget(shared)

    def publish(self, table: BlockTable, end: int) -> None:
        """Blocks [num_published, end) are full: others find them from now on."""
        first = table.first[self.index]
        for i in range(max(table.num_published, first), end):
            self.prefix.publish(table.keys[i], table.blocks[self.index][i - first])

    def give_back(self, table: BlockTable, num_tokens: int) -> None:
        """Release the blocks that no token after num_tokens sees."""
        start, first = table.first[self.index], first_needed_block(num_tokens, self.window)
        if first <= start:
            return
        blocks = table.blocks[self.index]
        self.release(reversed(blocks[: first - start]))
        del blocks[: first - start]
        self.rows[table.row, start:first] = GIVEN_BACK
        table.first[self.index] = first

    def truncate(self, table: BlockTable, num_blocks: int) -> None:
        kept, blocks = num_blocks - table.first[self.index], table.blocks[self.index]
        self.release(reversed(blocks[kept:]))
        del blocks[kept:]

    def fork(self, table: BlockTable, child: BlockTable) -> None:
        """The child holds the same blocks."""
        child.first[self.index] = table.first[self.index]
        child.blocks[self.index] = list(table.blocks[self.index])
        for block in child.blocks[self.index]:
            self.pool.share(block)
        self.rows[child.row, : table.num_blocks] = self.rows[table.row, : table.num_blocks]

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
