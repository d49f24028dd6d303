"""The buffers of a native program that values live in: each is reused once the last reader of its value has run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Protocol

from pagoda.backends.fused_nodes import FusedNode, Source, values_read
from pagoda.backends.trace import Node


class BufferMaker(Protocol):
    """The part of a program that makes buffers. Rows are so many a token."""

    def add_buffer(self, columns: int, rows: int) -> int: ...

    def add_quantized(self, columns: int, rows: int) -> int: ...


class Buffers:
    """Which buffer each value has, by number. Told of nodes in their order: `allocate` what one writes, then `read`."""

    def __init__(self, program: BufferMaker, nodes: Iterable[FusedNode]) -> None:
        self._program = program
        self._readers = Counter(value for node in nodes for value in values_read(node))  # still to come
        self._of: dict[Node, int] = {}
        self._free: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # by columns, and rows a token
        self._quantized: dict[tuple[int, int], int] = {}

    def __getitem__(self, value: Node) -> int:
        return self._of[value]

    def take(self, columns: int, rows: int = 1) -> int:
        """A free buffer of so many rows a token."""
        free = self._free[columns, rows]
        return free.pop() if free else self._program.add_buffer(columns, rows)

    def give_back(self, buffer: int, columns: int, rows: int = 1) -> None:
        """One that was taken, and holds no value."""
        self._free[columns, rows].append(buffer)

    def add(self, out: Node) -> int:
        """A new buffer for a value that is there before the first stage."""
        self._of[out] = self._program.add_buffer(out.columns, 1)
        return self._of[out]

    def allocate(self, out: Node, residual: Node | None = None) -> int:
        """A buffer for the value: the residual's, where it is added to that."""
        if residual is None:
            self._of[out] = self.take(out.columns)
        else:
            self._readers[residual] -= 1
            self._of[out] = self._of.pop(residual)
        return self._of[out]

    def read(self, source: Source) -> None:
        """A reader of what the source is made of has run; after the last one its buffer is free."""
        for value in values_read(source):
            self._readers[value] -= 1
            if self._readers[value] == 0 and value in self._of:  # else a sum stands in it
                self.give_back(self._of.pop(value), value.columns)

    def quantized(self, columns: int, rows: int = 1) -> int:
        """The buffer for codes of that size: what is quantized is read by the next products alone."""
        if (columns, rows) not in self._quantized:
            self._quantized[columns, rows] = self._program.add_quantized(columns, rows)
        return self._quantized[columns, rows]
