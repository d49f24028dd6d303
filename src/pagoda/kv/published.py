"""A pool of blocks of which some are found by key: other sequences begin with them, and they stay while nobody does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from pagoda.kv.blocks import BlockPool
from pagoda.kv.prefix import PrefixCache


class Outside(Protocol):
    """Where blocks go that nobody holds, see `pagoda.engine.offload`."""

    def idle(self, group: int, key: bytes, block: int) -> None:
        """Nobody holds the block any more, but it keeps its content until it is `lost`."""

    def lost(self, group: int, key: bytes) -> None:
        """The block is about to get another content."""

    def __contains__(self, block: tuple[int, bytes]) -> bool:
        """Whether the block of that group and key can be had."""


class PublishedPool:
    """A pool, and the index of its blocks that are found by key, which stay while nobody holds them until they must go.

    index: the number that `outside` knows it by.
    """

    def __init__(self, index: int, window: int | None, num_blocks: int, outside: Outside | None) -> None:
        self.index, self.outside = index, outside
        self.pool = BlockPool(num_blocks)
        self.prefix = PrefixCache(window)

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
