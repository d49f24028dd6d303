"""GGUF files written field by field, so that tests can break any one of them.

`Field` is a metadata value with its GGUF type; `Tensor` is a row of the tensor table with its bytes. Both are
written as they stand: nothing keeps counts, offsets or types consistent but the defaults.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LETTERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


@dataclass(frozen=True)
class Field:
    """A value of GGUF type `type`; of an array `value` is (element type, list)."""

    type: int
    value: Any


@dataclass(frozen=True)
class Tensor:
    """`extents` innermost first, as in the file. offset None: behind the tensor before, aligned."""

    name: str
    extents: tuple[int, ...]
    type: int = 0
    data: bytes = b""
    offset: int | None = None


@dataclass(frozen=True)
class GGUF:
    """A whole file. Counts are those of the lists unless they are given."""

    metadata: Mapping[str, Field] | Sequence[tuple[str, Field]] = field(default_factory=dict)
    tensors: Sequence[Tensor] = ()
    version: int = 3
    alignment: int = 32  # of the data written; metadata may say otherwise
    num_tensors: int | None = None
    num_keys: int | None = None

    def encode(self) -> bytes:
        pairs = list(self.metadata.items()) if isinstance(self.metadata, Mapping) else list(self.metadata)
        num_tensors = len(self.tensors) if self.num_tensors is None else self.num_tensors
        num_keys = len(pairs) if self.num_keys is None else self.num_keys
        out = [b"GGUF", struct.pack("<IQQ", self.version, num_tensors, num_keys)]
        out += [encode_string(key) + struct.pack("<I", item.type) + encode_value(item) for key, item in pairs]
        data = b""
        for tensor in self.tensors:
            offset = len(data) if tensor.offset is None else tensor.offset
            extents = struct.pack(f"<I{len(tensor.extents)}Q", len(tensor.extents), *tensor.extents)
            out.append(encode_string(tensor.name) + extents + struct.pack("<IQ", tensor.type, offset))
            data += tensor.data + bytes(-len(tensor.data) % self.alignment)
        header = b"".join(out)
        return header + (bytes(-len(header) % self.alignment) + data if self.tensors else b"")

    def write(self, path: Path) -> Path:
        path.write_bytes(self.encode())
        return path


def encode_string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def encode_value(item: Field) -> bytes:
    if item.type == STRING:
        return encode_string(item.value)
    if item.type == ARRAY:
        element, values = item.value
        header = struct.pack("<IQ", element, len(values))
        if element in LETTERS:
            return header + struct.pack(f"<{len(values)}{LETTERS[element]}", *values)
        return header + b"".join([encode_value(Field(element, value)) for value in values])
    return struct.pack("<" + LETTERS.get(item.type, "I"), item.value)


def model_metadata(**more: Field) -> dict[str, Field]:
    """The least that makes a model, and more keys."""
    return {"general.architecture": Field(STRING, "llama"), **more}
