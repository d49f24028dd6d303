"""GGUF v2 and v3: nothing that the file says is believed before it is checked against the file's size.

    magic "GGUF" · u32 version · u64 tensors · u64 keys
    keys × (string key · u32 type · value)
    tensors × (string name · u32 dimensions · u64 extents, innermost first · u32 type · u64 offset)
    padding to general.alignment · tensor data at the offsets, each aligned

Every count is compared with the bytes that are left before anything is allocated for it. Array values are only
skipped at first, and decoded when they are asked for.

Covered: nested arrays; split files are put together in `pagoda.formats.checkpoint`. Not covered: version 1,
big-endian files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from pagoda.errors import UnsupportedError
from pagoda.formats.blocks import BLOCK_TYPES, NVFP4, UNREAD_TYPES, BlockType
from pagoda.formats.gguf_fields import ARRAY, SCALARS, STRING, Cursor
from pagoda.formats.mapped import Buffer, TensorInfo, check_apart

MAGIC = b"GGUF"
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_DIMENSIONS = 4
MIN_KEY_BYTES = 8 + 4 + 1  # empty key, type, one byte of value
MIN_TENSOR_BYTES = 8 + 4 + 4 + 8  # empty name, no dimensions, type, offset

_TENSOR_TYPES = {block.id: (name, block) for name, block in {**BLOCK_TYPES, "NVFP4": NVFP4}.items()}
_OTHER_TYPES = {block.id: (name, block) for name, block in UNREAD_TYPES.items()}


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """What stands before the tensor data."""

    version: int
    metadata: Metadata
    tensors: tuple[TensorInfo, ...]
    data_offset: int


def parse_gguf(buffer: Buffer, path: str, *, any_type: bool = False) -> GGUFHeader:
    """Parse and check the header of the GGUF file in `buffer`; tensor data is not touched.

    With `any_type` tensors may have types that Pagoda cannot decode. Raises FormatError with the offset where the file
    is truncated or inconsistent, UnsupportedError for a version or tensor type that Pagoda does not read.
    """
    cursor = Cursor(buffer, path)
    version = _read_version(cursor)
    num_tensors = cursor.count("tensors", MIN_TENSOR_BYTES)
    num_keys = cursor.count("metadata keys", MIN_KEY_BYTES)
    metadata = Metadata(buffer, path, _read_keys(cursor, num_keys))
    alignment = _alignment(metadata, cursor)
    rows = [_read_tensor(cursor) for _ in range(num_tensors)]
    data_offset = -(-cursor.position // alignment) * alignment
    types = _TENSOR_TYPES | _OTHER_TYPES if any_type else _TENSOR_TYPES
    tensors = tuple(_place(row, cursor, data_offset, alignment, types) for row in rows)
    check_apart(tensors, path)
    return GGUFHeader(version, metadata, tensors, data_offset)


class Metadata(Mapping[str, Any]):
    """The keys of a GGUF file in the file's order. Values are Python ints, floats, bools, strs, and lists of them.

    Lists are decoded when asked for, and kept. Bytes that are not UTF-8 become U+FFFD in values.
    """

    def __init__(self, buffer: Buffer, path: str, entries: dict[str, _Entry]) -> None:
        self._cursor = Cursor(buffer, path)
        self._entries = entries
        self._lists: dict[str, list[Any]] = {}

    def __getitem__(self, key: str) -> Any:
        entry = self._entries[key]
        if entry.type != ARRAY:
            return entry.value
        if key not in self._lists:
            self._cursor.position = entry.offset
            self._lists[key] = self._cursor.array()
        return self._lists[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def raw(self, key: str) -> tuple[int, bytes]:
        """The value's GGUF type and its bytes as they stand, to be written again."""
        entry = self._entries[key]
        self._cursor.position = entry.offset
        if entry.type == ARRAY:
            self._cursor.skip_array()
        elif entry.type == STRING:
            self._cursor.string("metadata string")
        else:
            self._cursor.scalar(entry.type)
        return entry.type, self._cursor.buffer[entry.offset : self._cursor.position]

    def offset(self, key: str) -> int:
        """Where the value stands in the file."""
        return self._entries[key].offset


