"""Writing safetensors: places first, then the tensors one after the other, in pieces: no file is ever in memory.

    with SafetensorsFolder(folder, {"model.norm.weight": Place("F32", (64,)), …}) as out:
        for name in out.order: out.write(name, pieces)

Shards end before `max_shard_bytes`, named as transformers names them, with an index where there are several.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pagoda.formats.checkpoint import INDEX, WEIGHTS
from pagoda.formats.disk import check_room
from pagoda.formats.safetensors import DTYPES

MAX_SHARD_BYTES = 5_000_000_000
ALIGNMENT = 64  # of the data; tensors of one size of element then stay aligned


@dataclass(frozen=True, slots=True)
class Place:
    """What a tensor will be: a safetensors dtype and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype]


class SafetensorsFolder:
    """The weights of a Hugging Face folder while they are written; `order` is the order in which to write them.

    Files get their names when all tensors are there: nothing half-written stands under a final name. Raises
    CapacityError where the disk has no room for them.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, Place],
        *,
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> None:
        self.folder = folder
        self._tensors = dict(tensors)
        self._shards = _shards(self._tensors, max_shard_bytes)
        self.order = [name for shard in self._shards for name in shard]
        check_room(folder, sum(place.num_bytes for place in self._tensors.values()))
        self._next = 0
        self._file: BinaryIO | None = None
        self._files: list[Path] = []

    def write(self, name: str, pieces: Iterable[npt.NDArray[Any]]) -> None:
        """The bytes of the next tensor of `order`, in row-major order."""
        assert name == self.order[self._next], f"{name} is written before {self.order[self._next]}"
        if self._is_first_of_shard(name):
            self._open_next()
        assert self._file is not None
        written = 0
        for piece in pieces:
            raw = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
            self._file.write(raw.data)
            written += raw.size
        assert written == self._tensors[name].num_bytes, f"{name}: {written} bytes for {self._tensors[name]}"
        self._next += 1

    def __enter__(self) -> SafetensorsFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close_file()
        if kind is not None:
            for file in self._files:
                file.unlink(missing_ok=True)
            return
        assert self._next == len(self.order), f"{self.order[self._next :]} were not written"
        self._name_files()

    def _is_first_of_shard(self, name: str) -> bool:
        return any(shard[0] == name for shard in self._shards)

    def _open_next(self) -> None:
        self._close_file()
        shard = self._shards[len(self._files)]
        path = self.folder / f"shard-{len(self._files)}.writing"
        self._files.append(path)
        self._file = path.open("wb")
        self._file.write(_header({name: self._tensors[name] for name in shard}))

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _name_files(self) -> None:
        count = len(self._files)
        names = [WEIGHTS] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
        for file, name in zip(self._files, names, strict=True):
            os.replace(file, self.folder / name)
        if count > 1:
            total = sum(place.num_bytes for place in self._tensors.values())
            places = {tensor: name for name, shard in zip(names, self._shards, strict=True) for tensor in shard}
            text = json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2)
            (self.folder / INDEX).write_text(text + "\n", encoding="utf-8")


def _shards(tensors: Mapping[str, Place], max_bytes: int) -> list[list[str]]:
    """Names by shard, in the order given; a tensor larger than a shard has one of its own."""
    shards: list[list[str]] = []
    size = 0
    for name, place in tensors.items():
        if not shards or size + place.num_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += place.num_bytes
    return shards


def _header(tensors: Mapping[str, Place]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, place in tensors.items():
        end = offset + place.num_bytes
        entries[name] = {"dtype": place.dtype, "shape": list(place.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text
