"""KV blocks of idle prefixes go to files or to host memory, and come back when a prompt begins as they do.

A block that no sequence holds any more is copied out between two steps, and a thread writes it to the store. Before a
new request is queued, `restore` has another thread read what the store has of its prompt and the KV cache has not; the
blocks are then put into the prefix cache, where the scheduler finds them as if they had never left. Other requests go
on meanwhile.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from pagoda.backends.base import LoadedModel, MovableBlocks
from pagoda.config import EngineSettings
from pagoda.crypt import Cipher
from pagoda.kv.block_files import BlockFiles, parse_offload
from pagoda.kv.host_blocks import HostBlocks

log = logging.getLogger(__name__)

Content = npt.NDArray[np.uint8]
Block = tuple[int, bytes]  # group and key
Restored = list[tuple[Block, Content]]

STEP_BYTES = 4 << 20  # that are copied out after a step: a millisecond or so
QUEUE_BYTES = 256 << 20  # of copies that wait to be written
RETRY_S = 60.0  # after a write failed, nothing is written for so long
CLOSE_S = 30.0  # that what is still to be written may take at the end


class KVOffload:
    """Moves blocks of a model between its KV cache and a store. One thread uses it; it has two of its own."""

    def __init__(self, model: MovableBlocks, store: BlockFiles | HostBlocks) -> None:
        self.store = store
        self.write_blocks = model.write_blocks
        self._model = model
        self._idle: OrderedDict[Block, int] = OrderedDict()  # to be written, and where they are
        self._queue: queue.Queue[tuple[Block, Content] | None] = queue.Queue()
        self._queued = 0  # bytes, guarded by _changed
        self._changed = threading.Condition()
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="pagoda-kv-read")
        self._writer = threading.Thread(target=self._write, name="pagoda-kv-write", daemon=True)
        self._writer.start()

    # What the KV cache says

    def idle(self, group: int, key: bytes, block: int) -> None:
        """Nobody holds the block; it may be found by its key until it is `lost`."""
        if (group, key) not in self.store:
            self._idle[group, key] = block

    def lost(self, group: int, key: bytes) -> None:
        """The block's memory is about to be used for something else."""
        block = self._idle.pop((group, key), None)
        if block is not None and self._has_room():
            self._copy([((group, key), block)])

    def __contains__(self, block: Block) -> bool:
        return block in self.store

    # Between steps

    @property
    def has_work(self) -> bool:
        """Whether idle blocks are not copied out yet."""
        return bool(self._idle)

    def flush(self, *, wait: bool = False) -> None:
        """Copy out some idle blocks. wait: where the writer is behind, until it has caught up."""
        if wait:
            with self._changed:
                self._changed.wait_for(self._has_room, CLOSE_S)
        chosen, num_bytes = [], 0
        while self._idle and self._has_room() and num_bytes < STEP_BYTES:
            block, place = self._idle.popitem(last=False)
            chosen.append((block, place))
            num_bytes += self._model.moved_bytes(block[0])
        self._copy(chosen)

    def wait_written(self, timeout: float) -> bool:
        """Wait until all that was copied out is in the store. False: it took longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queued, timeout)

    def restore(self, blocks: Sequence[Block]) -> Future[Restored]:
        """Read blocks on another thread. → of each prefix as much as can be believed"""
        return self._readers.submit(self._read, list(blocks))

    def close(self) -> None:
        """Write what is still to be written, within CLOSE_S. Idempotent."""
        end = time.monotonic() + CLOSE_S
        while self._idle and time.monotonic() < end:
            self.flush(wait=True)
        self._idle.clear()
        self._queue.put(None)
        self._writer.join(max(0.0, end - time.monotonic()))
        self._readers.shutdown(wait=False, cancel_futures=True)
        self.store.close()

    # Inside

    def _has_room(self) -> bool:
        return self._queued < QUEUE_BYTES

    def _copy(self, blocks: Sequence[tuple[Block, int]]) -> None:
        for group in {block[0] for block, _ in blocks}:
            of_group = [(block, place) for block, place in blocks if block[0] == group]
            contents = self._model.read_blocks(group, np.array([place for _, place in of_group], np.int32))
            with self._changed:
                self._queued += contents.nbytes
            for (block, _), content in zip(of_group, contents, strict=True):
                self._queue.put((block, content))

    def _write(self) -> None:
        """The life of the writing thread."""
        paused = 0.0  # until then
        while (item := self._queue.get()) is not None:
            block, content = item
            try:
                if time.monotonic() >= paused:
                    self.store.write(*block, content.tobytes())
            except OSError as error:
                paused = time.monotonic() + RETRY_S
                log.warning("--kv-offload: writing failed, next try in %.0f s: %s", RETRY_S, error)
            with self._changed:
                self._queued -= content.nbytes
                self._changed.notify_all()

    def _read(self, blocks: list[Block]) -> Restored:
        found = []
        for block in blocks:
            data = self.store.read(*block)
            if data is not None and len(data) == self._model.moved_bytes(block[0]):
                found.append((block, np.frombuffer(data, np.uint8)))
        return found


def open_offload(settings: EngineSettings, model: LoadedModel, identity: str) -> KVOffload | None:
    """What `--kv-offload` and `--kv-host-memory` ask for; None: nothing.

    `identity` is all that the model's keys and values depend on. Raises ConfigError.
    """
    assert isinstance(model, MovableBlocks)
    files = None
    if settings.kv_offload is not None:
        folder, max_bytes = parse_offload(settings.kv_offload)
        secret = settings.kv_offload_key
        cipher = None if secret is None else Cipher(secret, "PAGODA_KV_OFFLOAD_KEY")
        files = BlockFiles(folder, max_bytes, identity, cipher)
    if settings.kv_host_memory_bytes:
        return KVOffload(model, HostBlocks(settings.kv_host_memory_bytes, files))
    return None if files is None else KVOffload(model, files)
