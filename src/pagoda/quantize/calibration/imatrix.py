"""Importance matrices: for each weight, the mean square of what each of its columns is multiplied by.

An error in a column that sees large inputs costs more than one in a column that hardly sees any, so encoders weigh
squared errors by it. Files are llama.cpp's, in either form:

    GGUF      general.type "imatrix"; tensors NAME.in_sum2 (sums of squares) and NAME.counts (of inputs), of a stack
              of experts each expert's
    legacy    i32 entries; entries × (i32 length, name, i32 calls, i32 numbers, f32 means × calls); i32 calls,
              i32 length, name of the data set
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pagoda.errors import FormatError
from pagoda.formats.blocks import dequantize
from pagoda.formats.gguf import MAGIC, parse_gguf
from pagoda.formats.gguf_writer import GGUFWriter, TensorRow, text, texts, u32
from pagoda.formats.mapped import MappedFile
from pagoda.quantize.arrays import Doubles
from pagoda.types import FloatArray

SUMS, COUNTS = ".in_sum2", ".counts"
MAX_ENTRIES = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One weight's sums of squared inputs by column, or those of a stack of N: [N * in], over counts [N] of inputs."""

    sums: Doubles
    counts: Doubles

    @classmethod
    def of(cls, sums: Doubles, count: float) -> Entry:
        """The entry of one weight."""
        return cls(sums, np.array([float(count)]))

    @classmethod
    def stacked(cls, entries: Sequence[Entry]) -> Entry:
        return cls(np.concatenate([e.sums for e in entries]), np.concatenate([e.counts for e in entries]))

    def means(self) -> FloatArray:
        """→ [N, in]"""
        means: Doubles = self.sums.reshape(len(self.counts), -1) / np.maximum(self.counts, 1.0)[:, None]
        return means.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Imatrix:
    """Entries by GGUF tensor name; `chunks` windows of `chunk_tokens` tokens of `datasets` were looked at."""

    entries: Mapping[str, Entry]
    name: str  # of the file, or what it was made from
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_tokens: int = 512

    def columns(self, name: str, columns: int, matrices: int = 1) -> list[FloatArray | None]:
        """The importance of each column of weight `name`, or of each of a stack of so many matrices.

        None where nothing is known. FormatError if sizes differ.
        """
        entry = self.entries.get(name)
        if entry is None:
            return [None] * matrices
        if len(entry.sums) != columns * matrices or len(entry.counts) not in (1, matrices):
            raise FormatError(
                f"the importance matrix has {len(entry.sums)} columns for {name!r}, which has {columns * matrices}; "
                "it is of another model",
                path=self.name,
            )
        means = entry.means().reshape(matrices, columns)
        counts = np.broadcast_to(entry.counts, matrices)
        return [row if count > 0 and row.any() else None for row, count in zip(means, counts, strict=True)]


def read_imatrix(path: Path) -> Imatrix:
    """Read either form. FormatError if the file is damaged, of another kind, or holds what is not a number."""
    file = MappedFile(path)
    try:
        imatrix = _read_gguf(file, path) if file.buffer[:4] == MAGIC else _read_legacy(file.buffer[:], path)
    finally:
        file.close()
    for name, entry in imatrix.entries.items():
        if not np.isfinite(entry.sums).all() or (entry.sums < 0).any():
            raise FormatError(f"the entry of {name!r} holds what is no mean of squares", path=str(path))
    return imatrix


def write_imatrix(imatrix: Imatrix, path: Path) -> None:
    """Write a .dat file in the legacy form, any other as GGUF; it gets its name when it is whole."""
    part = path.with_name(path.name + ".partial")
    if path.suffix == ".dat":
        part.write_bytes(_legacy_bytes(imatrix))
    else:
        _write_gguf(imatrix, part)
    os.replace(part, path)


# GGUF


