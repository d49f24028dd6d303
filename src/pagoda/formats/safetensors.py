"""safetensors: a JSON header of tensor places, then the tensors without gaps.

    u64 header bytes · JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": …} · data

Offsets count from the end of the header. As in the format's own library, the tensors must cover the data exactly:
no overlap, no gap, nothing left over; so a truncated file is found without reading it.
"""

from __future__ import annotations

import codecs
import json
import struct
from math import prod
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from pagoda.errors import FormatError
from pagoda.formats.mapped import Buffer, TensorInfo

MAX_HEADER_BYTES = 32 << 20  # 100,000 tensors take about 15 MB
MAX_DIMENSIONS = 8
MAX_CONFIG_BYTES = 64 << 20  # of a JSON file beside the weights

# Type → bytes an element. Those that are not block types are placed and shown; only who needs them refuses them.
DTYPES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1},
}


def parse_safetensors(buffer: Buffer, path: str) -> tuple[TensorInfo, ...]:
    """Parse and check the header of the safetensors file in `buffer`. → the tensors in the order of their bytes.

    Raises FormatError with the offset where the file is truncated or inconsistent.
    """
    header_bytes = _header_bytes(buffer, path)
    start = 8 + header_bytes
    header = parse_json(buffer[8:start], path, offset=8, unique=True)
    header.pop("__metadata__", None)
    tensors = [_place(name, entry, start, path) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.num_bytes))
    _check_covered(tensors, start, len(buffer), path)
    return tuple(tensors)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A header's pairs, no name twice: that is damage, while in a config.json the last value counts, as elsewhere."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return values


def parse_json(raw: bytes, path: str, offset: int | None = None, *, unique: bool = False) -> dict[str, Any]:
    """A JSON object, whose keys have to be unique if asked. FormatError if `raw` is anything else."""
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique if unique else None)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise FormatError(f"not valid JSON: {error}", path=path, offset=offset) from error
    if not isinstance(value, dict):
        raise FormatError(f"a JSON object is needed, not a {type(value).__name__}", path=path, offset=offset)
    return value


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. FormatError if it cannot be read, is too large, or is something else."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror or error}", path=str(path)) from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise FormatError(f"larger than {MAX_CONFIG_BYTES >> 20} MiB", path=str(path))
    return parse_json(raw.removeprefix(codecs.BOM_UTF8), str(path))


def _header_bytes(buffer: Buffer, path: str) -> int:
    if len(buffer) < 8:
        raise FormatError(f"a safetensors file starts with 8 bytes of length, not {len(buffer)}", path=path, offset=0)
    header_bytes = int(struct.unpack_from("<Q", buffer)[0])
    if header_bytes > MAX_HEADER_BYTES:
        message = f"a header of {header_bytes} bytes is larger than {MAX_HEADER_BYTES >> 20} MiB; is it safetensors?"
        raise FormatError(message, path=path, offset=0)
    if header_bytes > len(buffer) - 8:
        message = f"a header of {header_bytes} bytes runs past the end at {len(buffer)}; the file is truncated"
        raise FormatError(message, path=path, offset=0)
    return header_bytes


def _place(name: str, entry: Any, data_offset: int, path: str) -> TensorInfo:
    def fail(message: str) -> NoReturn:
        raise FormatError(f"tensor {name[:100]!r} {message}", path=path, offset=8)

    if not isinstance(entry, dict):
        fail("is not described by an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        fail(f"has the unknown dtype {dtype!r:.100}")
    if not _is_counts(shape) or len(shape) > MAX_DIMENSIONS:
        fail(f"has the impossible shape {shape!r:.100}")
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        fail(f"has the impossible data_offsets {offsets!r:.100}")
    begin, end = offsets
    if end - begin != prod(shape) * DTYPES[dtype]:
        fail(f"of {dtype} {shape} takes {prod(shape) * DTYPES[dtype]} bytes, but its data_offsets span {end - begin}")
    return TensorInfo(name, dtype, tuple(shape) or (1,), data_offset + begin, end - begin)


def _is_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 64 for item in value)


def _check_covered(tensors: list[TensorInfo], start: int, file_bytes: int, path: str) -> None:
    """Tensors, in order of offset, follow each other from `start` to the end of the file."""
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            what = "overlaps the one before" if tensor.offset < end else "leaves a gap before it"
            raise FormatError(f"tensor {tensor.name!r} {what}", path=path, offset=tensor.offset)
        end += tensor.num_bytes
    if end != file_bytes:
        what = "is truncated (download it again)" if end > file_bytes else "has bytes that belong to no tensor"
        message = f"tensors end at byte {end} and the file at {file_bytes}: it {what}"
        raise FormatError(message, path=path, offset=min(end, file_bytes))
