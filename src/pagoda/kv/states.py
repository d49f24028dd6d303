"""Which states sequences stand on: what recurrent layers keep of a sequence, of a fixed size, beside its KV blocks.

A slot holds the state after some number of a sequence's tokens. Between steps a sequence holds one: that after the
tokens which are computed. A step begins there and saves the state where it may be wanted again:

    after its last token       over the one it began at, unless that is shared with a fork or is a snapshot
    after each draft token     so that the sequence can go on from any of them
    at block boundaries        every so many tokens, and at the end of the prompt: snapshots for the prefix cache

Only the first is a must: for the others there are slots or there are none. A snapshot is published under the key of the
block that ends there, which stands for all tokens up to it, so tenants, salts and adapters do not share any.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pagoda.kv.published import Outside, PublishedPool
from pagoda.types import BLOCK_SIZE, Int32Array

NOWHERE = -1  # in the rows that backends read
ONE_BLOCK_BACK = 2  # the window of a prefix whose last block alone is needed


class HeldStates:
    """The slots of one sequence."""

    __slots__ = ("prompt_end", "saves", "start")

    def __init__(self, prompt_end: int) -> None:
        self.prompt_end = prompt_end  # tokens before the last block boundary within the prompt
        self.start: int | None = None  # holds the state after the computed tokens; None: there are none
        self.saves: dict[
            int, int
        ] = {}  # number of tokens → the slot that the coming step saves the state after them in


class StatePool(PublishedPool):
    """Slots of states. `interval`: tokens from one snapshot to the next; None: there are none."""

    def __init__(
        self, num_states: int, interval: int | None, *, index: int = 0, outside: Outside | None = None
    ) -> None:
        super().__init__(index, ONE_BLOCK_BACK, num_states, outside)
        self.interval = interval
        self._held: set[HeldStates] = set()

    # Coming and going

    def can_open(self, num_reserved: int) -> bool:
        """Whether there is a slot for one sequence more, besides those that others will need."""
        return self.pool.num_free > num_reserved

    def open(self, keys: Sequence[bytes], num_cached: int, prompt_len: int) -> HeldStates:
        """The slots of a new sequence, whose first num_cached blocks were found by `keys`."""
        held = HeldStates((prompt_len - 1) // BLOCK_SIZE * BLOCK_SIZE)
        if num_cached:
            held.start = self.prefix.block(keys[num_cached - 1])
            self.pool.share(held.start)
        self._held.add(held)
        return held

    def fork(self, held: HeldStates) -> HeldStates:
        """The slots of a second sequence that stands where this one does."""
        assert not held.saves
        child = HeldStates(held.prompt_end)
        child.start = held.start
        if child.start is not None:
            self.pool.share(child.start)
        self._held.add(child)
        return child

    def free(self, held: HeldStates) -> None:
        self.restart(held)
        self._held.remove(held)

    def can_truncate(self, num_tokens: int, num_computed: int) -> bool:
        """Whether there is a state after so many of the computed tokens: of earlier ones a state says nothing."""
        return num_tokens == 0 or num_tokens >= num_computed

    def restart(self, held: HeldStates) -> None:
        """Give all slots back: the sequence begins anew."""
        self._drop_saves(held)
        if held.start is not None:
            self.release([held.start])
            held.start = None

    # A step: num_missing, grow, then commit

    def num_missing(self, held: HeldStates) -> int:
        """Slots that the sequence's next step must have."""
        if held.saves:
            return 0
        return int(held.start is None or self.pool.refs(held.start) > 1)

    def can_grow(self, held: HeldStates) -> bool:
        return self.num_missing(held) <= self.pool.num_free

    def num_rewindable(self, count: int) -> int:
        """After how many of `count` draft tokens the state can be saved."""
        return max(0, min(count, self._num_spare()))

    def grow(self, held: HeldStates, num_computed: int, num_tokens: int, num_drafts: int) -> None:
        """Take slots for a step up to num_tokens, the last num_drafts of which are drafts."""
        certain = num_tokens - num_drafts
        if not held.saves:
            held.saves[certain] = self._end(held)
            for end in self._boundaries(held, num_computed, certain):
                if self._num_spare() > 0:
                    held.saves[end] = self.take()
        for end in range(certain + 1, num_tokens + 1):
            held.saves[end] = self.take()

    def commit(self, held: HeldStates, keys: Sequence[bytes], num_computed: int) -> None:
        """So many tokens are computed and certain, `keys` being those of their full blocks."""
        if not held.saves:
            return
        for end, slot in held.saves.items():
            if end <= num_computed and self._is_snapshot(held, end) and slot not in self.prefix:
                self.prefix.publish(keys[end // BLOCK_SIZE - 1], slot)
        used = {*held.saves.values(), *([] if held.start is None else [held.start])}
        held.start = held.saves[num_computed]
        self.release(used - {held.start})
        held.saves = {}

    def rows(
        self, tables: Sequence[tuple[HeldStates, int]], starts: Int32Array
    ) -> tuple[Int32Array, Int32Array] | None:
        """`Batch.state_starts` and `state_saves` of a batch whose sequence b has tokens [starts[b], starts[b + 1]).

        tables: of each sequence, its slots and how many of its tokens are computed.
        """
        begins = [NOWHERE if held.start is None else held.start for held, _ in tables]
        saves: Int32Array = np.full(starts[-1], NOWHERE, np.int32)
        for (held, num_computed), start in zip(tables, starts[:-1].tolist(), strict=True):
            for end, slot in held.saves.items():
                saves[start + end - num_computed - 1] = slot
        return np.array(begins, np.int32), saves

    # Inside

    def _is_snapshot(self, held: HeldStates, num_tokens: int) -> bool:
        if self.interval is None or num_tokens % BLOCK_SIZE:
            return False
        return num_tokens % self.interval == 0 or num_tokens == held.prompt_end

    def _boundaries(self, held: HeldStates, start: int, end: int) -> list[int]:
        """Where snapshots belong, between `start` and `end` tokens."""
        if self.interval is None:
            return []
        first = (start // self.interval + 1) * self.interval
        found = {*range(first, end, self.interval), held.prompt_end}
        return sorted(boundary for boundary in found if start < boundary < end)

    def _end(self, held: HeldStates) -> int:
        """The slot for the state after a step's last token that is no draft."""
        start = held.start
        if start is None or self.pool.refs(start) > 1:
            return self.take()
        if start in self.prefix:
            if self._num_spare() > 0:
                return self.take()
            self.forget(start)
        return start

    def _num_spare(self) -> int:
        """Free slots that no sequence must have for its next step."""
        return self.pool.num_free - sum(map(self.num_missing, self._held))

    def _drop_saves(self, held: HeldStates) -> None:
        self.release(slot for slot in held.saves.values() if slot != held.start)
        held.saves = {}

    def check(self, tables: Sequence[HeldStates]) -> None:
        """`tables` are all there are, and reference counts are exactly their slots."""
        assert set(tables) == self._held
        self.pool.check()
        self.prefix.check(self.pool.num_blocks)
        refs = [0] * self.pool.num_blocks
        for held in tables:
            for slot in {held.start, *held.saves.values()} - {None}:
                assert slot is not None
                refs[slot] += 1
        assert refs == [self.pool.refs(slot) for slot in range(self.pool.num_blocks)]


class NoStates(StatePool):
    """The pool of models without recurrent layers: nobody needs a slot, and there is none."""

    def __init__(self) -> None:
        self._nothing = HeldStates(0)

    def can_open(self, num_reserved: int) -> bool:
        return True

    def open(self, keys: Sequence[bytes], num_cached: int, prompt_len: int) -> HeldStates:
        return self._nothing

    def fork(self, held: HeldStates) -> HeldStates:
        return held

    def free(self, held: HeldStates) -> None: ...

    def can_truncate(self, num_tokens: int, num_computed: int) -> bool:
        return True

    def restart(self, held: HeldStates) -> None: ...

    def num_missing(self, held: HeldStates) -> int:
        return 0

    def can_grow(self, held: HeldStates) -> bool:
        return True

    def num_rewindable(self, count: int) -> int:
        return count

    def grow(self, held: HeldStates, num_computed: int, num_tokens: int, num_drafts: int) -> None: ...

    def commit(self, held: HeldStates, keys: Sequence[bytes], num_computed: int) -> None: ...

    def rows(self, tables: Sequence[tuple[HeldStates, int]], starts: Int32Array) -> None: ...

    def check(self, tables: Sequence[HeldStates]) -> None: ...
