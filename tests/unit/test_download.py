"""Downloads over real HTTP: whole, dropped, resumed, wrong, refused."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import pagoda.sources.download
from file_server import FileServer, serve_files
from pagoda.errors import SourceError
from pagoda.sources import files
from pagoda.sources.download import Access, AccessError, download

BODY = random.Random(3).randbytes(3_000_000)
DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagoda.sources.download, "RETRY_DELAY_S", 0.0)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve_files({"/f": BODY}) as state:
        yield state


def fetch(server: FileServer, target: Path, sha256: str | None = DIGEST) -> list[tuple[int, int | None]]:
    """Download /f. → what the progress callback was told."""
    seen: list[tuple[int, int | None]] = []
    download(
        server.url + "/f",
        target,
        sha256=sha256,
        access=Access(),
        progress=lambda what, done, total: seen.append((done, total)),
    )
    return seen


def test_downloads_and_tells_progress(server: FileServer, tmp_path: Path) -> None:
    seen = fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert seen[0] == (0, len(BODY))
    assert seen[-1] == (len(BODY), len(BODY))
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_goes_on_after_dropped_connections(server: FileServer, tmp_path: Path) -> None:
    server.drop_after = [100_000, 1_500_000, 1]
    fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert [asked for _, asked in server.requests] == [None, "bytes=100000-", "bytes=1600000-", "bytes=1600001-"]


def test_gives_up_without_progress_and_keeps_the_part(server: FileServer, tmp_path: Path) -> None:
    server.drop_after = [70_000] + [0] * 20
    with pytest.raises(SourceError, match="what has come is kept, try again later"):
        fetch(server, tmp_path / "f")
    assert not (tmp_path / "f").exists()
    assert (tmp_path / "f.part").read_bytes() == BODY[:70_000]
    server.drop_after = []
    fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert server.requests[-1] == ("/f", "bytes=70000-")


def test_a_complete_part_needs_no_more_bytes(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(BODY)
    fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY


@pytest.mark.parametrize("leftover", [b"x" * 1000, b"x" * (len(BODY) + 5), b"x" * len(BODY)])
def test_a_part_of_something_else_is_thrown_away(server: FileServer, tmp_path: Path, leftover: bytes) -> None:
    (tmp_path / "f.part").write_bytes(leftover)
    fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY


def test_servers_without_range_start_again(server: FileServer, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "f.part").write_bytes(BODY[:1000])
    fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY


def test_a_wrong_digest_leaves_nothing(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"has the SHA-256 {DIGEST} instead of 00"):
        fetch(server, tmp_path / "f", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_busy_servers_are_asked_again(server: FileServer, tmp_path: Path) -> None:
    server.statuses = [503, 429, 500]
    fetch(server, tmp_path / "f")
    assert len(server.requests) == 4


@pytest.mark.parametrize(("status", "error"), [(404, SourceError), (401, AccessError), (403, AccessError)])
def test_refusals_are_final(server: FileServer, tmp_path: Path, status: int, error: type[Exception]) -> None:
    server.statuses = [status]
    with pytest.raises(error, match=str(status)):
        fetch(server, tmp_path / "f")
    assert len(server.requests) == 1


def test_an_unreachable_server_is_an_error(tmp_path: Path) -> None:
    with serve_files({}) as state:
        pass
    with pytest.raises(SourceError, match=r"cannot download .*refused"):
        fetch(state, tmp_path / "f")


def test_a_full_disk_is_told_before_the_download(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(folder: Path, num_bytes: int, what: str) -> None:
        assert (folder, num_bytes) == (tmp_path, len(BODY))
        raise SourceError("no room")

    monkeypatch.setattr(pagoda.sources.download, "check_room", no_room)
    with pytest.raises(SourceError, match="no room"):
        fetch(server, tmp_path / "f")


def test_check_room_says_how_much_is_missing(tmp_path: Path) -> None:
    files.check_room(tmp_path, 1, "f")
    with pytest.raises(SourceError, match=r"f needs 1,000,000,000,000 MB .*PAGODA_CACHE"):
        files.check_room(tmp_path, 10**18, "f")
