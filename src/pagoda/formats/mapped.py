"""A file mapped read-only into memory, and where tensors lie in it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pagoda import _native
from pagoda.errors import FormatError

Buffer = bytes | mmap.mmap  # what parsers read: slices of either are bytes


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. `shape` is row-major; `offset` counts from the start of the file."""

    name: str
    type: str  # key into BLOCK_TYPES; safetensors files may hold further ones
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


def check_apart(tensors: Iterable[TensorInfo], path: str) -> None:
    """FormatError unless names are unique and no two tensors share a byte."""
    names: set[str] = set()
    end, previous = 0, ""
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.name in names:
            raise FormatError(f"tensor {tensor.name!r} stands twice", path=path, offset=tensor.offset)
        if tensor.offset < end:
            message = f"tensors {previous!r} and {tensor.name!r} overlap"
            raise FormatError(message, path=path, offset=tensor.offset)
        names.add(tensor.name)
        end, previous = tensor.offset + tensor.num_bytes, tensor.name


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one state of a file from another without reading it."""

    inode: tuple[int, int]  # with its device
    size: int  # bytes
    written: int  # nanoseconds

    @classmethod
    def of(cls, stat: os.stat_result) -> Version:
        return cls((stat.st_dev, stat.st_ino), stat.st_size, stat.st_mtime_ns)


def release_pages(*views: npt.NDArray[np.uint8]) -> None:
    """Let the OS take back the pages of mapped files that hold nothing but `views` of some of their bytes.

    They are read again from disk if touched. Of arrays that are no such views nothing happens.
    """
    spans: list[tuple[mmap.mmap, int, int]] = []
    for view in views:
        mapped = _mapping(view)
        if mapped is None:
            continue
        low = view.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
        high = low + sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True)) + view.itemsize
        if spans and spans[-1][0] is mapped and spans[-1][2] == low:  # side by side, as experts are
            low = spans.pop()[1]
        spans.append((mapped, low, high))
    for mapped, low, high in spans:
        first, last = -(-low // mmap.PAGESIZE) * mmap.PAGESIZE, high // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            with suppress(OSError, ValueError):  # only advice
                mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def _mapping(view: npt.NDArray[np.uint8]) -> mmap.mmap | None:
    base: object = view
    while isinstance(base, np.ndarray):
        base = base.base
    mapped = base.obj if isinstance(base, memoryview) else base
    return mapped if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") else None


# What is found in the place of a model's file, by how it begins.
STAND_INS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file that it stands for: `git lfs pull` fetches that",
    b"<!doctype html": "a web page, not a model: the link leads to a page about the file, take the one to download it",
}


class MappedFile:
    """`buffer` for parsers, `view` for tensors. The mapping lives until the last view of it is gone.

    Raises FormatError if the file cannot be read, is empty, or is known to be something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lost_before: int | None = None  # pages of other files that were lost before this one was guarded
        try:
            with path.open("rb") as file:
                self._seen = Version.of(os.fstat(file.fileno()))
                self.buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise FormatError("the file is empty", path=str(path), offset=0) from error
        except OSError as error:
            raise FormatError(f"cannot be read: {error.strerror or error}", path=str(path)) from error
        for start, remedy in STAND_INS.items():
            if self.buffer[: len(start)].lower() == start:
                raise FormatError(remedy, path=str(path), offset=0)
        self.size = len(self.buffer)
        self._bytes = np.frombuffer(self.buffer, np.uint8)

    def view(self, start: int, length: int) -> npt.NDArray[np.uint8]:
        """Bytes [start, start + length), not copied, read-only."""
        assert 0 <= start <= start + length <= self.size
        return self._bytes[start : start + length]

    def release(self, start: int, length: int) -> None:
        """Let the OS take back the pages of [start, start + length); they are read again from disk if touched."""
        if not length or not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = start - start % mmap.PAGESIZE
        with suppress(OSError, ValueError):  # only advice
            self.buffer.madvise(mmap.MADV_DONTNEED, first, start + length - first)

    def guard(self) -> None:
        """From now on, a page past the end of a file that was cut short reads as zeros, and `changed` tells of it.

        Until then, and for who does not ask `changed`, reading it ends the process.
        """
        if self._lost_before is None and _native.guard_mapping(self._bytes.ctypes.data, self.size):
            self._lost_before = _native.num_lost_pages()

    def changed(self) -> str | None:
        """What has become of the file since it was opened; None: nothing that could be seen here.

        A file that was replaced by another of its name is still there, unchanged, for who has mapped it.
        """
        if self._lost_before is not None and _native.num_lost_pages() > self._lost_before:
            return f"{self.path} was cut short while it was read"
        try:
            now = Version.of(self.path.stat())
        except OSError:
            return None  # removed, which ends a name, not a file that is mapped
        if now.inode != self._seen.inode or now == self._seen:
            return None
        if now.size != self._seen.size:
            return f"{self.path} had {self._seen.size} bytes when it was opened, and has {now.size}"
        return f"{self.path} was written to while it was read"

    def close(self) -> None:
        """Unmap, now or when the last view is gone. Idempotent; no views may be taken afterwards."""
        address = self._bytes.ctypes.data
        self._bytes = np.empty(0, np.uint8)
        if self._lost_before is not None:
            _native.unguard_mapping(address)
        try:
            self.buffer.close()
        except BufferError:  # of a view that is still there
            if self._lost_before is not None:
                _native.guard_mapping(address, self.size)
