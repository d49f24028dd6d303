"""Buffers of values: each is reused once its value was read for the last time, and a sum takes its residual's place."""

from __future__ import annotations

import pytest

from pagoda.backends.buffers import Buffers
from pagoda.backends.fused_nodes import Rowwise
from pagoda.backends.trace import Node


class Program:
    """Counts what it makes: (columns, rows) of each buffer."""

    def __init__(self) -> None:
        self.made: list[tuple[int, int]] = []
        self.quantized: list[tuple[int, int]] = []

    def add_buffer(self, columns: int, rows: int) -> int:
        self.made.append((columns, rows))
        return len(self.made) - 1

    def add_quantized(self, columns: int, rows: int) -> int:
        self.quantized.append((columns, rows))
        return len(self.quantized) - 1


def value(columns: int = 8) -> Node:
    return Node("embed", {}, columns, 0)


def test_a_buffer_is_free_after_the_last_reader() -> None:
    x, once, twice, last = (value() for _ in range(4))
    program = Program()
    buffers = Buffers(program, [Rowwise(once, x, None), Rowwise(twice, x, None)])
    first = buffers.allocate(x)
    buffers.read(x)
    assert buffers.allocate(once) != first  # it is read once more
    buffers.read(x)
    assert buffers.allocate(last) == first
    assert program.made == [(8, 1), (8, 1)]


def test_a_sum_stands_in_the_place_of_its_residual() -> None:
    x, y, total = value(), value(), value()
    buffers = Buffers(Program(), [Rowwise(total, y, x)])
    place, other = buffers.allocate(x), buffers.allocate(y)
    assert buffers.allocate(total, x) == place
    buffers.read(y)
    assert buffers[total] == place
    assert buffers.take(8) == other
    with pytest.raises(KeyError):
        buffers[x]


def test_only_buffers_of_one_size_take_each_others_place() -> None:
    program = Program()
    buffers = Buffers(program, [])
    buffers.give_back(buffers.take(8, 2), 8, 2)
    assert [buffers.take(16), buffers.take(8), buffers.take(8, 2)] == [1, 2, 0]
    assert program.made == [(8, 2), (16, 1), (8, 1)]


def test_codes_of_one_size_share_a_buffer() -> None:
    program = Program()
    buffers = Buffers(program, [])
    assert [buffers.quantized(8), buffers.quantized(8, 2), buffers.quantized(8)] == [0, 1, 0]
    assert program.quantized == [(8, 1), (8, 2)]
