"""Requests whose prompt becomes a vector: which hidden states of a step are theirs, and what these come to.

They go through the engine as all others do, with one token that nobody sees: a prompt is computed in chunks, beside
the tokens that others are given. What a chunk adds is kept with the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pagoda.engine.scheduler import StepPlan
from pagoda.engine.sequence import Sequence
from pagoda.models.pooling import Pooling, PoolingKind
from pagoda.types import Delta, FloatArray, Int32Array


@dataclass(frozen=True, slots=True)
class PooledRows:
    """Rows [first, first + count) of a step's hidden states are of `seq`'s prompt; `begins`: of its first tokens."""

    seq: Sequence
    first: int
    count: int
    begins: bool

    def take(self, hidden_states: FloatArray) -> None:
        """Add the rows to what there is, one after the other: however a prompt is cut, its sum has the same bits."""
        seq, rows = self.seq, hidden_states[self.first : self.first + self.count]
        if not self.begins and seq.pooled is not None and seq.pools_all:
            rows = np.concatenate([seq.pooled[None], rows])
        seq.pooled = rows.sum(axis=0, dtype=np.float32)


def pooled_rows(plan: StepPlan, starts: Int32Array, kind: PoolingKind) -> tuple[list[PooledRows], list[int]]:
    """→ (what the step computes of pooled prompts, the tokens of the step whose hidden states that takes)

    starts: where each sequence of the plan begins in the step.
    """
    parts: list[PooledRows] = []
    tokens: list[int] = []
    for i, (seq, count) in enumerate(plan.counts.items()):
        if not seq.request.pooled:
            continue
        start, first, last = int(starts[i]), seq.num_computed, seq.num_computed + count
        wanted = range(start, start + count)
        if kind == "last":
            wanted = wanted[count - 1 :] if last == seq.prompt_len else wanted[:0]
        elif kind == "cls":
            wanted = wanted[:1] if first == 0 else wanted[:0]
        if wanted:
            parts.append(PooledRows(seq, len(tokens), len(wanted), begins=first == 0 or kind != "mean"))
            tokens.extend(wanted)
    return parts, tokens


def embedded(seq: Sequence, delta: Delta, pooling: Pooling) -> Delta | None:
    """The delta that ends a pooled sequence, in place of the one with its token. None: its numbers are not finite."""
    assert seq.pooled is not None
    vector = seq.pooled / np.float32(seq.prompt_len) if pooling.kind == "mean" else seq.pooled
    if not np.isfinite(vector).all():
        return None
    finished = pooling.finish(vector)
    return replace(delta, text="", token_ids=(), finish_reason="stop", stop_reason=None, embedding=finished)
