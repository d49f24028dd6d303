"""Sequences whose hidden states drafters read: which rows of a step are theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pagoda.engine.scheduler import StepPlan
from pagoda.engine.sequence import Sequence
from pagoda.types import FloatArray, Int32Array


@dataclass(frozen=True, slots=True)
class FollowedRows:
    """Rows from `first` on of a step's hidden states are of `seq`, whose position `position` is the first of them.

    count: tokens that it owed; those of its draft come after them.
    """

    seq: Sequence
    first: int
    position: int
    count: int

    def certain(self, hidden_states: FloatArray, num_accepted: int) -> FloatArray:
        """Those of the tokens that it owed, and of so many draft tokens. → [T, E]"""
        return hidden_states[self.first : self.first + self.count + num_accepted]


def followed_rows(
    plan: StepPlan, starts: Int32Array, follows: Callable[[Sequence], bool], rows: list[int]
) -> list[FollowedRows]:
    """What the step computes of such sequences. `rows`: the tokens whose hidden states are wanted, which it adds to.

    starts: where each sequence of the plan begins in the step.
    """
    parts = []
    for i, (seq, count) in enumerate(plan.counts.items()):
        if follows(seq):
            parts.append(FollowedRows(seq, len(rows), seq.num_computed, count))
            rows.extend(range(int(starts[i]), int(starts[i + 1])))
    return parts
