"""KV blocks in files: found again by a later process, never believed when they are not what was written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagoda.crypt import Cipher
from pagoda.errors import ConfigError
from pagoda.kv.block_files import HEADER, BlockFiles, parse_offload

KEYS = [bytes([i]) * 16 for i in range(8)]
CONTENT = bytes(range(256)) * 4
SIZE = HEADER + len(CONTENT)


OPEN: list[BlockFiles] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def opened(folder: Path, max_bytes: int = 1 << 20, model: str = "m", cipher: Cipher | None = None) -> BlockFiles:
    """As a process does that starts when the last one has ended."""
    while OPEN:
        OPEN.pop().close()
    OPEN.append(BlockFiles(folder, max_bytes, model, cipher))
    return OPEN[-1]


def file_of(folder: Path) -> Path:
    (path,) = folder.glob("m/??/*")
    return path


def test_a_later_process_finds_what_was_written(tmp_path: Path) -> None:
    files = opened(tmp_path)
    files.write(0, KEYS[0], CONTENT)
    files.write(1, KEYS[0], CONTENT[:10])
    later = opened(tmp_path)
    assert later.secret == files.secret
    assert later.read(0, KEYS[0]) == CONTENT
    assert later.read(1, KEYS[0]) == CONTENT[:10]
    assert (0, KEYS[1]) not in later
    assert later.read(0, KEYS[1]) is None
    assert later.num_bytes == SIZE + HEADER + 10


@pytest.mark.parametrize(
    "spoiled",
    [b"", CONTENT, lambda data: data[:-1], lambda data: data + b"x", lambda data: data[:-1] + b"\0"],
    ids=["empty", "foreign", "truncated", "longer", "changed"],
)
def test_a_file_that_is_not_what_was_written_is_removed(tmp_path: Path, spoiled: object) -> None:
    files = opened(tmp_path)
    files.write(0, KEYS[0], CONTENT)
    path = file_of(tmp_path)
    path.write_bytes(spoiled(path.read_bytes()) if callable(spoiled) else spoiled)
    assert files.read(0, KEYS[0]) is None
    assert files.counts.rejected == 1
    assert not path.exists()
    assert (0, KEYS[0]) not in files


def test_a_file_in_the_place_of_another_is_not_believed(tmp_path: Path) -> None:
    files = opened(tmp_path)
    files.write(0, KEYS[0], CONTENT)
    path = file_of(tmp_path)
    other = path.with_name(path.name.replace("-0", "-1"))
    path.rename(other)
    assert opened(tmp_path).read(1, KEYS[0]) is None


def test_a_file_made_under_another_secret_is_not_believed(tmp_path: Path) -> None:
    files = opened(tmp_path)
    files.write(0, KEYS[0], CONTENT)
    (tmp_path / "secret").write_bytes(os.urandom(32))
    assert opened(tmp_path).read(0, KEYS[0]) is None


def test_another_model_finds_nothing(tmp_path: Path) -> None:
    files = opened(tmp_path)
    files.write(0, KEYS[0], CONTENT)
    assert (0, KEYS[0]) not in opened(tmp_path, model="other")


def test_what_was_used_longest_ago_goes(tmp_path: Path) -> None:
    files = opened(tmp_path, 3 * SIZE)
    for key in KEYS[:3]:
        files.write(0, key, CONTENT)
    assert files.read(0, KEYS[0]) == CONTENT
    files.write(0, KEYS[3], CONTENT)
    assert [(0, key) in files for key in KEYS[:4]] == [True, False, True, True]
    assert files.counts.evicted == 1
    assert sum(path.stat().st_size for path in tmp_path.glob("m/??/*")) == files.num_bytes == 3 * SIZE


def test_a_smaller_folder_is_emptied_when_it_is_opened(tmp_path: Path) -> None:
    files = opened(tmp_path, model="old")
    for age, key in enumerate(KEYS):
        files.write(0, key, CONTENT)
        os.utime(next(tmp_path.glob(f"old/??/{key.hex()}-0")), (1000 + age, 1000 + age))
    later = opened(tmp_path, 2 * SIZE, "old")
    assert [(0, key) in later for key in KEYS] == [False] * 6 + [True] * 2


def test_sealed_files_need_the_same_key(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="pip install cryptography")
    files = opened(tmp_path, cipher=Cipher("a secret of some length"))
    files.write(0, KEYS[0], CONTENT)
    assert CONTENT[:64] not in file_of(tmp_path).read_bytes()
    later = opened(tmp_path, cipher=Cipher("a secret of some length"))
    assert later.read(0, KEYS[0]) == CONTENT
    assert opened(tmp_path, cipher=Cipher("another secret than that")).read(0, KEYS[0]) is None


def test_one_process_at_a_time(tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(ConfigError, match="a folder of its own"):
        BlockFiles(tmp_path, 1 << 20, "m")
    opened(tmp_path)


def test_a_killed_process_leaves_nothing_behind(tmp_path: Path) -> None:
    files = opened(tmp_path)
    files.write(0, KEYS[0], CONTENT)
    half = file_of(tmp_path).with_suffix(".writing")
    half.write_bytes(b"half")
    later = opened(tmp_path)
    assert not half.exists()
    assert len(later) == 1


def test_what_the_setting_means(tmp_path: Path) -> None:
    assert parse_offload("/var/cache/kv:20GB") == (Path("/var/cache/kv"), 20 * 10**9)
    for wrong in ("/var/cache/kv", ":20GB", "/var/cache/kv:much", "20GB"):
        with pytest.raises(ConfigError, match="PATH:SIZE"):
            parse_offload(wrong)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used"):
        BlockFiles(tmp_path / "file" / "below", 1 << 20, "m")
