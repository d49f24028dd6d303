"""From a plan to logits: lays the owed tokens of all sequences end to end, and runs the model over them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pagoda.backends.base import LoadedModel
from pagoda.engine.ranked import Ranked
from pagoda.engine.scheduler import StepPlan
from pagoda.engine.sequence import Sequence, Status
from pagoda.kv.cache import KVCache
from pagoda.types import Batch, FloatArray, Int32Array


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Rows [first, first + len(targets)) of the logits say how likely `targets` were in seq's prompt."""

    seq: Sequence
    first: int
    targets: Int32Array


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a step's logits are for. Row rows[i], or i without `rows`, is for the next token of ready[i]."""

    ready: list[Sequence]  # those that have paid all they owed, and the choices that start from the same prompt
    rows: Int32Array | None
    prompt: list[PromptRows]

    @property
    def logit_rows(self) -> Int32Array:
        """Of ready's, one each."""
        return np.arange(len(self.ready), dtype=np.int32) if self.rows is None else self.rows

    def without_ended(self) -> Wanted:
        """Where sequences have ended since the step was laid out."""
        if all(seq.status is not Status.FINISHED for seq in self.ready):
            return self
        live = [i for i, seq in enumerate(self.ready) if seq.status is not Status.FINISHED]
        rows = np.array(live, np.int32) if self.rows is None else self.rows[live]
        prompt = [part for part in self.prompt if part.seq.status is not Status.FINISHED]
        return Wanted([self.ready[i] for i in live], rows, prompt)


@dataclass(frozen=True, slots=True)
class Logits:
    """What a forward pass gave."""

    logits: FloatArray  # [R, V], valid until the next pass; without rows where a device ranked them
    wanted: Wanted
    ranked: Ranked | None = None


class Runner:
    """Builds batches in arrays that are allocated once."""

    def __init__(
        self, model: LoadedModel, kv: KVCache, *, max_batch_tokens: int, max_num_seqs: int, max_context: int
    ) -> None:
        self._model = model
        self._kv = kv
        self._tokens = np.empty(max_batch_tokens, np.int32)
        self._positions = np.empty(max_batch_tokens, np.int32)
        self._starts = np.zeros(max_num_seqs + 1, np.int32)
        self._context_lens = np.empty(max_num_seqs, np.int32)
        self._range = np.arange(max_context + 1, dtype=np.int32)

    def run(self, plan: StepPlan) -> Logits:
        """Compute the planned tokens."""
        batch, wanted = self.lay_out(plan)
        return Logits(self._model.forward(batch), wanted)

    def lay_out(self, plan: StepPlan) -> tuple[Batch, Wanted]:
        """The planned tokens as a batch, whose arrays are good until the next one."""
        ready: list[Sequence] = []
        rows: list[int] = []
        end = 0
        for i, (seq, count) in enumerate(plan.counts.items()):
            start, end = end, end + count
            first, last = seq.num_computed, seq.num_computed + count
            if count == 1:
                self._tokens[start] = seq.tokens[first]
                self._positions[start] = first
            else:
                self._tokens[start:end] = seq.tokens[first:last]
                self._positions[start:end] = self._range[first:last]
            self._starts[i + 1] = end
            self._context_lens[i] = last
            if last == len(seq.tokens):
                ready.append(seq)
                rows.append(end - 1)
        prompt = self._prompt_rows(plan, rows)
        batch = self._batch(plan, end, rows)
        if not prompt and not any(seq.children for seq in ready):
            return batch, Wanted(ready, None, prompt)
        parents = range(len(ready))
        shared = [i for i in parents for _ in ready[i].children]
        children = [child for seq in ready for child in seq.children]
        return batch, Wanted(ready + children, np.array([*parents, *shared], np.int32), prompt)

    def _batch(self, plan: StepPlan, num_tokens: int, rows: list[int]) -> Batch:
        num_seqs = len(plan.counts)
        return Batch(
            tokens=self._tokens[:num_tokens],
            positions=self._positions[:num_tokens],
            seq_starts=self._starts[: num_seqs + 1],
            context_lens=self._context_lens[:num_seqs],
            block_tables=self._kv.rows([seq.table for seq in plan.counts if seq.table is not None]),
            logit_rows=np.array(rows, np.int32),
        )

    def _prompt_rows(self, plan: StepPlan, rows: list[int]) -> list[PromptRows]:
        """Ask for the rows that prompt logprobs need, after those in `rows`."""
        prompt = []
        end = 0
        for seq, count in plan.counts.items():
            start, end = end, end + count
            if seq.prompt_logprobs is None or not seq.num_prompt_logprobs_due:
                continue
            first = len(seq.prompt_logprobs) - 1  # its logits are for the first prompt token that is due
            last = min(seq.num_computed + count, seq.prompt_len - 1)
            if first < last:
                targets = np.array(seq.tokens[first + 1 : last + 1], np.int32)
                prompt.append(PromptRows(seq, len(rows), targets))
                rows.extend(range(start + first - seq.num_computed, start + last - seq.num_computed))
        return prompt
