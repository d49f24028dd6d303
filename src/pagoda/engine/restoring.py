"""Sequences that wait, before they are queued, for KV blocks that are read from files."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait

from pagoda.engine.offload import KVOffload, Restored
from pagoda.engine.sequence import Sequence
from pagoda.kv.cache import KVCache


class Restoring:
    """Without an `offload`, nobody ever waits."""

    def __init__(self, kv: KVCache, offload: KVOffload | None) -> None:
        self._kv = kv
        self._offload = offload
        self._reading: dict[Sequence, Future[Restored]] = {}

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._reading)

    def __len__(self) -> int:
        return len(self._reading)

    def start(self, seq: Sequence) -> bool:
        """Have blocks read that the sequence can use. False: there are none, and it need not wait."""
        if self._offload is None or seq.reads_whole_prompt:
            return False
        blocks = self._kv.elsewhere(seq.prefix_root, seq.keys, seq.tokens, len(seq.tokens))
        if blocks:
            self._reading[seq] = self._offload.restore(blocks)
        return bool(blocks)

    def finish(self, *, wait_for_one: bool) -> list[Sequence]:
        """The sequences whose blocks have been read, and are in the prefix cache now."""
        if wait_for_one:
            wait(self._reading.values(), return_when=FIRST_COMPLETED)
        done = [seq for seq, reading in self._reading.items() if reading.done()]
        for seq in done:
            assert self._offload is not None
            self._kv.restore(seq.keys, self._reading.pop(seq).result(), self._offload.write_blocks)
        return done

    def give_up(self, seq: Sequence) -> bool:
        """The sequence waits no longer. False: it did not."""
        return self._reading.pop(seq, None) is not None
