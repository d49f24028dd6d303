"""A pool of KV blocks: who holds which block, and which free block goes next.

A block is held (reference count above zero), kept (free, but its content may still be wanted by a later request
with the same prefix) or blank (free, content worthless). Blank blocks go first, the last freed first, so that the
memory touched stays small; then kept ones, the least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict


class BlockPool:
    """Reference counts and free order of blocks 0 … num_blocks - 1. It knows nothing of what is in them."""

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks > 0
        self.num_blocks = num_blocks
        self._refs = [0] * num_blocks
        self._blank = list(range(num_blocks - 1, -1, -1))  # a stack: block 0 goes first
        self._kept: OrderedDict[int, None] = OrderedDict()  # the least recently used first

    @property
    def num_free(self) -> int:
        return len(self._blank) + len(self._kept)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    @property
    def kept(self) -> list[int]:
        """Free blocks whose content is not lost."""
        return list(self._kept)

    def refs(self, block: int) -> int:
        """How many sequences hold the block."""
        return self._refs[block]

    def allocate(self) -> tuple[int, bool]:
        """Take a free block. → (block, whether it was a kept one, whose content is now lost)"""
        if self._blank:
            block, was_kept = self._blank.pop(), False
        else:
            assert self._kept, "allocate without a free block"
            block, was_kept = self._kept.popitem(last=False)[0], True
        self._refs[block] = 1
        return block, was_kept

    def share(self, block: int) -> None:
        """One more holder of a block that is held or kept."""
        if self._refs[block] == 0:
            del self._kept[block]
        self._refs[block] += 1

    def release(self, block: int, *, keep: bool) -> None:
        """One holder fewer; after the last one the block is free, kept or blank."""
        assert self._refs[block] > 0, f"block {block} released too often"
        self._refs[block] -= 1
        if self._refs[block] == 0:
            if keep:
                self._kept[block] = None
            else:
                self._blank.append(block)

    def check(self) -> None:
        """Every block is in exactly one state."""
        blank, kept = set(self._blank), set(self._kept)
        assert len(blank) == len(self._blank), "a block is blank twice"
        assert not blank & kept, f"blocks {blank & kept} are both blank and kept"
        for block, refs in enumerate(self._refs):
            assert refs >= 0
            assert (refs == 0) == (block in blank or block in kept), f"block {block} with {refs} references"
