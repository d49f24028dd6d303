"""Every sequence owes tokens, a step computes some of them under a token budget.

A prompt owes its uncached tokens, a running sequence the one it sampled last. Chunked prefill, prefix hits and
resumption after preemption are all the same operation. Running sequences are served first, those that owe one token
before those that owe many; then waiting ones are admitted, in the order of `WaitingQueue`, while they fit. A sequence
that would compute a block that a running one is about to compute waits until that can be shared.

When blocks run out, the youngest running sequence of the lowest priority gives its blocks back and is computed
again later. The oldest of the highest priority is never preempted and always fits alone, so every step gets
somebody closer to the end: nobody of a class starves.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pagoda.engine.drafters import Draft, Drafting
from pagoda.engine.queue import FairShare, WaitingQueue
from pagoda.engine.sequence import Sequence, Status
from pagoda.kv.cache import KVCache
from pagoda.types import BLOCK_SIZE


@dataclass(slots=True)
class StepPlan:
    """How many of its owed tokens each sequence computes in one step. Not changed once `Scheduler.plan` returned it."""

    counts: dict[Sequence, int] = field(default_factory=dict)
    drafts: dict[Sequence, Draft] = field(default_factory=dict)  # tokens to check after the last one that is owed
    num_tokens: int = 0  # of both
    spare_rows: int = 0  # rows of logits beyond the one that each running sequence may want
    queue_s: list[float] = field(default_factory=list)  # of sequences scheduled for the first time
    num_preempted: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0

    def put(self, seq: Sequence, count: int) -> None:
        self.counts[seq] = count
        self.num_tokens += count

    def put_draft(self, seq: Sequence, draft: Draft) -> None:
        self.drafts[seq] = draft
        self.num_tokens += len(draft.tokens)
        self.spare_rows -= len(draft.tokens)

    def withdraw(self, seq: Sequence) -> None:
        self.num_tokens -= self.counts.pop(seq, 0)

    def without_ended(self) -> StepPlan:
        """The plan without sequences that have ended since it was made."""
        live = {seq: count for seq, count in self.counts.items() if seq.status is not Status.FINISHED}
        if len(live) == len(self.counts):
            return self
        drafts = {seq: draft for seq, draft in self.drafts.items() if seq in live}
        num_tokens = sum(live.values()) + sum(len(draft.tokens) for draft in drafts.values())
        return replace(self, counts=live, drafts=drafts, num_tokens=num_tokens)


class Scheduler:
    """Decides which sequences run. Owns their block tables; the engine owns their tokens."""

    def __init__(
        self,
        kv: KVCache,
        *,
        max_batch_tokens: int,
        max_rows: int,
        max_loras: int = 8,
        drafting: Drafting | None = None,
    ) -> None:
        self.kv = kv
        self.max_loras = max_loras  # adapters of one step
        self._drafting = drafting
        self.max_batch_tokens = max_batch_tokens
        self.max_rows = max_rows  # rows of logits in one step
        self.share = FairShare()
        self.waiting = WaitingQueue(self.share)
        self.running: list[Sequence] = []  # by rank

    def add(self, seq: Sequence) -> None:
        """A new sequence. Alone it fits: `Engine.validate` saw to that."""
        self.share.enter(seq.request.tenant)
        self.waiting.push(seq)

    def plan(self, now: float) -> StepPlan:
        """Choose the tokens of the next step and take the blocks they need."""
        plan = StepPlan(spare_rows=self.max_rows - len(self.running))
        self._serve_running(plan)
        if self.waiting and plan.spare_rows and not plan.num_preempted and plan.num_tokens < self.max_batch_tokens:
            self._admit(plan, now)
        if self._drafting is not None and self._drafting.active:
            self._add_drafts(plan, self._drafting)
        return plan

    def commit(self, plan: StepPlan, num_accepted: Mapping[Sequence, int]) -> None:
        """The planned tokens are computed. Of each draft the first num_accepted[seq] tokens are the sequence's own by
        now; the others go."""
        for seq, count in plan.counts.items():
            assert seq.table is not None
            if num_accepted:
                count += num_accepted.get(seq, 0)
            seq.num_computed += count
            self.share.charge(seq.request.tenant, count)
            self.kv.commit(seq.table, seq.tokens, seq.num_computed)
        for seq in plan.drafts:
            assert seq.table is not None
            self.kv.truncate(seq.table, seq.num_computed)

    def fork(self, parent: Sequence) -> None:
        """The parent's prompt is computed: its further choices share the blocks, or wait where no slot is free."""
        assert parent.table is not None
        for child in parent.children:
            self.share.enter(child.request.tenant)
            child.table = self.kv.fork(parent.table)
            child.first_scheduled, child.num_cached = parent.first_scheduled, parent.num_cached
            if child.table is None:
                child.status, child.keys = Status.WAITING, list(parent.keys)
                self.waiting.push_front(child)
            else:
                child.status, child.keys, child.num_computed = Status.RUNNING, child.table.keys, parent.num_computed
                insort(self.running, child, key=_rank)
        parent.children = []

    @property
    def has_work(self) -> bool:
        """Whether any sequence runs or waits."""
        return bool(self.running) or bool(self.waiting)

    def finish(self, seq: Sequence) -> None:
        """The sequence has ended, whatever its state: everything it holds comes back."""
        if seq.status is Status.RUNNING:
            self.running.remove(seq)
            self._release(seq)
        elif seq.status is Status.WAITING:
            self.waiting.remove(seq)
        if seq.status is not Status.PENDING:
            self.share.leave(seq.request.tenant)
        seq.status = Status.FINISHED

    # Inside

    def _serve_running(self, plan: StepPlan) -> None:
        for seq in sorted(self.running, key=_owes_many):
            if seq.status is not Status.RUNNING:  # preempted by one before it
                continue
            count = self._num_affordable(plan, seq)
            if count and self._make_room(plan, seq, seq.num_computed + count):
                plan.put(seq, count)

    def _num_affordable(self, plan: StepPlan, seq: Sequence) -> int:
        """How many of the tokens that it owes this step can compute, within the budget and the rows of logits."""
        owed = len(seq.tokens) + seq.num_pending - seq.num_computed
        count = min(owed, self.max_batch_tokens - plan.num_tokens)
        if seq.prompt_logprobs is None:
            return count
        # Positions before the first whose logits are wanted need no row: computed again after a preemption.
        rowless = max(0, len(seq.prompt_logprobs) - 1 - seq.num_computed)
        count = min(count, rowless + 1 + plan.spare_rows)
        plan.spare_rows -= max(0, count - rowless - 1)
        return count

    def _make_room(self, plan: StepPlan, seq: Sequence, num_tokens: int) -> bool:
        """Take blocks up to num_tokens, from younger sequences where need be. False: it sits this step out."""
        assert seq.table is not None
        while not self.kv.can_grow(seq.table, num_tokens):
            victim = self.running[-1]
            if victim is seq:
                return False
            self._preempt(victim)
            plan.withdraw(victim)
            plan.num_preempted += 1
        self.kv.grow(seq.table, num_tokens)
        return True

    def _preempt(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self._release(seq)
        seq.num_lost = max(seq.num_lost, seq.num_computed)
        seq.status, seq.num_computed = Status.WAITING, 0
        self.waiting.push_front(seq)

    def _release(self, seq: Sequence) -> None:
        assert seq.table is not None
        self.kv.free(seq.table)
        seq.table = None

    def _admit(self, plan: StepPlan, now: float) -> None:
        reserved = self._reserved_blocks(self.running)
        while plan.num_tokens < self.max_batch_tokens and plan.spare_rows:
            seq = self._next_waiting()
            if seq is None:
                break
            num_cached = self._match(seq)
            if self._is_being_computed(seq, num_cached):
                break
            if not self.kv.can_open(seq.keys, num_cached, seq.num_tokens, self.max_batch_tokens, reserved):
                break
            self._open(plan, seq, num_cached, now)
            plan.spare_rows -= 1
            count = self._num_affordable(plan, seq)
            assert seq.table is not None
            self.kv.grow(seq.table, seq.num_computed + count)
            plan.put(seq, count)
            reserved = [a + b for a, b in zip(reserved, self._reserved_blocks([seq]), strict=True)]

    def _next_waiting(self) -> Sequence | None:
        """Who is next. While that is one whose adapter would be one too many, those without an adapter go before it,
        and nobody with one: so it gets its turn."""
        seq = self.waiting.first()
        if seq is None or seq.request.adapter is None:
            return seq
        digests = {other.request.adapter.digest for other in self.running if other.request.adapter is not None}
        if len(digests | {seq.request.adapter.digest}) <= self.max_loras:
            return seq
        return self.waiting.first(lambda other: other.request.adapter is None)

    def _reserved_blocks(self, seqs: list[Sequence]) -> list[int]:
        """Blocks of each group that these sequences will still need for all they owe and one token more."""
        reserved = [0] * self.kv.num_pools
        for seq in seqs:
            assert seq.table is not None
            missing = self.kv.num_missing(seq.table, seq.num_tokens + 1, self.max_batch_tokens)
            reserved = [a + b for a, b in zip(reserved, missing, strict=True)]
        return reserved

    def _add_drafts(self, plan: StepPlan, drafting: Drafting) -> None:
        """Give what is left of budget, rows and blocks to drafts, as evenly as sequences can use it.

        A draft follows all that its sequence owes, and is not for one whose prompt is still to be shared or scored.
        """
        ready = [
            seq
            for seq, count in plan.counts.items()
            if seq.num_computed + count == len(seq.tokens) and not seq.children and not seq.num_prompt_logprobs_due
        ]
        left = min(self.max_batch_tokens - plan.num_tokens, plan.spare_rows)
        if not ready or left <= 0:
            return
        share = max(1, left // len(ready))
        rooms = {seq: min(share, seq.max_len - 1 - len(seq.tokens)) for seq in ready}
        drafts = drafting.propose({seq: room for seq, room in rooms.items() if room > 0}, plan.num_tokens)
        for seq, draft in drafts.items():
            left = min(self.max_batch_tokens - plan.num_tokens, plan.spare_rows)
            count = self._grow_for_draft(seq, seq.num_computed + plan.counts[seq], min(left, len(draft.tokens)))
            if count:
                plan.put_draft(seq, replace(draft, tokens=draft.tokens[:count]))

    def _grow_for_draft(self, seq: Sequence, num_tokens: int, count: int) -> int:
        """Take blocks for `count` draft tokens after num_tokens, from nobody. → for how many there is room"""
        assert seq.table is not None
        count = self.kv.states.num_rewindable(count)
        if not self.kv.can_grow(seq.table, num_tokens + count):
            count = min(count, seq.table.num_blocks * BLOCK_SIZE - num_tokens)
        self.kv.grow(seq.table, num_tokens + count, num_drafts=count)
        return count

    def _match(self, seq: Sequence) -> int:
        """Cached leading blocks that the sequence may use."""
        num_cached = self.kv.match(seq.prefix_root, seq.keys, seq.tokens, len(seq.tokens))
        return 0 if seq.reads_whole_prompt else num_cached  # every prompt token is to be computed

    def _is_being_computed(self, seq: Sequence, num_cached: int) -> bool:
        """Whether a running sequence is about to compute the next block of this one's tokens: soon it can be shared."""
        end = (num_cached + 1) * BLOCK_SIZE
        if not self.kv.prefix_caching or seq.reads_whole_prompt or end >= len(seq.tokens):
            return False
        key = seq.keys[num_cached]
        return any(
            other.num_computed < end and len(other.keys) > num_cached and other.keys[num_cached] == key
            for other in self.running
        )

    def _open(self, plan: StepPlan, seq: Sequence, num_cached: int, now: float) -> None:
        self.waiting.remove(seq)
        seq.table = self.kv.open(seq.prefix_root, seq.keys, num_cached, len(seq.tokens))
        seq.status, seq.num_computed = Status.RUNNING, num_cached * BLOCK_SIZE
        insort(self.running, seq, key=_rank)
        if seq.first_scheduled is None:
            seq.first_scheduled = now
            seq.num_cached = seq.num_computed
            plan.queue_s.append(now - seq.request.arrival)
            if self.kv.prefix_caching and not seq.reads_whole_prompt:
                plan.prefix_queries += seq.prompt_len
                plan.prefix_hits += seq.num_computed

    def check(self) -> None:
        """Running sequences hold tables and owe tokens, waiting ones hold nothing, and nobody else holds a block."""
        assert self.running == sorted(self.running, key=_rank)
        for seq in self.running:
            assert seq.status is Status.RUNNING
            assert seq.table is not None
            assert seq.table.num_tokens == seq.num_computed < seq.num_tokens
        waiting = list(self.waiting)
        assert len(waiting) == len(set(waiting)) == len(self.waiting)
        for seq in waiting:
            assert seq.status is Status.WAITING
            assert seq.table is None
            assert seq.num_computed == 0
        self.kv.check([seq.table for seq in self.running if seq.table is not None])


def _rank(seq: Sequence) -> tuple[int, int, int]:
    return seq.rank


def _owes_many(seq: Sequence) -> bool:
    return len(seq.tokens) + seq.num_pending - seq.num_computed > 1
