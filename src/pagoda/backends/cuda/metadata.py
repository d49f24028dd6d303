"""A step's metadata: one array of int32 that is copied to the device at once.

    [0, 2 G)    where each KV group's block tables start in this array, and how wide a row is
    tokens, positions, seqs     [capacity] each; a padding token has position -1
    rows                        [max_rows] whose logits are wanted
    hidden                      [capacity] whose hidden states are wanted
    short, long                 tiles of consecutive tokens of one sequence: first token and count, [capacity, 2] each
    seq_starts, state_starts, state_saves   as `Batch` has them, of models with a state; a padding token is a sequence
                                of its own, which begins at no state and is saved nowhere
    tables                      [B, width] of each group

Everything but the tables has a fixed place, so that a captured graph finds it. Attention takes tiles of two kinds:
short ones, whose keys are split over many programs (decoding, and everything where results must not depend on
the batch), and long ones of prompts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from pagoda.backends.cuda.adapters import StepAdapters
from pagoda.types import BLOCK_SIZE, Batch, Int32Array

HEADER = 16
TILE_SPAN = 16_384  # no short tile crosses a multiple: within it all rows cut their keys alike (`kernels/attend.py`)
Angles = tuple[torch.Tensor, torch.Tensor]  # cos and sin [T, pairs] f32


@dataclass(frozen=True, slots=True)
class Limits:
    """What fits in a step."""

    tokens: int
    rows: int
    seqs: int
    table_width: int  # blocks of the longest sequence
    groups: int
    has_states: bool = False

    @property
    def ints(self) -> int:
        states = 2 * self.seqs + 1 + self.tokens if self.has_states else 0
        return HEADER + 8 * self.tokens + self.rows + states + self.groups * self.seqs * self.table_width


@dataclass(frozen=True, slots=True)
class TileSizes:
    """How many tokens a tile has at most, and how short a sequence's share of the step must be for short tiles."""

    short: int
    long: int
    most_short: int


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A step as ops see it: views of the device's copy. T may be padded beyond the batch's tokens."""

    meta: torch.Tensor  # the whole array
    tokens: torch.Tensor  # [T]
    positions: torch.Tensor  # [T]
    seqs: torch.Tensor  # [T]
    rows: torch.Tensor  # [R]
    hidden: torch.Tensor  # [R2]
    short: torch.Tensor  # [n, 2]
    long: torch.Tensor  # [m, 2]
    short_len: int  # tokens of the longest short tile
    seq_starts: torch.Tensor  # [B + 1]; this and the next two are empty where the model has no state
    state_starts: torch.Tensor  # [B]
    state_saves: torch.Tensor  # [T]
    longest: int  # tokens of the longest sequence
    angles: tuple[Angles, ...] = ()
    adapters: StepAdapters | None = None  # None: no token asks for one

    def with_angles(self, angles: tuple[Angles, ...]) -> Step:
        return replace(self, angles=angles)


@dataclass(frozen=True, slots=True)
class Layout:
    """A step that lies in one of the host's arrays, all but its tokens."""

    host: int
    end: int  # ints that are used
    num_tokens: int  # padded
    num_rows: int
    num_hidden: int
    num_short: int
    num_long: int
    short_len: int
    num_seqs: int  # padded
    longest: int


