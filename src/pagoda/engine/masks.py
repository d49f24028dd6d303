"""The token masks of a step, computed by a few threads while the model computes its logits.

A mask follows from the tokens so far, so it can be ready when the logits are. It applies to every way of sampling: the
first token after a prompt, the next one, and what follows each draft token. Who draws from ranked tokens alone gets
whole rows instead (`logits.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pagoda.backends.cores import usable_cores
from pagoda.constraint import TokenConstraint
from pagoda.engine.logits import LogitsPlan
from pagoda.engine.sequence import Sequence
from pagoda.sampling.base import TokenMasks
from pagoda.types import UInt32Array

MAX_THREADS = 4


@dataclass(frozen=True, slots=True)
class _Job:
    """Masks of one sequence: for its next token in row `first`, for what follows each draft token in the rows after."""

    first: int
    failure: Future[tuple[int, str] | None]  # how many rows after `first` the constraint gives up, and why


class StepMasks:
    """Masks that are being computed. `wait` before anything else."""

    def __init__(self, allowed: UInt32Array, jobs: Mapping[Sequence, _Job]) -> None:
        self._allowed = allowed  # [M, ceil(V / 32)]
        self._jobs = jobs

    def wait(self) -> None:
        """Until all masks are there. Raises what a constraint has raised."""
        for job in self._jobs.values():
            job.failure.result()

    def masks(self, sequences: Seq[Sequence], row: int) -> TokenMasks | None:
        """For sampling the next token of each sequence after its first `row` draft tokens; None: all are free."""
        places = [i for i, seq in enumerate(sequences) if seq in self._jobs]
        if not places:
            return None
        rows = [self._jobs[sequences[i]].first + row for i in places]
        is_whole = rows == list(range(len(self._allowed)))
        return TokenMasks(np.array(places, np.int32), self._allowed if is_whole else self._allowed[rows])

    def errors(self, sequences: Seq[Sequence], row: int) -> dict[int, str]:
        """By place, the sequences whose constraint gives up at that row, and why."""
        errors = {}
        for i, seq in enumerate(sequences):
            failure = self._jobs[seq].failure.result() if seq in self._jobs else None
            if failure is not None and failure[0] == row:
                errors[i] = failure[1]
        return errors


class MaskPool:
    """Threads that compute masks; none before the first constrained request."""

    def __init__(self, vocab_size: int) -> None:
        self._num_words = -(-vocab_size // 32)
        self._threads: ThreadPoolExecutor | None = None

    def start(self, plan: LogitsPlan) -> StepMasks | None:
        """Begin with the masks of a step's sequences, whose tokens so far are known. None: no sequence has any."""
        constrained = [seq for seq in plan.sequences if seq.constraint is not None]
        if not constrained:
            return None
        if self._threads is None:
            self._threads = ThreadPoolExecutor(min(MAX_THREADS, usable_cores()), "pagoda-masks")
        drafts = [plan.drafts[seq].tokens if seq in plan.drafts else () for seq in constrained]
        allowed = np.zeros((sum(1 + len(draft) for draft in drafts), self._num_words), np.uint32)
        jobs: dict[Sequence, _Job] = {}
        first = 0
        for seq, draft in zip(constrained, drafts, strict=True):
            assert seq.constraint is not None
            rows = allowed[first : first + 1 + len(draft)]
            jobs[seq] = _Job(first, self._threads.submit(_fill, seq.constraint, rows, draft))
            first += 1 + len(draft)
        return StepMasks(allowed, jobs)

    def close(self) -> None:
        """End the threads. Idempotent."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None


def _fill(constraint: TokenConstraint, rows: UInt32Array, draft: Seq[int]) -> tuple[int, str] | None:
    """rows[0] for the next token, rows[j] for what follows draft[:j], as far as the constraint allows the draft.

    → the row at which the constraint gives up, and why; None: it does not
    """
    num_outputs = constraint.num_outputs
    try:
        for j, row in enumerate(rows):
            error = constraint.fill(row)
            if error is not None:
                return j, error
            if j == len(draft) or not row[draft[j] // 32] >> (draft[j] % 32) & 1:
                return None
            constraint.accept(draft[j])
            if constraint.finished:
                return None
        return None
    finally:
        constraint.rewind(num_outputs)
