"""Writing GGUF v3 files: the header, whose every byte is known before the first tensor, then tensors one at a time.

    values = {"general.architecture": text("llama"), "llama.block_count": u32(30)}
    with GGUFWriter(path, values, [TensorRow("output_norm.weight", "F32", (576,))]) as writer:
        for row in writer.missing():
            writer.write(row.name, data)

The file grows from front to back, so what an interrupt leaves is whole up to its end: a writer of the same header goes
on after the last whole tensor.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from pagoda.formats.blocks import BLOCK_TYPES, tensor_bytes
from pagoda.formats.disk import check_room
from pagoda.formats.gguf import DEFAULT_ALIGNMENT, MAGIC
from pagoda.formats.gguf_fields import ARRAY, BOOL, SCALARS, STRING

VERSION = 3
U32, I32, F32, U64 = 4, 5, 6, 10


@dataclass(frozen=True, slots=True)
class Value:
    """A metadata value as it stands in a file: its GGUF type and its bytes."""

    type: int
    raw: bytes


def u32(value: int) -> Value:
    return Value(U32, struct.pack("<I", value))


def u64(value: int) -> Value:
    return Value(U64, struct.pack("<Q", value))


def f32(value: float) -> Value:
    return Value(F32, struct.pack("<f", value))


def boolean(value: bool) -> Value:
    return Value(BOOL, struct.pack("<?", value))


def text(value: str) -> Value:
    return Value(STRING, _string(value))


def texts(values: Iterable[str]) -> Value:
    listed = list(values)
    return Value(ARRAY, struct.pack("<IQ", STRING, len(listed)) + b"".join([_string(value) for value in listed]))


def numbers(type: int, values: Sequence[int] | Sequence[float]) -> Value:
    """An array of scalars of GGUF type `type`, such as U32, I32 or F32."""
    letter = SCALARS[type][1]
    return Value(ARRAY, struct.pack("<IQ", type, len(values)) + np.asarray(values, "<" + letter).tobytes())


def _string(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


@dataclass(frozen=True, slots=True)
class TensorRow:
    """A tensor to be written: its name, block type and row-major shape."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return tensor_bytes(self.type, self.shape)


class GGUFWriter:
    """Writes the file at `path`; also a context manager that closes it. Tensors are written in the order of `rows`.

    A file that is there already is gone on with if it starts with the same header, else overwritten. Raises
    CapacityError where the disk has no room for the whole file.
    """

    def __init__(self, path: Path, values: Mapping[str, Value], rows: Sequence[TensorRow]) -> None:
        self.path = path
        self.rows = tuple(rows)
        self._offsets, size = _layout(self.rows)
        header = _header(values, self.rows, self._offsets)
        self._data = len(header)
        self.file_bytes = self._data + size
        self._done = _whole_tensors(path, header, [self._end(i) for i in range(len(self.rows))])
        check_room(path.parent, self.file_bytes, there=path.stat().st_size if path.is_file() else 0)
        self._file = path.open("r+b" if self._done is not None else "wb")
        if self._done is None:
            self._file.write(header)
            self._done = 0
        self._written = 0  # bytes of the tensor that is being written
        self._file.seek(self._data + self._offsets[self._done] if self._done < len(self.rows) else self.file_bytes)
        self._file.truncate()

    def _end(self, index: int) -> int:
        return self._data + _padded(self._offsets[index] + self.rows[index].num_bytes)

    def missing(self) -> tuple[TensorRow, ...]:
        """The tensors that are still to be written, in order."""
        assert self._done is not None
        return self.rows[self._done :]

    def write(self, name: str, data: npt.NDArray[Any]) -> None:
        """The next bytes of the next tensor, which must be `name`: all of them, or some after which others follow."""
        assert self._done is not None
        row = self.rows[self._done]
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        assert row.name == name
        assert self._written + raw.size <= row.num_bytes
        self._file.write(raw.data)
        self._written += raw.size
        if self._written == row.num_bytes:
            self._file.write(bytes(-row.num_bytes % DEFAULT_ALIGNMENT))
            self._done, self._written = self._done + 1, 0

    def finish(self) -> None:
        """See that every tensor is there and every byte on the disk."""
        assert not self.missing()
        assert self._file.tell() == self.file_bytes
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> GGUFWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.finish()
        finally:
            self._file.close()


def _padded(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _layout(rows: Sequence[TensorRow]) -> tuple[list[int], int]:
    """→ where each tensor starts, counted from the first, and the bytes of all"""
    offsets, end = [], 0
    for row in rows:
        offsets.append(end)
        end += _padded(row.num_bytes)
    return offsets, end


def _header(values: Mapping[str, Value], rows: Sequence[TensorRow], offsets: Sequence[int]) -> bytes:
    out = [MAGIC, struct.pack("<IQQ", VERSION, len(rows), len(values))]
    out += [_string(key) + struct.pack("<I", value.type) + value.raw for key, value in values.items()]
    for row, offset in zip(rows, offsets, strict=True):
        extents = struct.pack(f"<I{len(row.shape)}Q", len(row.shape), *row.shape[::-1])
        out.append(_string(row.name) + extents + struct.pack("<IQ", BLOCK_TYPES[row.type].id, offset))
    header = b"".join(out)
    return header + bytes(-len(header) % DEFAULT_ALIGNMENT)


def _whole_tensors(path: Path, header: bytes, ends: Sequence[int]) -> int | None:
    """How many tensors the file at `path` holds that starts with `header`; None if there is no such file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        if file.read(len(header)) != header:
            return None
    size = path.stat().st_size
    return sum(end <= size for end in ends)
