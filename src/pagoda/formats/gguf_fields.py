"""The fields of GGUF files: strings, scalars and arrays, each checked against the end before it is read.

A string is a u64 length and that many bytes; an array is a u32 element type, a u64 count and the elements. All
little-endian. `skip_array` checks an array without allocating for it; `array` decodes one that was skipped before.
"""

from __future__ import annotations

import struct
from typing import Any, NoReturn

import numpy as np

from pagoda.errors import FormatError
from pagoda.formats.mapped import Buffer

MAX_HEADER_BYTES = 64 << 20  # the largest published vocabularies with their merges take below 25 MiB
MAX_NAME_BYTES = 65_535  # of keys, by the specification; we hold tensor names to it too
MAX_ARRAY_DEPTH = 8

BOOL, STRING, ARRAY = 7, 8, 9
# Type id → (name, letter). The letters mean the same to struct and to numpy.
SCALARS = {
    0: ("u8", "B"),
    1: ("i8", "b"),
    2: ("u16", "H"),
    3: ("i16", "h"),
    4: ("u32", "I"),
    5: ("i32", "i"),
    6: ("f32", "f"),
    BOOL: ("bool", "?"),
    10: ("u64", "Q"),
    11: ("i64", "q"),
    12: ("f64", "d"),
}
_SCALAR_STRUCTS = {id: struct.Struct("<" + letter) for id, (_, letter) in SCALARS.items()}
_U32, _U64 = _SCALAR_STRUCTS[4], _SCALAR_STRUCTS[10]
_ARRAY_HEADER = struct.Struct("<IQ")  # element type, count


class Cursor:
    """Reads fields one after another, never past the end of the file or of the largest sane header."""

    def __init__(self, buffer: Buffer, path: str) -> None:
        self.buffer = buffer
        self.path = path
        self.size = len(buffer)
        self.header_end = min(self.size, MAX_HEADER_BYTES)
        self.position = 0

    def fail(self, message: str, offset: int) -> NoReturn:
        raise FormatError(message, path=self.path, offset=offset)

    def take(self, length: int, what: str) -> int:
        """Step over `length` bytes and return where they start."""
        start = self.position
        if length > self.header_end - start:
            self._too_long(f"{what} of {length} bytes", start)
        self.position = start + length
        return start

    def _too_long(self, what: str, offset: int) -> NoReturn:
        if self.header_end < self.size:
            self.fail(f"{what} makes the header larger than {MAX_HEADER_BYTES >> 20} MiB, which no model needs", offset)
        self.fail(f"{what} runs past the end of the file at {self.size}; the file is truncated or damaged", offset)

    def u32(self, what: str) -> int:
        start = self.take(4, what)
        return int(_U32.unpack_from(self.buffer, start)[0])

    def u64(self, what: str) -> int:
        start = self.take(8, what)
        return int(_U64.unpack_from(self.buffer, start)[0])

    def count(self, what: str, min_bytes: int) -> int:
        """A u64 number of things that take at least `min_bytes` each, checked against what is left."""
        at = self.position
        count = self.u64(f"number of {what}")
        if count * min_bytes > self.header_end - self.position:
            self._too_long(f"a count of {count} {what}", at)
        return count

    def string(self, what: str) -> bytes:
        length = self.u64(f"length of {what}")
        start = self.take(length, what)
        return self.buffer[start : start + length]

    def name(self, what: str) -> str:
        at = self.position
        raw = self.string(what)
        if len(raw) > MAX_NAME_BYTES:
            self.fail(f"{what} of {len(raw)} bytes is longer than {MAX_NAME_BYTES}", at)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8", at)

    def scalar(self, type: int) -> int | float | bool:
        layout = _SCALAR_STRUCTS[type]
        value: int | float | bool = layout.unpack_from(self.buffer, self.take(layout.size, SCALARS[type][0]))[0]
        return value

    def _array_header(self, depth: int) -> tuple[int, int]:
        """→ element type and count, with room for so many elements."""
        at = self.take(_ARRAY_HEADER.size, "array header")
        type, count = _ARRAY_HEADER.unpack_from(self.buffer, at)
        if type in SCALARS:
            smallest = _SCALAR_STRUCTS[type].size
        elif type == STRING:
            smallest = _U64.size
        elif type == ARRAY and depth < MAX_ARRAY_DEPTH:
            smallest = _ARRAY_HEADER.size
        else:
            nested = f"arrays nested more than {MAX_ARRAY_DEPTH} deep"
            self.fail(nested if type == ARRAY else f"unknown array element type {type}", at)
        if count * smallest > self.header_end - self.position:
            self._too_long(f"an array of {count} elements", at)
        return type, count

    def skip_array(self, depth: int = 1) -> None:
        """Step over an array, checking it without decoding it."""
        type, count = self._array_header(depth)
        if type in SCALARS:
            self.take(count * _SCALAR_STRUCTS[type].size, "array")
        elif type == STRING:
            self._skip_strings(count)
        else:
            for _ in range(count):
                self.skip_array(depth + 1)

    def _skip_strings(self, count: int) -> None:
        # The hot loop of opening a model: vocabularies have several hundred thousand strings.
        length_at, buffer, position, last = _U64.unpack_from, self.buffer, self.position, self.header_end - 8
        for _ in range(count):
            if position > last:
                self._too_long("a string", position)
            position += 8 + length_at(buffer, position)[0]
        if position > self.header_end:
            self._too_long("a string", self.position)
        self.position = position

    def array(self) -> list[Any]:
        """Decode an array that `skip_array` has been over."""
        type, count = self._array_header(1)
        if type == STRING:
            return self._strings(count)
        if type == ARRAY:
            return [self.array() for _ in range(count)]
        letter, size = SCALARS[type][1], _SCALAR_STRUCTS[type].size
        start = self.take(count * size, "array")
        raw = self.buffer[start : start + count * size]
        values: list[Any] = np.frombuffer(raw, "<" + letter).tolist()
        return values

    def _strings(self, count: int) -> list[str]:
        length_at, buffer, position = _U64.unpack_from, self.buffer, self.position
        strings = []
        for _ in range(count):
            start = position + 8
            position = start + length_at(buffer, position)[0]
            strings.append(buffer[start:position].decode("utf-8", "replace"))
        self.position = position
        return strings
