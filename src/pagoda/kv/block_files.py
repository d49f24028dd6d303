"""KV blocks in files of a folder, found again by the key of their prefix, by this process or a later one.

    FOLDER/lock            held while a process uses the folder
    FOLDER/secret          32 bytes, from which prefix keys and the files' checksums are made
    FOLDER/MODEL/ab/KEY-G  magic, checksum, and the block of KV group G, sealed perhaps

MODEL stands for all that the numbers depend on, so blocks of another model, type or version are never found. A file is
believed only if its checksum, keyed with the secret, is that of its name and content: one that was cut short, moved,
or made by somebody else is removed and never used. The files used longest ago go when the folder is full.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from hmac import compare_digest
from pathlib import Path
from typing import IO

from pagoda.crypt import Cipher
from pagoda.errors import ConfigError
from pagoda.settings import parse_size

MAGIC = b"PGDAKV01"
CHECK_BYTES = 16
SECRET_BYTES = 32
HEADER = len(MAGIC) + CHECK_BYTES


def parse_offload(text: str) -> tuple[Path, int]:
    """PATH:SIZE → (folder, bytes). Raises ConfigError."""
    path, _, size = text.rpartition(":")
    try:
        if path:
            return Path(path).expanduser(), parse_size(size)
    except ValueError:
        pass
    raise ConfigError(f"--kv-offload {text!r}: want PATH:SIZE, such as /var/cache/pagoda:20GB")


@dataclass(slots=True)
class FileCounts:
    """What happened to files since the folder was opened."""

    written: int = 0
    read: int = 0
    rejected: int = 0
    evicted: int = 0


class BlockFiles:
    """The blocks of one model in a folder that holds `max_bytes` of files, those of other models included.

    Any thread may use it. ConfigError: the folder cannot be used, or another process has it.
    """

    def __init__(self, folder: Path, max_bytes: int, model: str, cipher: Cipher | None = None) -> None:
        self._folder, self._max_bytes, self._model, self._cipher = folder, max_bytes, model, cipher
        self.counts = FileCounts()
        self.num_bytes = 0
        self._files: OrderedDict[str, int] = OrderedDict()  # bytes by path below the folder, the least recent first
        self._guard = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _lock(folder)
            self.secret = _secret(folder / "secret")
            for name, size in _found(folder):
                self._files[name] = size
                self.num_bytes += size
            self._make_room(0)
        except OSError as error:
            raise ConfigError(f"--kv-offload: {folder} cannot be used: {error.strerror or error}") from None

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, block: tuple[int, bytes]) -> bool:
        return self._name(*block) in self._files

    def read(self, group: int, key: bytes) -> bytes | None:
        """The block's content; None: there is none that can be believed."""
        name = self._name(group, key)
        path = self._folder / name
        try:
            data = path.read_bytes()
        except OSError:
            self._drop(name)
            return None
        content = self._believed(name, data)
        if content is None:
            self.counts.rejected += 1
            self._drop(name)
            return None
        self.counts.read += 1
        with self._guard:
            if name in self._files:
                self._files.move_to_end(name)
        os.utime(path)  # so that a later process knows the order, too
        return content

    def write(self, group: int, key: bytes, content: bytes) -> None:
        """Keep a block, unless it is kept already. Raises OSError, and then there is no such file."""
        name = self._name(group, key)
        body = content if self._cipher is None else self._cipher.seal(content, name)
        size = HEADER + len(body)
        if name in self._files or size > self._max_bytes:
            return
        self._make_room(size)
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        work = path.with_suffix(".writing")
        try:
            with open(work, "wb") as file:
                file.write(MAGIC + self._check(name, body))
                file.write(body)
            os.replace(work, path)
        except OSError:
            work.unlink(missing_ok=True)
            raise
        self.counts.written += 1
        with self._guard:
            self._files[name] = size
            self.num_bytes += size

    def close(self) -> None:
        """Let another process have the folder. Idempotent."""
        self._lock.close()

    # Inside

    def _name(self, group: int, key: bytes) -> str:
        text = key.hex()
        return f"{self._model}/{text[:2]}/{text}-{group}"

    def _check(self, name: str, body: bytes) -> bytes:
        hasher = blake2b(name.encode() + b"\0", digest_size=CHECK_BYTES, key=self.secret)
        hasher.update(body)
        return hasher.digest()

    def _believed(self, name: str, data: bytes) -> bytes | None:
        body = data[HEADER:]
        if data[: len(MAGIC)] != MAGIC or not compare_digest(data[len(MAGIC) : HEADER], self._check(name, body)):
            return None
        if self._cipher is None:
            return body
        try:
            return self._cipher.open(body, name)
        except ValueError:
            return None

    def _make_room(self, size: int) -> None:
        while self.num_bytes + size > self._max_bytes and self._files:
            self.counts.evicted += 1
            self._drop(next(iter(self._files)))

    def _drop(self, name: str) -> None:
        with self._guard:
            self.num_bytes -= self._files.pop(name, 0)
        (self._folder / name).unlink(missing_ok=True)


def _lock(folder: Path) -> IO[bytes]:
    """A file that is held locked until it is closed."""
    file = os.fdopen(os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ConfigError(
            f"--kv-offload: another process uses {folder}; give each server a folder of its own"
        ) from None
    return file


def _secret(path: Path) -> bytes:
    """What lies there, or a new one."""
    if path.exists() and len(found := path.read_bytes()) == SECRET_BYTES:
        return found
    made = os.urandom(SECRET_BYTES)
    work = path.with_suffix(".writing")
    with open(os.open(work, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(made)
    os.replace(work, path)
    return made


def _found(folder: Path) -> Iterator[tuple[str, int]]:
    """Files of blocks and their sizes, the least recently used first; what a killed process left unfinished goes."""
    files = []
    for path in folder.glob("*/??/*"):
        if path.suffix == ".writing":
            path.unlink(missing_ok=True)
        else:
            status = path.stat()
            files.append((status.st_mtime, str(path.relative_to(folder)), status.st_size))
    for _, name, size in sorted(files):
        yield name, size
