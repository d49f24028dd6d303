"""From a plan to a step on the model: lays the owed tokens of all sequences end to end, and launches them."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import numpy as np

from pagoda.backends.base import LoadedModel
from pagoda.engine.drafters import Draft, Drafting
from pagoda.engine.followed import FollowedRows, followed_rows
from pagoda.engine.limits import EngineLimits
from pagoda.engine.logits import LogitsPlan, PromptRows
from pagoda.engine.masks import StepMasks
from pagoda.engine.pooled import PooledRows, pooled_rows
from pagoda.engine.scheduler import StepPlan
from pagoda.engine.sequence import Sequence, Status
from pagoda.kv.cache import KVCache
from pagoda.models.pooling import PoolingKind
from pagoda.sampling.base import Sampled
from pagoda.types import Batch, Int32Array

_NOWHERE: Int32Array = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class StagedStep:
    """A step that the model has laid out. The tokens at `pending` are being sampled by the step before it."""

    plan: StepPlan
    logits_plan: LogitsPlan
    tokens: Int32Array  # [T], 0 where it is pending
    pending: Int32Array  # [N] places in tokens
    sources: Int32Array  # [N] places among the sampled tokens of the step before
    pooled: list[PooledRows]
    followed: list[FollowedRows]


@dataclass(frozen=True, slots=True)
class RunningStep:
    """A step that was launched."""

    plan: StepPlan
    logits_plan: LogitsPlan
    launched: float  # time.perf_counter() seconds
    pooled: list[PooledRows]
    followed: list[FollowedRows]
    masks: StepMasks | None = None  # None: no sequence is constrained

    def up_to_date(self) -> RunningStep:
        """The step without what has become of no use since it was planned: sequences that have ended, and logits for
        tokens that a constraint has forced meanwhile."""
        plan = self.plan.without_ended()
        live = [
            seq.status is not Status.FINISHED
            and (seq not in plan.counts or seq.num_computed + plan.counts[seq] == len(seq.tokens))
            for seq in self.logits_plan.sequences
        ]
        return replace(self, plan=plan, logits_plan=self.logits_plan.only(live))


class Runner:
    """Builds batches in arrays that are allocated once, and hands them to the model."""

    def __init__(
        self, model: LoadedModel, kv: KVCache, pooling: PoolingKind, limits: EngineLimits, drafting: Drafting
    ) -> None:
        self._model = model
        self._drafting = drafting
        self._kv = kv
        self._pooling = pooling
        self._tokens = np.empty(limits.max_batch_tokens, np.int32)
        self._positions = np.empty(limits.max_batch_tokens, np.int32)
        self._starts = np.zeros(limits.num_seqs + 1, np.int32)
        self._context_lens = np.empty(limits.num_seqs, np.int32)
        self._range = np.arange(max(limits.max_context, limits.num_seqs) + 1, dtype=np.int32)

    def stage(self, plan: StepPlan, previous: LogitsPlan | None = None) -> StagedStep:
        """Lay the planned tokens out; `previous` is the running step's, whose sequences have a token pending."""
        sequences: list[Sequence] = []
        rows: list[int] = []  # places of tokens whose logits are wanted
        first_rows: list[int] = []  # of each of `sequences`, its first place in `rows`
        drafts = plan.drafts
        end = 0
        for i, (seq, count) in enumerate(plan.counts.items()):
            start, end = end, end + count
            first, last = seq.num_computed, seq.num_computed + count
            if count == 1 and not seq.num_pending:
                self._tokens[start] = seq.tokens[first]
                self._positions[start] = first
            else:
                self._put(start, seq, count)
            if last == len(seq.tokens) + seq.num_pending:
                sequences.append(seq)
                first_rows.append(len(rows))
                rows.append(end - 1)
            if drafts and seq in drafts:
                rows.extend(range(end, end + len(drafts[seq].tokens)))
                end, last = self._put_draft(end, last, drafts[seq].tokens)
            self._starts[i + 1] = end
            self._context_lens[i] = last
        prompt = self._prompt_rows(plan, rows)
        pooled, hidden_rows = pooled_rows(plan, self._starts, self._pooling)
        followed = followed_rows(plan, self._starts, self._drafting.follows, hidden_rows)
        batch = self._batch(plan, end, rows, hidden_rows)
        self._model.stage(batch)
        logits_plan = self._logits_plan(sequences, first_rows, prompt, len(rows), drafts)
        if previous is None:
            return StagedStep(plan, logits_plan, batch.tokens, _NOWHERE, _NOWHERE, pooled, followed)
        place = {seq: i for i, seq in enumerate(previous.sequences)}
        pending = [(rows[row], place[seq]) for seq, row in zip(sequences, first_rows, strict=True) if seq.num_pending]
        places, sources = np.array(pending, np.int32).reshape(-1, 2).T
        return StagedStep(plan, logits_plan, batch.tokens, places, sources, pooled, followed)

    def _put(self, start: int, seq: Sequence, count: int) -> None:
        """Write the sequence's next `count` owed tokens; 0 stands for a pending one."""
        first, end = seq.num_computed, start + count
        known = seq.tokens[first : first + count]
        self._tokens[start : start + len(known)] = known
        self._tokens[start + len(known) : end] = 0
        self._positions[start:end] = self._range[first : first + count]

    def _put_draft(self, start: int, first: int, tokens: Seq[int]) -> tuple[int, int]:
        """Write draft tokens that stand at positions from `first` on. → where they end, and the position there"""
        end, last = start + len(tokens), first + len(tokens)
        self._tokens[start:end] = tokens
        self._positions[start:end] = self._range[first:last]
        return end, last

    def launch(self, staged: StagedStep, sampled: Sampled | None = None, masks: StepMasks | None = None) -> RunningStep:
        """Start the staged step. `sampled` are the tokens of the step before, for those that are pending."""
        if sampled is not None:
            found = sampled.token_ids
            if sampled.errors:  # those rows have no token, and their sequences end
                found = found.copy()
                found[list(sampled.errors)] = 0
            staged.tokens[staged.pending] = found[staged.sources]
        launched = time.perf_counter()
        self._model.launch(staged.tokens)
        return RunningStep(staged.plan, staged.logits_plan, launched, staged.pooled, staged.followed, masks)

    def pool(self, running: RunningStep) -> None:
        """Wait for the launched step, and give pooled sequences what it computed of them."""
        if running.pooled:
            hidden_states = self._model.hidden_states()
            for part in running.pooled:
                part.take(hidden_states)

    def follow(self, running: RunningStep, num_accepted: Mapping[Sequence, int], ended: Collection[Sequence]) -> None:
        """Give drafters that read hidden states those of the step's certain tokens: what was owed, and accepted."""
        if running.followed:
            hidden_states = self._model.hidden_states()
            for part in running.followed:
                if part.seq not in ended and part.seq.status is not Status.FINISHED:
                    rows = part.certain(hidden_states, num_accepted.get(part.seq, 0))
                    self._drafting.take(part.seq, part.position, rows)

    def _logits_plan(
        self,
        sequences: list[Sequence],
        first_rows: list[int],
        prompt: list[PromptRows],
        num_rows: int,
        drafts: Mapping[Sequence, Draft],
    ) -> LogitsPlan:
        if any(seq.children for seq in sequences):  # they read the row of their parent
            shared = [(child, row) for seq, row in zip(sequences, first_rows, strict=True) for child in seq.children]
            sequences = sequences + [child for child, _ in shared]
            first_rows = first_rows + [row for _, row in shared]
        elif not drafts:
            return LogitsPlan(sequences, self._range[: len(sequences)], prompt, num_rows)
        return LogitsPlan(sequences, np.array(first_rows, np.int32), prompt, num_rows, drafts)

    def _batch(self, plan: StepPlan, num_tokens: int, rows: list[int], hidden_rows: list[int]) -> Batch:
        num_seqs = len(plan.counts)
        adapters, adapter_of = _adapters(plan)
        tables = [seq.table for seq in plan.counts if seq.table is not None]
        held = [(table.states, table.num_tokens) for table in tables]
        states = self._kv.states.rows(held, self._starts[: num_seqs + 1])
        return Batch(
            tokens=self._tokens[:num_tokens],
            positions=self._positions[:num_tokens],
            seq_starts=self._starts[: num_seqs + 1],
            context_lens=self._context_lens[:num_seqs],
            block_tables=self._kv.rows(tables),
            logit_rows=np.array(rows, np.int32),
            adapters=adapters,
            adapter_of=adapter_of,
            hidden_rows=np.array(hidden_rows, np.int32),
            state_starts=None if states is None else states[0],
            state_saves=None if states is None else states[1],
        )

    def _prompt_rows(self, plan: StepPlan, rows: list[int]) -> list[PromptRows]:
        """Ask for the rows that prompt logprobs need, after those in `rows`."""
        prompt = []
        for i, (seq, count) in enumerate(plan.counts.items()):
            if seq.prompt_logprobs is None or not seq.num_prompt_logprobs_due:
                continue
            start = int(self._starts[i])
            first = len(seq.prompt_logprobs) - 1  # its logits are for the first prompt token that is due
            last = min(seq.num_computed + count, seq.prompt_len - 1)
            if first < last:
                targets = np.array(seq.tokens[first + 1 : last + 1], np.int32)
                prompt.append(PromptRows(seq, len(rows), targets))
                rows.extend(range(start + first - seq.num_computed, start + last - seq.num_computed))
        return prompt


def _adapters(plan: StepPlan) -> tuple[tuple[object, ...], Int32Array | None]:
    """The adapters of the planned sequences, and for each sequence which of them it has; see `Batch`."""
    if all(seq.request.adapter is None for seq in plan.counts):
        return (), None
    found = [seq.request.adapter for seq in plan.counts]
    places = {adapter.digest: i for i, adapter in enumerate({a.digest: a for a in found if a is not None}.values())}
    placed = {adapter.digest: adapter.placed for adapter in found if adapter is not None}
    of = np.array([-1 if adapter is None else places[adapter.digest] for adapter in found], np.int32)
    return tuple(placed.values()), of
