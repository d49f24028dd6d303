"""A model without arithmetic whose every output depends on everything that it should have read through the KV blocks.

Two 'layers' of sums over hashed tokens stand in for attention: layer 1 sums what it finds in the slots of the tokens
that a token sees, layer 2 sums what layer 1 made of them. A token computed with a wrong block, a stale slot, a
missing copy or beside another context thus spoils all that comes after it, in its own sequence and wherever its
block is shared. What no correct engine does fails at once: a slot written twice in a step, a read of a given-back
block, a block number outside of the pool. With `RECURRENT` among the windows a third layer hashes all tokens into a
state.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pagoda.backends.base import LOGIT_BLOCK, PlacedAdapter, TopKBlocks
from pagoda.backends.specs import AdapterWeights, LoraType
from pagoda.engine.drafters import Drafter, Pace
from pagoda.engine.engine import Engine
from pagoda.engine.limits import EngineLimits
from pagoda.engine.offload import KVOffload
from pagoda.sampling.base import SamplerProtocol
from pagoda.sampling.reference import ReferenceSampler
from pagoda.types import BLOCK_SIZE, Batch, FloatArray, Int32Array

UInt64Array = npt.NDArray[np.uint64]

VOCAB_SIZE = 40
EOS_ID = 0
RECURRENT = 0  # in place of a window: a layer with a state, in no KV group


def kv_windows(windows: Sequence[int | None]) -> tuple[int | None, ...]:
    """The KV groups'."""
    return tuple(window for window in windows if window != RECURRENT)


def mix(a: UInt64Array, b: UInt64Array) -> UInt64Array:
    """A hash of two numbers each."""
    x = a * np.uint64(0x9E3779B97F4A7C15) + b * np.uint64(0xC2B2AE3D27D4EB4F) + np.uint64(0x165667B19E3779F9)
    x ^= x >> np.uint64(29)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    return x ^ (x >> np.uint64(32))


