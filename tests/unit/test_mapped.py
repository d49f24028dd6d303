"""Files that change while they are mapped: in place, in length, or by another of their name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pagoda.formats.mapped import MappedFile, release_pages

PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes([7]) * (8 * PAGE))
    os.utime(path, ns=(10**18, 10**18))  # so that a write in the same moment is seen
    return path


def test_what_stays_as_it_is(path: Path) -> None:
    file = MappedFile(path)
    assert file.changed() is None
    path.read_bytes()
    os.chmod(path, 0o600)
    assert file.changed() is None
    file.close()


def test_bytes_that_are_written_into_it(path: Path) -> None:
    file = MappedFile(path)
    with path.open("r+b") as other:
        other.seek(5000)
        other.write(b"x")
    assert "was written to" in str(file.changed())
    file.close()


@pytest.mark.parametrize("size", [0, 100, 4 * PAGE, 20 * PAGE])
def test_another_length(path: Path, size: int) -> None:
    file = MappedFile(path)
    os.truncate(path, size)
    assert f"had {8 * PAGE} bytes when it was opened, and has {size}" in str(file.changed())
    file.close()


def test_another_file_of_its_name(path: Path) -> None:
    """As downloads and editors replace files: who has mapped the old one still has it."""
    file = MappedFile(path)
    new = path.with_name("new")
    new.write_bytes(b"another")
    new.replace(path)
    assert file.changed() is None
    assert file.view(8 * PAGE - 1, 1).tolist() == [7]
    path.unlink()
    assert file.changed() is None
    file.close()


def test_pages_that_are_gone_read_as_zeros(path: Path) -> None:
    """Unguarded, reading them would end this process."""
    file, other = MappedFile(path), MappedFile(path)
    other.guard()
    file.guard()
    view = file.view(0, 8 * PAGE)
    os.truncate(path, PAGE)
    assert int(view[:PAGE].sum()) == 7 * PAGE
    assert int(view[PAGE:].sum()) == 0
    assert "cut short" in str(file.changed())
    os.truncate(path, 8 * PAGE)  # and that it has its length again makes nothing good
    os.utime(path, ns=(10**18, 10**18))
    assert "cut short" in str(file.changed())
    del view
    file.close()
    other.close()
    later = MappedFile(path)
    later.guard()
    assert later.changed() is None  # it lost nothing itself
    later.close()


def resident(path: Path) -> int:
    """Kilobytes of the file's mapping that are in memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.endswith(str(path)))
    return next(int(line.split()[1]) for line in lines[at:] if line.startswith("Rss:"))


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="Linux tells what is resident")
def test_pages_of_views_are_given_back(path: Path) -> None:
    """Whole pages alone, and what is no view of a file stays."""
    file = MappedFile(path)
    whole = file.view(0, 8 * PAGE)
    assert whole.sum() == 7 * 8 * PAGE
    before = resident(path)
    release_pages(file.view(PAGE // 2, 4 * PAGE))
    assert before - resident(path) == 3 * PAGE // 1024
    rows = whole.reshape(8, -1)[1:6:2]  # from the second to the sixth
    release_pages(rows)
    assert whole.sum() == 7 * 8 * PAGE
    own = np.full(4 * PAGE, 7, np.uint8)
    release_pages(own[::2])
    assert own.sum() == 7 * own.size
    file.close()


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="Linux tells what is resident")
def test_pages_that_two_views_share_are_given_back_with_both(path: Path) -> None:
    file = MappedFile(path)
    assert file.view(0, 8 * PAGE).sum() == 7 * 8 * PAGE
    before, middle = resident(path), 2 * PAGE + 100
    release_pages(file.view(PAGE, middle - PAGE), file.view(middle, 5 * PAGE - middle))
    assert before - resident(path) == 4 * PAGE // 1024
    file.close()