@dataclass(frozen=True, slots=True)
class _Entry:
    type: int
    offset: int
    value: Any  # None for arrays


@dataclass(frozen=True, slots=True)
class _Row:
    """A tensor's row as read: `offset` counts from the start of the data, `at` is where the row stands."""

    at: int
    name: str
    extents: tuple[int, ...]  # innermost first
    type: int
    offset: int


def _read_version(cursor: Cursor) -> int:
    start = cursor.take(4, "magic")
    if (magic := cursor.buffer[start : start + 4]) != MAGIC:
        cursor.fail(f"not a GGUF file: it starts with {magic!r} instead of {MAGIC!r}", start)
    version = cursor.u32("version")
    if version and version & 0xFFFF == 0:
        raise UnsupportedError(f"{cursor.path}: big-endian GGUF files are not supported; convert it to little-endian")
    if version not in (2, 3):
        raise UnsupportedError(f"{cursor.path}: GGUF version {version} is not supported; versions 2 and 3 are")
    return version


def _read_keys(cursor: Cursor, count: int) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    for _ in range(count):
        at = cursor.position
        key = cursor.name("metadata key")
        if key in entries:
            cursor.fail(f"metadata key {key!r} stands twice", at)
        entries[key] = _read_entry(cursor, key)
    return entries


def _read_entry(cursor: Cursor, key: str) -> _Entry:
    at = cursor.position
    type = cursor.u32("type of a metadata value")
    offset = cursor.position
    if type in SCALARS:
        return _Entry(type, offset, cursor.scalar(type))
    if type == STRING:
        return _Entry(type, offset, cursor.string("metadata string").decode("utf-8", "replace"))
    if type == ARRAY:
        cursor.skip_array()
        return _Entry(type, offset, None)
    cursor.fail(f"metadata key {key!r} has the unknown type {type}", at)


def _alignment(metadata: Metadata, cursor: Cursor) -> int:
    alignment = metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        message = f"{ALIGNMENT_KEY} is {alignment!r}, which is not a power of two up to {MAX_ALIGNMENT}"
        cursor.fail(message, metadata.offset(ALIGNMENT_KEY))
    return alignment


def _read_tensor(cursor: Cursor) -> _Row:
    at = cursor.position
    name = cursor.name("tensor name")
    num_dimensions = cursor.u32("number of dimensions")
    if num_dimensions > MAX_DIMENSIONS:
        cursor.fail(f"tensor {name!r} has {num_dimensions} dimensions; GGUF allows {MAX_DIMENSIONS}", at)
    extents = tuple(cursor.u64("dimension") for _ in range(num_dimensions))
    return _Row(at, name, extents, cursor.u32("tensor type"), cursor.u64("tensor offset"))


def _place(
    row: _Row, cursor: Cursor, data_offset: int, alignment: int, types: Mapping[int, tuple[str, BlockType]]
) -> TensorInfo:
    """Check a tensor's type, extents and place against the file."""
    if row.type not in types:
        other = _OTHER_TYPES[row.type][0] if row.type in _OTHER_TYPES else f"number {row.type}"
        raise UnsupportedError(
            f"{cursor.path}: tensor {row.name!r} has the type {other}, which is not supported; "
            f"supported: {', '.join(name for name, _ in _TENSOR_TYPES.values())}"
        )
    type, block = types[row.type]
    shape = row.extents[::-1] or (1,)
    if 0 in shape:
        cursor.fail(f"tensor {row.name!r} has an empty dimension: {shape}", row.at)
    if shape[-1] % block.elements:
        cursor.fail(f"rows of tensor {row.name!r} {shape} are not whole {type} blocks of {block.elements}", row.at)
    if row.offset % alignment:
        cursor.fail(f"tensor {row.name!r} lies at {row.offset}, which is not aligned to {alignment}", row.at)
    start, num_bytes = data_offset + row.offset, prod(shape) // block.elements * block.bytes
    if start + num_bytes > cursor.size:
        cursor.fail(
            f"tensor {row.name!r} {shape} of {type} would end at byte {start + num_bytes}, but the file has "
            f"{cursor.size}; it is truncated (download it again) or damaged",
            row.at,
        )
    return TensorInfo(row.name, type, shape, start, num_bytes)