class FakeModel:
    """A `LoadedModel` that computes inside `launch`; layer l belongs to KV group l % number of groups."""

    weight_bytes = 1000
    buffer_bytes = 100
    graph_bytes = 0
    asynchronous = False
    ranker: FakeRankingDevice | None = None

    def __init__(self, windows: Sequence[int | None], *, fail_at_step: int | None = None) -> None:
        self.windows = kv_windows(windows)
        self.state_bytes = 64 if RECURRENT in windows else 0
        self.batches: list[tuple[int, ...]] = []  # tokens of each sequence, a step each
        self.num_copies = 0
        self.closed = False
        self._fail_at_step = fail_at_step
        self._staged: Batch | None = None
        count = len(self.windows)
        self._layer_groups = [layer % count for layer in range(max(2, count))]

    def block_bytes(self, group: int) -> int:
        return 8 * BLOCK_SIZE * (1 + self._layer_groups.count(group))

    def place_adapter(self, weights: AdapterWeights, *, type: LoraType) -> PlacedAdapter:
        raise AssertionError("nothing here has an adapter")

    def allocate_kv(self, num_blocks: tuple[int, ...], num_states: int = 0) -> None:
        shapes = [(n, BLOCK_SIZE) for n in num_blocks]
        self._positions = [np.full(shape, -1, np.int64) for shape in shapes]
        self._values = [np.zeros(shapes[group], np.uint64) for group in self._layer_groups]
        self._states = np.zeros(num_states, np.uint64)
        self._state_lengths = np.full(num_states, -1, np.int64)  # tokens that are in each

    def stage(self, batch: Batch) -> None:
        self._staged = batch

    def launch(self, tokens: Int32Array) -> None:
        assert self._staged is not None, "a launch without a staged step"
        batch, self._staged = replace(self._staged, tokens=tokens), None
        self._logits = self.answer(batch)

    def wait(self, rows: Int32Array | None = None) -> FloatArray:
        return self._logits if rows is None else self._logits[rows]

    def hidden_states(self) -> FloatArray:
        """A hash of all that each token sees, in 24 bits. [R2, 1]"""
        return self._hidden

    def answer(self, batch: Batch) -> FloatArray:
        """Compute a step. → logits [R, V]"""
        counts = np.diff(batch.seq_starts)
        self.batches.append(tuple(counts.tolist()))
        if self._fail_at_step == len(self.batches):
            raise RuntimeError("the device is on fire")
        self._check(batch, counts)
        x = mix(batch.tokens.astype(np.uint64), np.uint64(7) + np.zeros(len(batch.tokens), np.uint64))
        for layer, group in enumerate(self._layer_groups):
            x = self._layer(layer, group, batch, x)
        if self.state_bytes:
            x = self._recurrent_layer(batch, x)
        self._hidden = (x[batch.hidden_rows] >> np.uint64(40)).astype(np.float32)[:, None]
        rows = x[batch.logit_rows]
        noise = mix(rows[:, None], np.arange(VOCAB_SIZE, dtype=np.uint64)[None, :])
        return ((noise >> np.uint64(44)).astype(np.float32) / np.float32(2**20) * np.float32(6)).copy()

    def _check(self, batch: Batch, counts: npt.NDArray[np.integer]) -> None:
        num_seqs = len(batch.context_lens)
        assert len(counts) == num_seqs
        assert (counts > 0).all()
        for b in range(num_seqs):
            positions = batch.positions[batch.seq_starts[b] : batch.seq_starts[b + 1]]
            assert positions[-1] + 1 == batch.context_lens[b]
            assert (np.diff(positions) == 1).all()
        for group, table in enumerate(batch.block_tables):
            assert table.shape[0] == num_seqs
            assert table.flags.c_contiguous
            owner = np.repeat(np.arange(num_seqs), counts)
            slots = table[owner, batch.positions // BLOCK_SIZE] * BLOCK_SIZE + batch.positions % BLOCK_SIZE
            assert slots.min() >= 0
            assert len(set(slots.tolist())) == len(slots), "two tokens of a step share a slot"
            self._positions[group].reshape(-1)[slots] = batch.positions

    def _layer(self, layer: int, group: int, batch: Batch, x: UInt64Array) -> UInt64Array:
        table, values, positions = batch.block_tables[group], self._values[layer], self._positions[group]
        window = self.windows[group]
        out = np.empty_like(x)
        for b in range(len(batch.context_lens)):
            start, end = batch.seq_starts[b], batch.seq_starts[b + 1]
            own = batch.positions[start:end]
            values[table[b, own // BLOCK_SIZE], own % BLOCK_SIZE] = mix(x[start:end], own.astype(np.uint64))
            first = np.maximum(0, own - window + 1) if window is not None else np.zeros_like(own)
            seen = np.arange(first[0], own[-1] + 1)
            blocks = table[b, seen // BLOCK_SIZE]
            assert (blocks >= 0).all(), f"one of {own} reads a block that was given back"
            assert (positions[blocks, seen % BLOCK_SIZE] == seen).all(), f"one of {own} reads other tokens"
            sums = np.cumsum(np.append(np.uint64(0), values[blocks, seen % BLOCK_SIZE]))  # wraps around
            out[start:end] = sums[own + 1 - first[0]] - sums[first - first[0]]
        return out

    def _recurrent_layer(self, batch: Batch, x: UInt64Array) -> UInt64Array:
        starts, saves = batch.state_starts, batch.state_saves
        assert starts is not None
        assert saves is not None
        used = saves[saves >= 0].tolist()
        assert len(set(used)) == len(used), "two states are saved in one place"
        first = batch.positions[batch.seq_starts[:-1]]
        assert (np.where(starts >= 0, self._state_lengths[starts], 0) == first).all(), "a state of other tokens"
        begun = [self._states[start : start + 1].copy() if start >= 0 else np.zeros(1, np.uint64) for start in starts]
        out = np.empty_like(x)
        for b, state in enumerate(begun):
            for t in range(batch.seq_starts[b], batch.seq_starts[b + 1]):
                state = mix(state, x[t : t + 1])
                out[t] = (x[t : t + 1] + state)[0]
                if saves[t] >= 0:
                    self._states[saves[t]], self._state_lengths[saves[t]] = state[0], batch.positions[t] + 1
        return out

    def copy_blocks(self, group: int, pairs: npt.NDArray[np.int32]) -> None:
        self.num_copies += len(pairs)
        for source, destination in pairs:
            self._positions[group][destination] = self._positions[group][source]
            for layer, of_group in enumerate(self._layer_groups):
                if of_group == group:
                    self._values[layer][destination] = self._values[layer][source]

    def moved_bytes(self, group: int) -> int:
        return 16 if group == len(self.windows) else self.block_bytes(group)

    def _parts(self, group: int) -> list[npt.NDArray[Any]]:
        """What the group's blocks consist of, each [blocks, 16] of 8 bytes; or states, [states, 1]."""
        if group == len(self.windows):
            return [self._states[:, None], self._state_lengths[:, None]]
        values = [self._values[layer] for layer, of_group in enumerate(self._layer_groups) if of_group == group]
        return [self._positions[group], *values]

    def read_blocks(self, group: int, blocks: Int32Array) -> npt.NDArray[np.uint8]:
        parts = [part[blocks].view(np.uint8) for part in self._parts(group)]
        return np.concatenate(parts, axis=1)

    def write_blocks(self, group: int, blocks: Int32Array, data: npt.NDArray[np.uint8]) -> None:
        parts = self._parts(group)
        for part, piece in zip(parts, np.split(data, len(parts), axis=1), strict=True):
            part[blocks] = np.ascontiguousarray(piece).view(part.dtype)

    def close(self) -> None:
        self.closed = True


class FakeDevice(FakeModel):
    """An asynchronous model that does what it was asked in order and as late as it may: when somebody waits.

    `log` says what was asked when: ("stage", n), ("launch", n), ("wait", n), steps counted from 1.
    """

    asynchronous = True

    def __init__(self, windows: Sequence[int | None], *, fail_at_step: int | None = None) -> None:
        super().__init__(windows, fail_at_step=fail_at_step)
        self.log: list[tuple[str, int]] = []
        self._asked: list[Callable[[], None]] = []
        self._num_launched = 0

    def stage(self, batch: Batch) -> None:
        self.log.append(("stage", self._num_launched + 1))
        tables = tuple(table.copy() for table in batch.block_tables)
        values = {f.name: getattr(batch, f.name) for f in fields(batch)}
        arrays = {name: value.copy() for name, value in values.items() if isinstance(value, np.ndarray)}
        self._staged = Batch(**arrays, block_tables=tables)

    def launch(self, tokens: Int32Array) -> None:
        assert self._staged is not None, "a launch without a staged step"
        batch, self._staged = replace(self._staged, tokens=tokens.copy()), None
        self._num_launched += 1
        self.log.append(("launch", self._num_launched))
        self._asked.append(lambda: self._compute(batch))

    def _compute(self, batch: Batch) -> None:
        self._logits = self.answer(batch)

    def copy_blocks(self, group: int, pairs: npt.NDArray[np.int32]) -> None:
        pairs = pairs.copy()
        self._asked.append(lambda: FakeModel.copy_blocks(self, group, pairs))

    def read_blocks(self, group: int, blocks: Int32Array) -> npt.NDArray[np.uint8]:
        self._do_all()
        return super().read_blocks(group, blocks)

    def write_blocks(self, group: int, blocks: Int32Array, data: npt.NDArray[np.uint8]) -> None:
        blocks, data = blocks.copy(), data.copy()
        self._asked.append(lambda: FakeModel.write_blocks(self, group, blocks, data))

    def _do_all(self) -> None:
        asked, self._asked = self._asked, []
        for do in asked:
            do()

    def wait(self, rows: Int32Array | None = None) -> FloatArray:
        self.log.append(("wait", self._num_launched))
        self._do_all()
        return super().wait(rows)


class FakeRankingDevice(FakeDevice):
    """A `FakeDevice` that ranks tokens; the vocabulary is one block."""

    @property
    def ranker(self) -> FakeRankingDevice:
        return self

    def top_k_blocks(self, k: int, *, weights: bool) -> TopKBlocks:
        assert k == 1
        assert not weights
        logits = self.wait()
        padded = np.full((len(logits), 1, LOGIT_BLOCK), -np.inf, np.float32)
        padded[:, 0, :VOCAB_SIZE] = logits
        return TopKBlocks(np.zeros((len(logits), 1), np.int32), padded, None)


class FakeStream:
    """A character a token; token 1 comes out only with the next one, as half a character would."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, token_id: int) -> str:
        text = self._held + FakeTokenizer.character(token_id)
        self._held = "" if token_id != 1 else text
        return text if token_id != 1 else ""

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


class FakeTokenizer:
    """Token i is character i of the alphabet below, EOS is nothing."""

    eos_ids = frozenset({EOS_ID})
    vocab_size = VOCAB_SIZE
    alphabet = "\0~" + "abcdefghijklmnopqrstuvwxyz0123456789.,"

    @classmethod
    def character(cls, token_id: int) -> str:
        return "" if token_id == EOS_ID else cls.alphabet[token_id]

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return [self.alphabet.index(character) for character in text if character in self.alphabet]

    def token_bytes(self, token_id: int) -> bytes:
        return self.character(token_id).encode()

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.character(token_id) for token_id in ids)

    def stream(
        self, *, skip_special: bool = True, prompt_ids: Sequence[int] = (), shown_ids: Collection[int] = ()
    ) -> FakeStream:
        return FakeStream()


def fake_engine(
    windows: Sequence[int | None] = (None,),
    num_blocks: Sequence[int] | None = None,
    *,
    model: FakeModel | None = None,
    max_context: int = 96,
    max_batch_tokens: int = 32,
    max_num_seqs: int = 8,
    prefix_caching: bool = True,
    overlap: bool = True,
    sampler: SamplerProtocol | None = None,
    drafters: Sequence[Drafter] = (),
    pace: Pace | None = None,
    max_rows: int = 0,
    max_loras: int = 8,
    offload: KVOffload | None = None,
    num_states: int | None = None,
    state_interval: int = 32,
) -> Engine:
    """An engine over a FakeModel; by default with blocks and states for all."""
    model = model or FakeModel(windows)
    windows = kv_windows(windows)
    if num_states is None:
        num_states = 2 * max_num_seqs if model.state_bytes else 0
    blocks = max_num_seqs * -(-max_context // BLOCK_SIZE)
    limits = EngineLimits(
        max_context=max_context,
        windows=windows,
        num_blocks=[blocks] * len(windows) if num_blocks is None else num_blocks,
        num_states=num_states,
        state_interval=state_interval,
        max_batch_tokens=max_batch_tokens,
        max_num_seqs=max_num_seqs,
        max_rows=max_rows,
        max_loras=max_loras,
    )
    return Engine(
        model,
        FakeTokenizer(),
        sampler or ReferenceSampler(),
        limits,
        vocab_size=VOCAB_SIZE,
        prefix_caching=prefix_caching,
        overlap=overlap,
        drafters=drafters,
        pace=pace,
        offload=offload,
    )