class StepBuffer:
    """The array on the device, and two on the host, pinned where there is a GPU: one is laid out while the other may
    still be on its way.
    """

    def __init__(self, limits: Limits, tiles: TileSizes, device: torch.device) -> None:
        self.limits, self.tiles = limits, tiles
        pinned = device.type == "cuda"
        self._hosts = [torch.zeros(limits.ints, dtype=torch.int32, pin_memory=pinned) for _ in range(2)]
        self._arrays: list[Int32Array] = [host.numpy() for host in self._hosts]
        self._sent = [torch.cuda.Event() for _ in self._hosts] if pinned else []
        self._next = 0
        self._device = torch.zeros(limits.ints, dtype=torch.int32, device=device)
        tokens, rows = limits.tokens, limits.rows
        sizes = [HEADER, tokens, tokens, tokens, rows, tokens, 2 * tokens, 2 * tokens]
        sizes += [limits.seqs + 1, limits.seqs, tokens] if limits.has_states else [0, 0, 0]
        ends = np.cumsum(sizes).tolist()
        self._tokens, self._positions, self._seqs, self._rows, self._hidden, *places = ends
        self._short, self._long, self._seq_starts, self._state_starts, self._state_saves, self._tables = places

    def lay_out(self, batch: Batch, num_tokens: int, num_rows: int) -> Layout:
        """A batch padded to num_tokens and num_rows, without its tokens."""
        host, self._next = self._next, 1 - self._next
        if self._sent:
            self._sent[host].synchronize()
        array, used, counts = self._arrays[host], len(batch.tokens), np.diff(batch.seq_starts)
        _put(array, self._positions, batch.positions, num_tokens, filler=-1)
        _put(array, self._seqs, np.repeat(np.arange(len(counts), dtype=np.int32), counts), num_tokens)
        _put(array, self._rows, batch.logit_rows, num_rows)
        num_hidden = len(batch.hidden_rows)
        _put(array, self._hidden, batch.hidden_rows, num_hidden)
        short, long = cut_tiles(batch.seq_starts, batch.positions, self.tiles)
        num_short = len(short) if used == num_tokens else num_tokens  # padding comes with decoding: a tile a token
        _put(array, self._short, short.reshape(-1), 2 * num_short)
        _put(array, self._long, long.reshape(-1), 2 * len(long))
        num_seqs = len(counts) + num_tokens - used
        self._put_states(array, batch, num_tokens, num_seqs)
        end = self._put_tables(array, batch.block_tables)
        short_len, longest = int(short[:, 1].max(initial=0)), int(counts.max())
        return Layout(host, end, num_tokens, num_rows, num_hidden, num_short, len(long), short_len, num_seqs, longest)

    def send(self, layout: Layout, tokens: Int32Array, adapters: StepAdapters | None = None) -> Step:
        """Put the tokens in, and copy all to the device."""
        host, has_states = self._hosts[layout.host], int(self.limits.has_states)
        _put(self._arrays[layout.host], self._tokens, tokens, layout.num_tokens)
        self._device[: layout.end].copy_(host[: layout.end], non_blocking=True)
        if self._sent:
            self._sent[layout.host].record()
        return Step(
            meta=self._device,
            tokens=self._view(self._tokens, layout.num_tokens),
            positions=self._view(self._positions, layout.num_tokens),
            seqs=self._view(self._seqs, layout.num_tokens),
            rows=self._view(self._rows, layout.num_rows),
            hidden=self._view(self._hidden, layout.num_hidden),
            short=self._view(self._short, 2 * layout.num_short).view(-1, 2),
            long=self._view(self._long, 2 * layout.num_long).view(-1, 2),
            short_len=layout.short_len,
            seq_starts=self._view(self._seq_starts, has_states * (layout.num_seqs + 1)),
            state_starts=self._view(self._state_starts, has_states * layout.num_seqs),
            state_saves=self._view(self._state_saves, has_states * layout.num_tokens),
            longest=layout.longest,
            adapters=adapters,
        )

    def _put_states(self, array: Int32Array, batch: Batch, num_tokens: int, num_seqs: int) -> None:
        if not self.limits.has_states:
            return
        assert batch.state_starts is not None
        assert batch.state_saves is not None
        used = len(batch.seq_starts)
        array[self._seq_starts : self._seq_starts + used] = batch.seq_starts
        padding = np.arange(1, num_seqs + 2 - used, dtype=np.int32)
        array[self._seq_starts + used : self._seq_starts + num_seqs + 1] = len(batch.tokens) + padding
        _put(array, self._state_starts, batch.state_starts, num_seqs, filler=-1)
        _put(array, self._state_saves, batch.state_saves, num_tokens, filler=-1)

    def _put_tables(self, array: Int32Array, tables: tuple[Int32Array, ...]) -> int:
        at = self._tables
        for group, table in enumerate(tables):
            array[2 * group : 2 * group + 2] = at, table.shape[1]
            array[at : at + table.size] = table.reshape(-1)
            at += table.size
        return int(at)

    def _view(self, at: int, size: int) -> torch.Tensor:
        return self._device[at : at + size]


def _put(array: Int32Array, at: int, values: Int32Array, size: int, filler: int = 0) -> None:
    array[at : at + len(values)] = values
    array[at + len(values) : at + size] = filler


def cut_tiles(seq_starts: Int32Array, positions: Int32Array, sizes: TileSizes) -> tuple[Int32Array, Int32Array]:
    """Short and long tiles (first token, count) that cover the tokens of every sequence."""
    counts = np.diff(seq_starts)
    if counts.size and counts.max() == 1:
        return np.stack([seq_starts[:-1], np.ones_like(counts)], axis=1), np.empty((0, 2), np.int32)
    short: list[tuple[int, int]] = []
    long: list[tuple[int, int]] = []
    for start, count in zip(seq_starts[:-1].tolist(), counts.tolist(), strict=True):
        if count > sizes.most_short:
            long += [(at, min(sizes.long, start + count - at)) for at in range(start, start + count, sizes.long)]
        else:
            short += _short_tiles(start, count, int(positions[start]), sizes.short)
    long.reverse()  # the last tiles of a prompt have the most keys: they start first
    return np.array(short, np.int32).reshape(-1, 2), np.array(long, np.int32).reshape(-1, 2)


