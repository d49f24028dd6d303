"""Runs sequences through a loaded model step by step, over block tables as hostile as the contract allows.

    run = PagedRun(model, loaded)                   # allocates the KV pool
    logits = run.step({"a": prompt, "b": [token]})  # any mix of chunks → {"a": [T, V], "b": [1, V]}
    logits = run_steps(run, [{"a": 37}, {"a": 1, "b": 5}])  # steps of so many tokens of made-up texts

Blocks come in random order, a sliding window's old blocks are given back at once, and their table entries are -1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pagoda.backends.base import ForwardModel, LoadedModel, run_batch
from pagoda.types import BLOCK_SIZE, Batch, FloatArray
from tiny_models import VOCAB


class PagedRun:
    def __init__(self, model: ForwardModel, loaded: LoadedModel, *, num_blocks: int = 64, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.model, self.loaded = model, loaded
        loaded.allocate_kv((num_blocks,) * len(model.kv_groups), num_blocks if loaded.state_bytes else 0)
        self.free_states = [int(s) for s in rng.permutation(num_blocks)]
        self.states: dict[str, int] = {}
        self.free = [[int(b) for b in rng.permutation(num_blocks)] for _ in model.kv_groups]
        self.lengths: dict[str, int] = {}
        self.tables: dict[str, list[list[int]]] = {}
        self.hidden: FloatArray = np.empty((0, 0), np.float32)

    def step(
        self,
        chunks: Mapping[str, Sequence[int]],
        hidden_rows: Sequence[int] = (),
        adapters: Mapping[str, object] | None = None,
    ) -> dict[str, FloatArray]:
        """Feed each sequence its next tokens. → logits of every one of them, a sequence each

        `hidden` has the hidden states of these rows of the step then. adapters: placed ones, by sequence.
        """
        for name, tokens in chunks.items():
            self._grow(name, len(tokens))
        batch = self._with_states(self._batch(chunks, hidden_rows), list(chunks))
        logits = run_batch(self.loaded, _with_adapters(batch, list(chunks), adapters or {})).copy()
        if len(hidden_rows):
            self.hidden = self.loaded.hidden_states().copy()
        for name in chunks:
            self._give_back(name)
        ends = np.cumsum([len(tokens) for tokens in chunks.values()])
        return dict(zip(chunks, np.split(logits, ends[:-1]), strict=True))

    def _with_states(self, batch: Batch, names: Sequence[str]) -> Batch:
        """Each sequence's state after its last token goes to another place than that before its first."""
        if not self.loaded.state_bytes:
            return batch
        starts = [self.states.pop(name, -1) for name in names]
        self.states |= {name: self.free_states.pop() for name in names}
        self.free_states[:0] = [start for start in starts if start >= 0]
        saves = np.full(len(batch.tokens), -1, np.int32)
        saves[batch.seq_starts[1:] - 1] = [self.states[name] for name in names]
        return replace(batch, state_starts=np.array(starts, np.int32), state_saves=saves)

    def _grow(self, name: str, count: int) -> None:
        self.lengths[name] = self.lengths.get(name, 0) + count
        tables = self.tables.setdefault(name, [[] for _ in self.model.kv_groups])
        for free, table in zip(self.free, tables, strict=True):
            while len(table) * BLOCK_SIZE < self.lengths[name]:
                table.append(free.pop())

    def _give_back(self, name: str) -> None:
        """The next query stands at position `length` and sees keys after `length - window`."""
        for group, free, table in zip(self.model.kv_groups, self.free, self.tables[name], strict=True):
            if group.window is None:
                continue
            for i in range(max(self.lengths[name] - group.window + 1, 0) // BLOCK_SIZE):
                if table[i] >= 0:
                    free.insert(0, table[i])
                    table[i] = -1

    def _batch(self, chunks: Mapping[str, Sequence[int]], hidden_rows: Sequence[int] = ()) -> Batch:
        counts = [len(tokens) for tokens in chunks.values()]
        ends = [self.lengths[name] for name in chunks]
        width = max(len(self.tables[name][0]) for name in chunks) + 1  # one that nobody uses
        return Batch(
            tokens=np.concatenate([np.array(tokens, np.int32) for tokens in chunks.values()]),
            positions=np.concatenate([np.arange(e - c, e, dtype=np.int32) for e, c in zip(ends, counts, strict=True)]),
            seq_starts=np.cumsum([0, *counts]).astype(np.int32),
            context_lens=np.array(ends, np.int32),
            block_tables=tuple(
                np.array([self.tables[n][g] + [-1] * (width - len(self.tables[n][g])) for n in chunks], np.int32)
                for g in range(len(self.model.kv_groups))
            ),
            logit_rows=np.arange(sum(counts), dtype=np.int32),
            hidden_rows=np.array(hidden_rows, np.int32),
        )


def chunk(name: str, start: int, count: int) -> list[int]:
    """Tokens [start, start + count) of the text that the sequence `name` is made of."""
    return [(p * p * 31 + 7 * p + 13 * ord(name)) % VOCAB for p in range(start, start + count)]


def run_steps(run: PagedRun, steps: Sequence[Mapping[str, int]]) -> dict[str, FloatArray]:
    """Feed each sequence the next so many tokens of its text, step by step. → logits of all of them, [total, V] each"""
    logits: dict[str, list[FloatArray]] = {}
    for step in steps:
        chunks = {name: chunk(name, run.lengths.get(name, 0), count) for name, count in step.items()}
        for name, rows in run.step(chunks).items():
            logits.setdefault(name, []).append(rows)
    return {name: np.concatenate(rows) for name, rows in logits.items()}


def error(got: Mapping[str, FloatArray], expected: Mapping[str, FloatArray]) -> float:
    """Root mean square of the difference, beside that of the logits themselves, of the tokens that `got` has."""
    right = np.concatenate([expected[name][: len(rows)] for name, rows in got.items()])
    off = np.concatenate(list(got.values())) - right
    return float(np.sqrt(np.square(off).mean() / np.square(right).mean()))


def reference_run(model: ForwardModel, *, num_blocks: int = 64, seed: int = 0) -> PagedRun:
    """A run on the reference backend whose KV is nan until written: a slot read before shows in the logits."""
    from pagoda.backends.reference import ReferenceBackend

    loaded = ReferenceBackend().load(model, max_batch_tokens=512, max_batch_seqs=64, kv_type="f32")
    run = PagedRun(model, loaded, num_blocks=num_blocks, seed=seed)
    for pool in loaded.kv_pools:
        for values in pool.arrays:
            values.fill(np.nan)
    for state in loaded.states.values():
        state.fill(np.nan)
    return run


def _with_adapters(batch: Batch, names: Sequence[str], adapters: Mapping[str, object]) -> Batch:
    placed = list(dict.fromkeys(adapters[name] for name in names if name in adapters))
    if not placed:
        return batch
    of = [placed.index(adapters[name]) if name in adapters else -1 for name in names]
    return replace(batch, adapters=tuple(placed), adapter_of=np.array(of, np.int32))


def move_blocks(source: PagedRun, target: PagedRun, name: str) -> None:
    """Make the sequence known to another run of the same model, by its blocks alone."""
    target.lengths[name] = source.lengths[name]
    target.tables[name] = []
    for group, own in enumerate(source.tables[name]):
        places = [block if block < 0 else target.free[group].pop() for block in own]
        blocks = np.array([block for block in own if block >= 0], np.int32)
        contents = source.loaded.read_blocks(group, blocks)
        assert contents.shape == (len(blocks), source.loaded.block_bytes(group))
        target.loaded.write_blocks(group, np.array([place for place in places if place >= 0], np.int32), contents)
        target.tables[name].append(places)
