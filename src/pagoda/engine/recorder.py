"""What happened since the last report, gathered into a `StepResult`."""

from __future__ import annotations

import time

from pagoda.engine.scheduler import Scheduler, StepPlan
from pagoda.engine.sequence import Sequence
from pagoda.types import (
    Delta,
    DraftCounts,
    FinishedRequest,
    PrefixChange,
    PromptProgress,
    SequenceWork,
    StepResult,
)


class StepRecorder:
    """Filled during a step, and between steps by aborts."""

    def __init__(self) -> None:
        self._reset()
        self._started = 0.0

    def _reset(self) -> None:
        self.deltas: list[Delta] = []
        self.finished: list[FinishedRequest] = []
        self._ttft_s: list[float] = []
        self._inter_token_s: list[float] = []
        self._num_prompt_tokens = 0
        self._num_generation_tokens = 0
        self.num_forced_tokens = 0
        self._drafts: dict[str, DraftCounts] = {}
        self._work: list[SequenceWork] = []
        self.forward_s = 0.0
        self.sample_s = 0.0
        self.verify_s = 0.0
        self.draft_s = 0.0
        self.mask_s = 0.0
        self.prefix_changes: tuple[PrefixChange, ...] = ()

    def __bool__(self) -> bool:
        """Whether there are deltas to report."""
        return bool(self.deltas)

    def start(self) -> None:
        self._started = time.perf_counter()

    def add_work(self, plan: StepPlan) -> None:
        """What the plan's sequences compute. Before the plan is committed."""
        drafts = plan.drafts
        for seq, count in plan.counts.items():
            request, start = seq.request, seq.num_computed
            end = start + count
            new = min(end, max(start, seq.num_lost))  # tokens before it were computed once already
            if start < seq.prompt_len:
                self._num_prompt_tokens += min(end, seq.prompt_len) - start
                if request.report_progress and seq.first_token is None and end < seq.prompt_len:
                    self._report_progress(seq, end)
            num_prompt = max(0, min(end, seq.prompt_len) - new)
            num_drafts = len(drafts[seq].tokens) if drafts and seq in drafts else 0
            self._work.append(
                SequenceWork(
                    request.id,
                    request.tenant,
                    request.adapter_name,
                    num_prompt,
                    end - new - num_prompt,
                    num_drafts,
                    new - start,
                    end,
                )
            )

    def _report_progress(self, seq: Sequence, num_computed: int) -> None:
        """To who asked for it: so much of a prompt is computed that needs more steps."""
        seconds = time.monotonic() - (seq.first_scheduled or seq.request.arrival)
        progress = PromptProgress(seq.prompt_len, seq.num_cached, num_computed, seconds)
        self.deltas.append(Delta(seq.request.id, seq.index, "", (), prompt_progress=progress))

    def add_tokens(self, seq: Sequence, delta: Delta, now: float) -> None:
        """The sequence got the delta's tokens. Those that came together share the time since the last one evenly."""
        self.deltas.append(delta)
        count = len(delta.token_ids)
        self._num_generation_tokens += count
        if seq.last_token is None:
            seq.first_token = seq.last_token = now
            self._ttft_s.append(now - seq.request.arrival)
            count -= 1
        if count == 1:
            self._inter_token_s.append(now - seq.last_token)
        elif count:
            self._inter_token_s.extend([(now - seq.last_token) / count] * count)
        seq.last_token = now

    def add_draft(self, drafter: str, num_proposed: int, num_accepted: int) -> None:
        """A draft was checked, and its first num_accepted tokens were kept."""
        before = self._drafts.get(drafter, DraftCounts())
        self._drafts[drafter] = before.plus(num_proposed, num_accepted)

    def take(self, plan: StepPlan, scheduler: Scheduler) -> StepResult:
        """The report; the next one starts empty."""
        kv = scheduler.kv
        result = StepResult(
            deltas=tuple(self.deltas),
            finished=tuple(self.finished),
            ttft_s=tuple(self._ttft_s),
            inter_token_s=tuple(self._inter_token_s),
            queue_s=tuple(plan.queue_s),
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_preempted=plan.num_preempted,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generation_tokens=self._num_generation_tokens,
            num_forced_tokens=self.num_forced_tokens,
            drafts=self._drafts,
            prefix_queries=plan.prefix_queries,
            prefix_hits=plan.prefix_hits,
            kv_blocks_total=sum(kv.num_blocks),
            kv_blocks_used=kv.num_used_blocks,
            kv_slots_wasted=kv.num_wasted_slots,
            step_s=time.perf_counter() - self._started,
            forward_s=self.forward_s,
            sample_s=self.sample_s,
            verify_s=self.verify_s,
            draft_s=self.draft_s,
            mask_s=self.mask_s,
            work=tuple(self._work),
            prefix_changes=self.prefix_changes,
            ended=time.monotonic(),
        )
        self._reset()
        return result
