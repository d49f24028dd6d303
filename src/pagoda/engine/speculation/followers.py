"""The KV cache of a drafter that computes: a table for each sequence that it follows.

Where blocks or rows run out, the sequence that was followed longest ago is given up.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from pagoda.engine.drafters import Key
from pagoda.kv.cache import KVCache
from pagoda.kv.group import CopyBlocks
from pagoda.kv.table import BlockTable
from pagoda.types import Batch, FloatArray


class Follower(Protocol):
    """What a drafter keeps of a sequence."""

    table: BlockTable


F = TypeVar("F", bound=Follower)


class Followers(Generic[F]):
    """Those of all sequences, and the cache that their tables are of."""

    def __init__(
        self,
        windows: Seq[int | None],
        num_blocks: Seq[int],
        *,
        max_seqs: int,
        max_context: int,
        chunk: int,
        copy: CopyBlocks,
    ) -> None:
        """chunk: tokens of one step at most. The rest is as `KVCache` takes it."""
        self.kv = KVCache(windows, num_blocks, max_seqs=max_seqs, max_context=max_context, copy=copy)
        self._max_context = max_context
        self._chunk = chunk
        self._followers: OrderedDict[Key, F] = OrderedDict()  # the one asked for longest ago first

    def get(self, key: Key) -> F | None:
        return self._followers.get(key)

    def __len__(self) -> int:
        return len(self._followers)

    def put(self, key: Key, follower: F) -> None:
        """It is followed from now on, or was just asked for."""
        self._followers[key] = follower
        self._followers.move_to_end(key)

    def open(self, root: bytes, tokens: array[int], most: int | None, keep: Seq[Key]) -> BlockTable | None:
        """A table with what is cached of `tokens`, of `most` of them at most. None: there is no room even without
        those that are not in `keep`."""
        keys: list[bytes] = []
        none_reserved = [0] * self.kv.num_pools
        count = len(tokens) if most is None else most + 1
        while True:
            num_cached = self.kv.match(root, keys, tokens, min(count, len(tokens)))
            if self.kv.can_open(keys, num_cached, len(tokens), self._chunk, none_reserved):
                return self.kv.open(root, keys, num_cached)
            if not self._give_up_one(keep):
                return None

    def make_room(self, table: BlockTable, num_tokens: int, keep: Seq[Key]) -> bool:
        """Take blocks for so many tokens, from those that are not in `keep`, where need be."""
        if num_tokens > self._max_context:
            return False
        while not self.kv.can_grow(table, num_tokens):
            if not self._give_up_one(keep):
                return False
        self.kv.grow(table, num_tokens)
        return True

    def _give_up_one(self, keep: Seq[Key]) -> bool:
        """Take the blocks of the sequence that was followed longest ago, but for those in `keep`."""
        victim = next((key for key in self._followers if key not in keep), None)
        if victim is None:
            return False
        self.forget(victim)
        return True

    def forget(self, key: Key) -> None:
        follower = self._followers.pop(key, None)
        if follower is not None:
            self.kv.free(follower.table)

    def check(self) -> None:
        """Every block belongs to a sequence that is followed, or to nobody."""
        self.kv.check([follower.table for follower in self._followers.values()])


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens that a step computes after the first `first` ones of a table."""

    table: BlockTable
    first: int
    tokens: Seq[int]
    wants_logits: bool  # of its last token
    given: FloatArray | None = None  # [T, columns], see `Batch`


def batch_of(kv: KVCache, stretches: Seq[Stretch], *, hidden: bool = False) -> Batch:
    """A step over them, in their order. hidden: the hidden states of rows with logits are wanted, too."""
    ends = np.cumsum([len(stretch.tokens) for stretch in stretches], dtype=np.int32)
    lasts = [int(end) - 1 for stretch, end in zip(stretches, ends, strict=True) if stretch.wants_logits]
    given = [stretch.given for stretch in stretches if stretch.given is not None]
    rows = np.array(lasts, np.int32)
    return Batch(
        tokens=np.concatenate([np.array(stretch.tokens, np.int32) for stretch in stretches]),
        positions=np.concatenate(
            [np.arange(one.first, one.first + len(one.tokens), dtype=np.int32) for one in stretches]
        ),
        seq_starts=np.concatenate([np.zeros(1, np.int32), ends]),
        context_lens=np.array([one.first + len(one.tokens) for one in stretches], np.int32),
        block_tables=kv.rows([stretch.table for stretch in stretches]),
        logit_rows=rows,
        hidden_rows=rows if hidden else np.empty(0, np.int32),
        given=np.concatenate(given) if given else None,
    )
