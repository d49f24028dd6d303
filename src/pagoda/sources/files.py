"""Files that appear whole or not at all: one writer at a time, digest checked, written through, then renamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pagoda.errors import SourceError

try:
    import fcntl
except ImportError:  # Windows: two processes that download the same model at once are not kept apart
    fcntl = None  # type: ignore[assignment]

CHUNK_BYTES = 1 << 20

Progress = Callable[[str, int, int | None], None]  # what is done, bytes done, bytes in all or None if unknown


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model whose files are here. `sha256` is what the file must have, where its source says so."""

    path: Path
    name: str
    sha256: str | None = None


@contextmanager
def locked(target: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of `target` among processes; its folder is made if need be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(target.name + ".lock").open("wb") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress(f"waiting for another process that downloads {target.name}", 0, None)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def check_digest(path: Path, sha256: str | None, what: str) -> None:
    """SourceError, and the file is removed, unless it has the digest."""
    if sha256 is None or (found := sha256_of(path)) == sha256:
        return
    path.unlink()
    raise SourceError(f"{what} has the SHA-256 {found} instead of {sha256}; it was removed, try again")


class NoRoomError(SourceError):
    """The disk is full; what was downloaded is right, and is kept."""


def check_room(folder: Path, num_bytes: int, what: str) -> None:
    """NoRoomError unless the disk has room for `num_bytes` more."""
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < num_bytes:
        message = f"{what} needs {num_bytes / 1e6:,.0f} MB in {folder}, where {free / 1e6:,.0f} MB are free"
        raise NoRoomError(f"{message}; free some, or set PAGODA_CACHE to another folder")


def publish(part: Path, target: Path) -> None:
    """Give the finished file or folder `part` its name, durably."""
    if part.is_file():
        with part.open("rb") as file:
            os.fsync(file.fileno())
    part.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