def _short_tiles(start: int, count: int, position: int, size: int) -> list[tuple[int, int]]:
    tiles, at = [], 0
    while at < count:
        room = TILE_SPAN - (position + at) % TILE_SPAN
        length = min(size, count - at, room)
        tiles.append((start + at, length))
        at += length
    return tiles


def check_tokens(tokens: Int32Array, num_tokens: int, vocab_size: int) -> None:
    """ValueError for tokens that the embedding does not have."""
    _require(len(tokens) == num_tokens, f"{len(tokens)} tokens for a step of {num_tokens}")
    _require(tokens.min() >= 0 and tokens.max() < vocab_size, f"a token is outside of a vocabulary of {vocab_size}")


def check_batch(
    batch: Batch, limits: Limits, num_blocks: tuple[int, ...], windows: tuple[int | None, ...], num_states: int = 0
) -> None:
    """ValueError for a step that points outside of anything: kernels check nothing. Tokens are `check_tokens`'s."""
    positions, starts = batch.positions, batch.seq_starts
    count = len(batch.tokens)
    _require(0 < count <= limits.tokens, f"a step of {count} tokens; from 1 to {limits.tokens} can be run")
    _require(len(positions) == count, f"{len(positions)} positions for {count} tokens")
    _require(2 <= len(starts) <= limits.seqs + 1, f"a step of {len(starts) - 1} sequences; at most {limits.seqs}")
    _require(starts[0] == 0 and starts[-1] == count, "sequences do not cover the tokens")
    _require(bool((np.diff(starts) > 0).all()), "a sequence has no token")
    inner = np.ones(count, bool)
    inner[starts[:-1]] = False
    _require(bool((np.diff(positions)[inner[1:]] == 1).all()), "positions of a sequence do not follow each other")
    _require(len(batch.logit_rows) <= limits.rows, f"{len(batch.logit_rows)} rows of logits; at most {limits.rows}")
    _require(len(batch.hidden_rows) <= limits.tokens, f"{len(batch.hidden_rows)} rows; at most {limits.tokens}")
    for rows, what in ((batch.logit_rows, "logits"), (batch.hidden_rows, "hidden states")):
        _require(rows.size == 0 or (rows.min() >= 0 and rows.max() < count), f"a row of {what} is no token of the step")
    if batch.adapter_of is not None:
        _check_adapters(batch.adapter_of, len(starts) - 1, len(batch.adapters))
    _require(len(batch.block_tables) == len(num_blocks), f"block tables for {len(batch.block_tables)} KV groups")
    _check_tables(batch, limits, num_blocks, windows)
    if limits.has_states:
        _check_states(batch, num_states)


def _check_states(batch: Batch, num_states: int) -> None:
    for values, of, count in (
        (batch.state_starts, "sequences", len(batch.seq_starts) - 1),
        (batch.state_saves, "tokens", len(batch.tokens)),
    ):
        _require(values is not None and len(values) == count, f"a step without a state for each of its {count} {of}")
        assert values is not None
        within = values.min() >= -1 and values.max() < num_states
        _require(within, f"a state outside of the pool of {num_states} is touched")


def _check_adapters(adapter_of: Int32Array, seqs: int, adapters: int) -> None:
    _require(len(adapter_of) == seqs, f"adapters of {len(adapter_of)} sequences in a step of {seqs}")
    within = adapter_of.min(initial=0) >= -1 and adapter_of.max(initial=-1) < adapters
    _require(within, f"a sequence's adapter is none of the step's {adapters}")


def _check_tables(batch: Batch, limits: Limits, num_blocks: tuple[int, ...], windows: tuple[int | None, ...]) -> None:
    first, last = batch.positions[batch.seq_starts[:-1]], batch.positions[batch.seq_starts[1:] - 1]
    _require(bool((first >= 0).all()), "a position is negative")
    for table, blocks, window in zip(batch.block_tables, num_blocks, windows, strict=True):
        _require(len(table) == len(first), f"{len(table)} block tables for {len(first)} sequences")
        _require(table.shape[1] <= limits.table_width, f"a block table is {table.shape[1]} wide")
        _require(bool((last < table.shape[1] * BLOCK_SIZE).all()), "a position is beyond its block table")
        start = np.zeros_like(first) if window is None else np.maximum(first - window + 1, 0)
        index = np.arange(table.shape[1])
        read = (index >= (start // BLOCK_SIZE)[:, None]) & (index <= (last // BLOCK_SIZE)[:, None])
        touched: npt.NDArray[np.int32] = table[read]
        _require(touched.min() >= 0 and touched.max() < blocks, f"a block outside of the pool of {blocks} is read")


def _require(condition: bool | np.bool_, message: str) -> None:
    if not condition:
        raise ValueError(message)
