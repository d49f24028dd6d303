"""A pool of blocks of which some are found by key: other sequences begin with them, and they stay while nobody does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pagoda.kv.blocks import BlockPool
from pagoda.kv.prefix import PrefixCache
from pagoda.types import Int32Array

WriteBlocks = Callable[[int, Int32Array, npt.NDArray[np.uint8]], None]  # `MovableBlocks.write_blocks`


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

    def restore(
        self, keys: Sequence[bytes], contents: Sequence[tuple[bytes, npt.NDArray[np.uint8]]], write: WriteBlocks
    ) -> None:
        """Publish blocks whose contents came from elsewhere, as far as there are free ones.

        keys: of the whole prefix, whose blocks that are there already are not given up for those that come.
        """
        held = [self.prefix.block(key) for key in keys if self.prefix.has(key)]
        for block in held:
            self.pool.share(block)
        given = [(key, data) for key, data in contents if not self.prefix.has(key)][: self.pool.num_free]
        taken = [self.take() for _ in given]
        if taken:
            write(self.index, np.array(taken, np.int32), np.stack([data for _, data in given]))
        for (key, _), block in zip(given, taken, strict=True):
            self.prefix.publish(key, block)
        self.release(reversed(taken))
        self.release(reversed(held))