def _read_gguf(file: MappedFile, path: Path) -> Imatrix:
    header = parse_gguf(file.buffer, str(path))
    metadata = header.metadata
    if metadata.get("general.type") != "imatrix":
        raise FormatError("is a GGUF file, but no importance matrix", path=str(path))
    arrays = {}
    for info in header.tensors:
        data = file.view(info.offset, info.num_bytes)
        arrays[info.name] = dequantize(data, info.type, info.shape).reshape(-1).astype(np.float64)
    entries = {}
    for name, sums in arrays.items():
        if not name.endswith(SUMS):
            continue
        weight = name.removesuffix(SUMS)
        counts = arrays.get(weight + COUNTS)
        if counts is None or not len(counts):
            raise FormatError(f"{weight + COUNTS!r} is missing", path=str(path))
        if len(sums) % len(counts):
            raise FormatError(f"{name!r} does not divide among {len(counts)} experts", path=str(path))
        entries[weight] = Entry(sums, counts)
    datasets = metadata.get("imatrix.datasets", [])
    return Imatrix(
        entries,
        str(path),
        tuple(datasets) if isinstance(datasets, list) else (),
        int(metadata.get("imatrix.chunk_count", 0)),
        int(metadata.get("imatrix.chunk_size", 512)),
    )


def _write_gguf(imatrix: Imatrix, path: Path) -> None:
    path.unlink(missing_ok=True)
    values = {
        "general.type": text("imatrix"),
        "imatrix.datasets": texts(imatrix.datasets),
        "imatrix.chunk_count": u32(imatrix.chunks),
        "imatrix.chunk_size": u32(imatrix.chunk_tokens),
    }
    rows = []
    for name in sorted(imatrix.entries):
        count, size = len(imatrix.entries[name].counts), len(imatrix.entries[name].sums)
        rows.append(TensorRow(name + SUMS, "F32", (size,) if count == 1 else (count, size // count)))
        rows.append(TensorRow(name + COUNTS, "F32", (1,) if count == 1 else (count, 1)))
    with GGUFWriter(path, values, rows) as writer:
        for name in sorted(imatrix.entries):
            writer.write(name + SUMS, imatrix.entries[name].sums.astype("<f4"))
            writer.write(name + COUNTS, imatrix.entries[name].counts.astype("<f4"))


# The legacy form


class _Reader:
    def __init__(self, raw: bytes, path: Path) -> None:
        self.raw, self.path, self.position = raw, str(path), 0

    def take(self, size: int) -> bytes:
        start = self.position
        if size < 0 or start + size > len(self.raw):
            raise FormatError("the importance matrix is truncated, or no such file", path=self.path, offset=start)
        self.position = start + size
        return self.raw[start : self.position]

    def i32(self) -> int:
        return int(struct.unpack("<i", self.take(4))[0])


def _read_legacy(raw: bytes, path: Path) -> Imatrix:
    reader = _Reader(raw, path)
    count = reader.i32()
    if not 0 < count <= MAX_ENTRIES:
        raise FormatError(f"a count of {count} entries: this is no importance matrix", path=str(path), offset=0)
    entries = {}
    for _ in range(count):
        name = reader.take(reader.i32()).decode("utf-8", "replace")
        calls, size = reader.i32(), reader.i32()
        sums = np.frombuffer(reader.take(4 * size), "<f4").astype(np.float64)
        entries[name] = Entry.of(sums, max(calls, 1))
    if reader.position == len(raw):  # older files end here
        return Imatrix(entries, str(path))
    chunks = reader.i32()
    dataset = reader.take(reader.i32()).decode("utf-8", "replace") if reader.position < len(raw) else ""
    return Imatrix(entries, str(path), (dataset,) if dataset else (), max(chunks, 0))


def _legacy_bytes(imatrix: Imatrix) -> bytes:
    out = [struct.pack("<i", len(imatrix.entries))]
    for name in sorted(imatrix.entries):
        entry = imatrix.entries[name]
        calls = max(-(-int(entry.counts.max()) // imatrix.chunk_tokens), 1)
        raw = name.encode()
        values = (entry.means() * np.float32(calls)).astype("<f4").reshape(-1)
        out += [struct.pack("<i", len(raw)), raw, struct.pack("<ii", calls, len(values)), values.tobytes()]
    dataset = ", ".join(imatrix.datasets).encode()
    return b"".join(out) + struct.pack("<ii", imatrix.chunks, len(dataset)) + dataset
