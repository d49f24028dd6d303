"""KV blocks in host memory: the latest ones, before files or without."""

from __future__ import annotations

from pathlib import Path

from pagoda.kv.block_files import BlockFiles
from pagoda.kv.host_blocks import HostBlocks

KEYS = [bytes([i]) * 16 for i in range(8)]
CONTENT = [bytes([i]) * 100 for i in range(8)]


def test_what_was_used_longest_ago_goes() -> None:
    store = HostBlocks(250)
    store.write(0, KEYS[0], CONTENT[0])
    store.write(0, KEYS[1], CONTENT[1])
    assert store.read(0, KEYS[0]) == CONTENT[0]
    store.write(1, KEYS[0], CONTENT[2])
    assert [block in store for block in ((0, KEYS[0]), (0, KEYS[1]), (1, KEYS[0]))] == [True, False, True]
    assert store.read(0, KEYS[1]) is None
    assert (store.num_bytes, store.counts.evicted) == (200, 1)


def test_a_block_larger_than_all_of_it_is_not_kept() -> None:
    store = HostBlocks(50)
    store.write(0, KEYS[0], CONTENT[0])
    assert (0, KEYS[0]) not in store
    assert store.num_bytes == 0


def test_files_have_what_memory_has_not(tmp_path: Path) -> None:
    store = HostBlocks(250, BlockFiles(tmp_path, 1 << 20, "m"))
    for key, content in zip(KEYS, CONTENT, strict=True):
        store.write(0, key, content)
    assert store.counts.evicted == 6
    assert store.read(0, KEYS[0]) == CONTENT[0]
    assert store.files is not None
    assert store.files.counts.read == 1
    assert store.read(0, KEYS[0]) == CONTENT[0]
    assert store.files.counts.read == 1, "the second time from memory"
    store.close()
    assert store.num_bytes == 0
    later = HostBlocks(250, BlockFiles(tmp_path, 1 << 20, "m"))
    assert later.read(0, KEYS[3]) == CONTENT[3]
    later.close()
