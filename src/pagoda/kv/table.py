"""The block table of one sequence, and how many blocks tokens take."""

from __future__ import annotations

from pagoda.kv.states import HeldStates
from pagoda.types import BLOCK_SIZE


def blocks_for(num_tokens: int) -> int:
    """Blocks that num_tokens tokens stand in."""
    return -(-num_tokens // BLOCK_SIZE)


def peak_blocks(num_tokens: int, window: int | None, chunk: int) -> int:
    """The most blocks of a group that a sequence of num_tokens ever holds, computed `chunk` at a time."""
    if window is None:
        return blocks_for(num_tokens)
    return min(blocks_for(num_tokens), blocks_for(window + chunk) + 1)


class BlockTable:
    """The blocks of one sequence: a row of every group's table."""

    __slots__ = (
        "blocks",
        "first",
        "keys",
        "num_blocks",
        "num_published",
        "num_tokens",
        "prefix_root",
        "row",
        "states",
        "tail_shared",
    )

    def __init__(self, row: int, num_groups: int, prefix_root: bytes, keys: list[bytes]) -> None:
        self.row = row
        self.prefix_root = prefix_root
        self.states = HeldStates(0)  # no slots, of models that have no states
        self.keys = keys  # of the full blocks, as far as they were asked for
        self.blocks: list[list[int]] = [[] for _ in range(num_groups)]  # of each group, blocks [first, num_blocks)
        self.num_blocks = 0
        self.num_tokens = 0  # computed; the last block may have room for more
        self.first = [0] * num_groups  # blocks before it are given back
        self.num_published = 0
        self.tail_shared = False  # a fork may hold the last block too, and it is not full
