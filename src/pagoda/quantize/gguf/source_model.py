"""Where a GGUF file's tensors come from: a model's files, as what will stand in the new file.

Tensors go by their GGUF names and are read a stretch of rows at a time, so that no tensor needs to fit in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pagoda import _native
from pagoda.formats.checkpoint import Checkpoint
from pagoda.formats.gguf import ALIGNMENT_KEY, Metadata
from pagoda.formats.gguf_writer import Value
from pagoda.formats.quantized import QuantizedTensor
from pagoda.types import FloatArray, RawTensor

DROPPED = ("split.no", "split.count", "split.tensors.count", ALIGNMENT_KEY)


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor to come: its row-major shape, and the type it has (or, of other files, should have unquantized)."""

    shape: tuple[int, ...]
    type: str


class SourceModel(Protocol):
    """A model's tensors and metadata under GGUF's names."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that the tensors are read from."""

    @property
    def names(self) -> Mapping[str, tuple[str, ...]]:
        """The checkpoint's own name of each tensor that is one of its own, or the names that it is a stack of."""

    @property
    def values(self) -> Mapping[str, Value]: ...
    @property
    def sources(self) -> Mapping[str, SourceTensor]: ...

    def raw(self, name: str) -> npt.NDArray[np.uint8] | None:
        """The tensor's bytes, if they can stand in the new file in the source's type; else None."""

    def rows(self, name: str, start: int, stop: int) -> FloatArray:
        """Rows [start, stop) of the tensor seen as [rows, columns], as float32."""

    def release(self, name: str) -> None:
        """Tell the checkpoint that the tensor is no longer needed."""


class GGUFSource:
    """The tensors of a GGUF checkpoint, all metadata kept."""

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        assert isinstance(checkpoint.metadata, Metadata)
        metadata = checkpoint.metadata
        self.values = {key: Value(*metadata.raw(key)) for key in metadata if key not in DROPPED}
        self.sources = {name: SourceTensor(raw.shape, raw.type) for name, raw in checkpoint.tensors.items()}
        self.names = {name: (name,) for name in checkpoint.tensors}
        self.checkpoint = checkpoint
        self._threads = threads

    def raw(self, name: str) -> npt.NDArray[np.uint8] | None:
        return self.checkpoint.tensors[name].data

    def rows(self, name: str, start: int, stop: int) -> FloatArray:
        return decode_rows(self.checkpoint.tensors[name], start, stop, self._threads)

    def release(self, name: str) -> None:
        self.checkpoint.release(name)


def decode_rows(raw: RawTensor, start: int, stop: int, threads: int) -> FloatArray:
    """Rows [start, stop) of `raw` seen as [rows, columns]; a view where it is float32 and aligned already."""
    if isinstance(raw, QuantizedTensor):
        return np.ascontiguousarray(raw.unpack().dequantize()[start:stop])
    columns, data = raw.shape[-1], raw.rows()[start:stop]
    if raw.type == "F32":
        return np.ascontiguousarray(data).view("<f4").reshape(stop - start, columns)
    out = np.empty((stop - start, columns), np.float32)

    def decode(begin: int, end: int) -> None:
        _native.dequantize(data[begin:end].reshape(-1), raw.type, columns, out[begin:end])

    _share(stop - start, threads, decode)
    return out


def _share(rows: int, threads: int, work: Callable[[int, int], None]) -> None:
    cuts = [rows * i // threads for i in range(threads + 1)]
    if threads == 1 or rows < 2 * threads:
        return work(0, rows)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, cuts[:-1], cuts[1:]))
