"""KV blocks in the machine's memory, for models whose KV cache lies on a GPU; before files, if there are any.

What is written here is written to the files too, so that it outlives the process. What was used longest ago goes first.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from pagoda.kv.block_files import BlockFiles, FileCounts
from pagoda.kv.prefix import PROCESS_SECRET


class HostBlocks:
    """Up to `max_bytes` of blocks by group and key. `files`: where those are that are not here.

    Any thread may use it.
    """

    def __init__(self, max_bytes: int, files: BlockFiles | None = None) -> None:
        self.max_bytes, self.files = max_bytes, files
        self.secret = PROCESS_SECRET if files is None else files.secret
        self.counts = FileCounts()
        self.num_bytes = 0
        self._blocks: OrderedDict[tuple[int, bytes], bytes] = OrderedDict()  # the least recently used first
        self._guard = threading.Lock()

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, block: tuple[int, bytes]) -> bool:
        return block in self._blocks or (self.files is not None and block in self.files)

    def read(self, group: int, key: bytes) -> bytes | None:
        """The block's content; None: there is none."""
        with self._guard:
            content = self._blocks.get((group, key))
            if content is not None:
                self._blocks.move_to_end((group, key))
                self.counts.read += 1
                return content
        content = None if self.files is None else self.files.read(group, key)
        if content is not None:
            self._keep((group, key), content)
        return content

    def write(self, group: int, key: bytes, content: bytes) -> None:
        """Keep a block. Raises the files' OSError, and then it is in memory alone."""
        self._keep((group, key), content)
        if self.files is not None:
            self.files.write(group, key, content)

    def close(self) -> None:
        """Forget all that is in memory. Idempotent."""
        with self._guard:
            self._blocks.clear()
            self.num_bytes = 0
        if self.files is not None:
            self.files.close()

    def _keep(self, block: tuple[int, bytes], content: bytes) -> None:
        with self._guard:
            if block in self._blocks or len(content) > self.max_bytes:
                return
            while self.num_bytes + len(content) > self.max_bytes:
                _, oldest = self._blocks.popitem(last=False)
                self.num_bytes -= len(oldest)
                self.counts.evicted += 1
            self._blocks[block] = content
            self.num_bytes += len(content)
            self.counts.written += 1
