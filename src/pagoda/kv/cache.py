"""Which blocks a sequence's tokens live in: block tables over pools, shared by prefix and by fork.

Every KV group has its own pool, prefix index and table; logical block i of a sequence holds its tokens
[16 i, 16 i + 16) in every group. Invariant between steps, for a sequence with c computed tokens:

    blocks [0, first)         given back                       (sliding-window groups only)
    blocks [first, published) full, findable by other requests, never written again
    blocks [published, end)   private, or shared with forks: copied before the first write

Within a step, blocks may be taken for draft tokens too. Only tokens that are certain are committed, so that no block
is published for a draft and no window moves past what may still be needed; `truncate` gives the other blocks back.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pagoda.kv.group import CopyBlocks, KVGroupBlocks
from pagoda.kv.prefix import PrefixCache, extend_keys, first_needed_block, longest_match
from pagoda.kv.published import Outside, PublishedPool, WriteBlocks
from pagoda.kv.states import NoStates, StatePool
from pagoda.kv.table import BlockTable, blocks_for
from pagoda.types import BLOCK_SIZE, Int32Array


class KVCache:
    """Block tables of up to `max_seqs` sequences of up to `max_context` tokens.

    windows[g] and num_blocks[g] describe the groups; `copy` is `LoadedModel.copy_blocks`. num_states: of recurrent
    layers, with a snapshot every so many tokens; 0 where there are none of these.
    """

    def __init__(
        self,
        windows: Sequence[int | None],
        num_blocks: Sequence[int],
        *,
        max_seqs: int,
        max_context: int,
        copy: CopyBlocks,
        prefix_caching: bool = True,
        outside: Outside | None = None,
        num_states: int = 0,
        state_interval: int = BLOCK_SIZE,
    ) -> None:
        self.windows = tuple(windows)
        self.num_blocks = tuple(num_blocks)
        self.max_blocks = blocks_for(max_context)
        self.num_pools = len(self.windows) + 1  # what others reserve of: KV groups, then states
        self.prefix_caching = prefix_caching
        self._outside = outside
        self._groups = [
            KVGroupBlocks(g, window, count, max_seqs, self.max_blocks, outside)
            for g, (window, count) in enumerate(zip(windows, num_blocks, strict=True))
        ]
        interval = state_interval if prefix_caching else None
        self._published: list[PublishedPool] = [*self._groups]  # all that a prefix must be found in
        self.states: StatePool = NoStates()
        if num_states:
            self.states = StatePool(num_states, interval, index=len(self._groups), outside=outside)
            self._published.append(self.states)
        self._copy = copy
        self._free_rows = list(range(max_seqs - 1, -1, -1))
        self._tables: dict[int, BlockTable] = {}  # by row

    # What there is

    @property
    def num_used_blocks(self) -> int:
        return sum(group.pool.num_used for group in self._groups)

    @property
    def num_wasted_slots(self) -> int:
        """Slots of held blocks that hold no token; a last block that forks share counts for each."""
        wasted = sum(table.num_blocks * BLOCK_SIZE - table.num_tokens for table in self._tables.values())
        return wasted * len(self._groups)

    def block_holders(self) -> list[dict[int, list[int]]]:
        """For each group, which table rows hold each block that is held."""
        held: list[dict[int, list[int]]] = [{} for _ in self._groups]
        for row, table in self._tables.items():
            for holders, blocks in zip(held, table.blocks, strict=True):
                for block in blocks:
                    holders.setdefault(block, []).append(row)
        return held

    def kept_blocks(self) -> list[list[int]]:
        """For each group, its free blocks whose content a later request may still find."""
        return [group.pool.kept for group in self._groups]

    @property
    def prefix(self) -> PrefixCache:
        """The prefix cache that says how far prefixes reach: of a group without a window, where there is one."""
        return min(self._groups, key=lambda group: group.window is not None).prefix

    def rows(self, tables: Sequence[BlockTable]) -> tuple[Int32Array, ...]:
        """Block tables of a batch, a group each: [B, widest]."""
        index = [table.row for table in tables]
        width = max(table.num_blocks for table in tables)
        return tuple(group.rows[:, :width].take(index, axis=0) for group in self._groups)

    # Coming: match, can_open / open

    def match(self, prefix_root: bytes, keys: list[bytes], tokens: array[int], num_tokens: int) -> int:
        """How many leading full blocks of tokens[:num_tokens] are cached; at least one token is left to compute."""
        if not self.prefix_caching:
            return 0
        extend_keys(keys, prefix_root, tokens, num_tokens)
        return longest_match([one.prefix for one in self._published], keys[: (num_tokens - 1) // BLOCK_SIZE])

    def elsewhere(
        self, prefix_root: bytes, keys: list[bytes], tokens: array[int], num_tokens: int
    ) -> list[tuple[int, bytes]]:
        """Blocks, by group and key, with which more of tokens[:num_tokens] would be cached than is; see `restore`.

        States are the group after the last.
        """
        if self._outside is None or not self.prefix_caching:
            return []
        num_cached = self.match(prefix_root, keys, tokens, num_tokens)
        leading = keys[: (num_tokens - 1) // BLOCK_SIZE]
        outside = self._outside
        prefixes = [one.prefix for one in self._published]
        most = longest_match(prefixes, leading, lambda g, key: (g, key) in outside)
        if most <= num_cached:
            return []
        return [
            (g, key)
            for g, prefix in enumerate(prefixes)
            for key in leading[first_needed_block(most * BLOCK_SIZE, prefix.window) : most]
            if not prefix.has(key)
        ]

    def restore(
        self,
        keys: Sequence[bytes],
        contents: Sequence[tuple[tuple[int, bytes], npt.NDArray[np.uint8]]],
        write: WriteBlocks,
    ) -> None:
        """Publish blocks that came from elsewhere, of the prefix with these keys, as far as there are free ones."""
        for g, one in enumerate(self._published):
            one.restore(keys, [(key, data) for (of, key), data in contents if of == g], write)

    def can_open(
        self, keys: Sequence[bytes], num_cached: int, num_tokens: int, chunk: int, reserved: Sequence[int]
    ) -> bool:
        """Whether a new sequence can get to num_tokens without taking blocks from the running ones.

        `reserved` is how many blocks of each group, and states, are left to others.
        """
        if not self._free_rows or not self.states.can_open(reserved[-1]):
            return False
        return all(
            group.can_open(keys, num_cached, num_tokens, chunk, num_reserved)
            for group, num_reserved in zip(self._groups, reserved[:-1], strict=True)
        )

    def open(self, prefix_root: bytes, keys: list[bytes], num_cached: int, prompt_len: int = 0) -> BlockTable:
        """A table whose first num_cached blocks come from the prefix cache."""
        table = BlockTable(self._free_rows.pop(), len(self._groups), prefix_root, keys)
        self._tables[table.row] = table
        table.num_blocks = table.num_published = num_cached
        table.num_tokens = num_cached * BLOCK_SIZE
        table.states = self.states.open(keys, num_cached, prompt_len)
        for group in self._groups:
            group.open(table, num_cached)
        return table

    # Growing: num_missing / can_grow / grow, then commit

    def num_missing(self, table: BlockTable, num_tokens: int, chunk: int) -> list[int]:
        """Blocks a group, and states, that the table still has to take to get to num_tokens."""
        copied = any(group.must_copy(table) for group in self._groups)
        blocks = [group.num_missing(table, num_tokens, chunk) + copied for group in self._groups]
        return [*blocks, self.states.num_missing(table.states)]

    def can_grow(self, table: BlockTable, num_tokens: int) -> bool:
        """Whether the next step can write up to token num_tokens."""
        if not self.states.can_grow(table.states):
            return False
        needed = blocks_for(num_tokens) - table.num_blocks
        if needed <= 0 and not table.tail_shared:
            return True
        return all(group.pool.num_free >= needed + group.must_copy(table) for group in self._groups)

    def grow(self, table: BlockTable, num_tokens: int, *, num_drafts: int = 0) -> None:
        """Take the blocks that `can_grow` promised; a last block shared with a fork is copied.

        num_drafts: of the tokens, the last ones, as many as `states.num_rewindable` allows.
        """
        self.states.grow(table.states, table.num_tokens, num_tokens, num_drafts)
        needed = blocks_for(num_tokens) - table.num_blocks
        if table.tail_shared:
            for group in self._groups:
                group.own_tail(table, self._copy)
            table.tail_shared = False
        if needed <= 0:
            return
        for group in self._groups:
            group.grow(table, needed)
        table.num_blocks += needed

    def commit(self, table: BlockTable, tokens: array[int], num_computed: int) -> None:
        """tokens[:num_computed] are in the cache: publish full blocks, give back those out of the window."""
        table.num_tokens = num_computed
        if self.prefix_caching and num_computed // BLOCK_SIZE > table.num_published:
            self._publish(table, tokens, num_computed)
        self.states.commit(table.states, table.keys, num_computed)
        for group in self._groups:
            group.give_back(table, num_computed)

    # Shrinking: can_truncate / truncate

    def can_truncate(self, table: BlockTable, num_tokens: int) -> bool:
        """Whether the table still holds all that tokens from position num_tokens on can see."""
        if not self.states.can_truncate(num_tokens, table.num_tokens):
            return False
        return all(table.first[group.index] <= first_needed_block(num_tokens, group.window) for group in self._groups)

    def truncate(self, table: BlockTable, num_tokens: int) -> None:
        """Drop what is after the first num_tokens tokens, computed or only allocated, and give its blocks back.

        Never past what `can_truncate` allows. The last block is written again: if it is published or shared, the next
        `grow` takes care of that.
        """
        assert self.can_truncate(table, num_tokens)
        num_blocks, num_full = blocks_for(num_tokens), num_tokens // BLOCK_SIZE
        if num_blocks < table.num_blocks:
            for group in self._groups:
                group.truncate(table, num_blocks)
            table.num_blocks = num_blocks
            table.tail_shared = False
        if num_tokens < table.num_tokens:
            self.states.restart(table.states)
            table.num_tokens = num_tokens
            table.num_published = min(table.num_published, num_full)
            del table.keys[num_full:]
            table.tail_shared = num_full < num_blocks

    # Sharing and going: fork, free

    def fork(self, table: BlockTable) -> BlockTable | None:
        """A second table over the same blocks; None: no row is free."""
        if not self._free_rows:
            return None
        child = BlockTable(self._free_rows.pop(), len(self._groups), table.prefix_root, list(table.keys))
        self._tables[child.row] = child
        child.num_blocks, child.num_tokens = table.num_blocks, table.num_tokens
        child.num_published = table.num_published
        child.states = self.states.fork(table.states)
        for group in self._groups:
            group.fork(table, child)
        table.tail_shared = child.tail_shared = table.num_tokens % BLOCK_SIZE != 0
        return child

    def free(self, table: BlockTable) -> None:
        """Release the row and all blocks; of a prefix, the tail is to be evicted first."""
        for group in self._groups:
            group.release(reversed(table.blocks[group.index]))
        self.states.free(table.states)
        del self._tables[table.row]
        self._free_rows.append(table.row)

    def _publish(self, table: BlockTable, tokens: array[int], num_computed: int) -> None:
        extend_keys(table.keys, table.prefix_root, tokens, num_computed)
        end = num_computed // BLOCK_SIZE
        for group in self._groups:
            group.publish(table, end)
        table.num_published = end

    def check(self, tables: Sequence[BlockTable]) -> None:
        """`tables` are all there are, reference counts are exactly their entries, rows say what they say, and no block
        that may be written is published."""
        assert {table.row: table for table in tables} == self._tables
        self.states.check([table.states for table in tables])
        assert sorted([*self._free_rows, *self._tables]) == list(range(len(self._free_rows) + len(self._tables)))
        for group in self._groups:
            group.check(self._tables)
