"""Vectors of one partition in memory: a few are searched exactly, more than 50,000 through HNSW if `usearch` is there.

Between, bytes are searched, a quarter of what memory has to give, and what is nearest by them is compared exactly. The
graph is built on a thread of its own, from a copy, while searches go on without it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pagoda.types import FloatArray

Rows = npt.NDArray[np.int64]

try:
    from usearch.index import Index, MetricKind, search
except ImportError:
    Index = None

EXACT_UP_TO = 50_000
BYTES_FROM = 8_192  # rows
MORE_BY_BYTES = 32  # candidates by bytes, beyond those that are wanted
BUILD_ROWS = 256  # taken into a graph at once while it is built
CONNECTIVITY, EXPANSION = 24, 128  # of HNSW: recall over 0.99 of the ten nearest among 100,000 questions


def in_bytes(vectors: FloatArray) -> npt.NDArray[np.int8]:
    """Unit vectors [..., d] in bytes of one scale: their elements are seldom above 4 / sqrt(d)."""
    scale = np.float32(127 / min(1.0, 4 / np.sqrt(vectors.shape[-1])))
    codes: npt.NDArray[np.int8] = np.rint(np.clip(vectors * scale, -127, 127)).astype(np.int8)
    return codes


class VectorIndex:
    """Keys by their vectors. Whoever calls holds `lock`; the thread that builds a graph takes it for moments."""

    def __init__(self, lock: threading.RLock | None = None) -> None:
        self._lock = lock or threading.RLock()
        self._keys: list[str | None] = []  # by row; None: the row is free
        self._rows: dict[str, int] = {}
        self._free: list[int] = []
        self._matrix: FloatArray = np.empty((0, 0), np.float32)
        self._codes: npt.NDArray[np.int8] | None = None  # the matrix in bytes; None: few rows, or no usearch
        self._graph: Any = None
        self._changed: set[int] | None = None  # rows written since a graph began to be built; None: none is

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def put(self, key: str, vector: FloatArray) -> None:
        """`vector`: [d], of length 1."""
        self.remove(key)
        if not self._free:
            self._grow(len(vector), 2 * len(self._keys))  # many partitions are conversations of one question
        row = self._free.pop()
        self._matrix[row], self._keys[row], self._rows[key] = vector, key, row
        if self._codes is not None:
            self._codes[row] = in_bytes(vector)
        if self._graph is not None:
            self._graph.add(row, vector)
        elif self._changed is not None:
            self._changed.add(row)
        else:
            self._build_when_large()

    def fill(self, keys: Sequence[str], vectors: FloatArray) -> None:
        """Put many into an empty index at once. `keys` are distinct; `vectors`: [N, d]"""
        self._grow(vectors.shape[1], len(keys))
        count = len(keys)
        self._matrix[:count], self._keys[:count] = vectors, keys
        if self._codes is not None:
            self._codes[:count] = in_bytes(vectors)
        self._rows = {key: row for row, key in enumerate(keys)}
        self._free = list(range(len(self._keys) - 1, count - 1, -1))
        self._build_when_large()

    def _build_when_large(self) -> None:
        if len(self._rows) > EXACT_UP_TO and Index is not None:
            self._changed = set()
            rows = np.fromiter(self._rows.values(), np.int64, len(self._rows))
            threading.Thread(target=self._build, args=(rows, self._matrix[rows])).start()

    def remove(self, key: str) -> None:
        """Nothing happens where it is not."""
        row = self._rows.pop(key, None)
        if row is None:
            return
        self._keys[row] = None
        self._matrix[row] = 0
        if self._codes is not None:
            self._codes[row] = 0
        if self._graph is not None:
            self._graph.remove(row)
        elif self._changed is not None:
            self._changed.add(row)
        self._free.append(row)

    def nearest(self, vector: FloatArray, count: int) -> list[tuple[float, str]]:
        """(cosine, key), nearest first; of equally near ones, those with the lower keys."""
        if not self._rows or len(vector) != self._matrix.shape[1]:
            return []
        if self._graph is not None:
            rows = self._graph.search(vector, count + 8).keys.astype(np.int64)
            scores = self._matrix[rows] @ vector
        elif self._codes is not None:
            wanted = min(count + MORE_BY_BYTES, len(self._keys))
            near = search(self._codes, in_bytes(vector), wanted, MetricKind.IP, exact=True, threads=1)
            rows = near.keys.astype(np.int64)
            scores = self._matrix[rows] @ vector
        else:
            scores = self._matrix @ vector
            wide = min(count + 8, len(scores))
            rows = np.argpartition(-scores, wide - 1)[:wide]
            scores = scores[rows]
        found = [(float(s), key) for s, row in zip(scores, rows, strict=True) if (key := self._keys[row]) is not None]
        return sorted(found, key=lambda pair: (-pair[0], pair[1]))[:count]

    def _build(self, rows: Rows, vectors: FloatArray) -> None:
        """Make a graph of these rows, take in what has changed meanwhile, and use it."""
        graph = Index(
            ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=CONNECTIVITY, expansion_add=EXPANSION,
            expansion_search=EXPANSION,
        )  # fmt: skip
        while len(rows):
            for start in range(0, len(rows), BUILD_ROWS):
                if not threading.main_thread().is_alive():
                    return  # the process ends, and would wait for this thread
                part = slice(start, start + BUILD_ROWS)
                graph.add(rows[part].astype(np.uint64), vectors[part], threads=1)  # beside whoever answers
            rows, vectors = self._changes(graph)

    def _changes(self, graph: Any) -> tuple[Rows, FloatArray]:
        """Rows to be taken into a graph that is being built, and their vectors. Without any, it is used from now on."""
        with self._lock:
            changed = np.array(sorted(self._changed or ()), np.int64)
            self._changed = set()
            for row in changed:
                if row in graph:
                    graph.remove(row)
            rows = changed[[self._keys[row] is not None for row in changed]] if len(changed) else changed
            if not len(rows):
                self._graph, self._changed, self._codes = graph, None, None
            return rows, self._matrix[rows]

    def _grow(self, width: int, size: int) -> None:
        """Make room for so many rows, at least for one more."""
        old = len(self._keys)
        size = max(size, old + 1)
        matrix = np.zeros((size, width), np.float32)
        if old:
            matrix[:old] = self._matrix
        self._matrix = matrix
        if size >= BYTES_FROM and Index is not None and self._graph is None:
            codes = np.zeros((size, width), np.int8)
            if old:
                codes[:old] = in_bytes(matrix[:old]) if self._codes is None else self._codes
            self._codes = codes
        self._keys += [None] * (size - old)
        self._free = list(range(size - 1, old - 1, -1))


class Indexes:
    """An index a partition and space, with a lock around all."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._indexes: dict[tuple[str, str], VectorIndex] = {}

    def put(self, partition: str, space: str, key: str, vector: FloatArray) -> None:
        with self.lock:
            self._indexes.setdefault((partition, space), VectorIndex(self.lock)).put(key, vector)

    def fill(self, partition: str, space: str, keys: Sequence[str], vectors: FloatArray) -> None:
        """Put many at once where none is yet. `keys` are distinct; `vectors`: [N, d], N above 0"""
        with self.lock:
            index = self._indexes[partition, space] = VectorIndex(self.lock)
            index.fill(keys, vectors)

    def remove(self, partition: str, space: str, key: str) -> None:
        """Nothing happens where it is not."""
        with self.lock:
            index = self._indexes.get((partition, space))
            if index is not None:
                index.remove(key)
                if not len(index):
                    del self._indexes[partition, space]

    def nearest(self, partition: str, space: str, vector: FloatArray, count: int) -> list[tuple[float, str]]:
        with self.lock:
            index = self._indexes.get((partition, space))
            return index.nearest(vector, count) if index is not None else []
