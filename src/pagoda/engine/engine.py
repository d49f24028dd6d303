"""The loop: plan, launch, sample, append. Synchronous and for one thread; `EngineThread` gives it one.

Every model is stepped the same way. While a device computes by itself, the next step is planned and staged:

    launch n ── plan n+1 ── stage n+1 ── wait n ── sample n ── launch n+1 ── append n: texts, ends, deltas ── plan n+2 …

Between `wait` and `launch` the device has nothing to do, so what must happen there is sampling alone. The next step is
planned with a pending token for each sequence, whose id is filled in when it is sampled. Sequences that end by length
are known beforehand, and give their blocks back at once. One that ends otherwise (EOS, a stop string, an abort) has by
then been computed once more, for nothing: that is dropped. Its blocks may belong to others while the device still
writes to them: it works in order, so the new owner writes later.

A step whose outcome decides more than tokens is not planned beyond: where choices fork off a prompt, or prompt logprobs
are due. On a CPU, which computes inside `launch`, planning ahead would gain nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace

from pagoda.backends.base import LoadedModel
from pagoda.engine.drafters import Drafter, Drafting, Pace
from pagoda.engine.limits import EngineLimits
from pagoda.engine.logits import LogitsPlan, LogitsReader, StepLogits, WholeRows
from pagoda.engine.masks import MaskPool
from pagoda.engine.offload import KVOffload
from pagoda.engine.opening import EngineTokenizer, SequenceOpener
from pagoda.engine.pooled import embedded
from pagoda.engine.prefix_log import PrefixLog
from pagoda.engine.recorder import StepRecorder
from pagoda.engine.restoring import Restoring
from pagoda.engine.runner import Runner, RunningStep, StagedStep
from pagoda.engine.scheduler import Scheduler
from pagoda.engine.sequence import SampledRun, Sequence, Status
from pagoda.engine.speculation.prediction import PredictionDrafter
from pagoda.engine.validation import validate_request
from pagoda.engine.verify import sample_first, verify
from pagoda.errors import RequestError
from pagoda.kv.cache import KVCache
from pagoda.kv.prefix import PROCESS_SECRET
from pagoda.models.pooling import DEFAULT_POOLING, Pooling
from pagoda.sampling.base import SamplerProtocol
from pagoda.sampling.params import MAX_LOGPROBS
from pagoda.sampling.reference import NOT_FINITE
from pagoda.types import Delta, Fault, FinishReason, Request, StepResult


class Engine:
    """A loaded model that continues many prompts at once."""

    def __init__(
        self,
        model: LoadedModel,
        tokenizer: EngineTokenizer,
        sampler: SamplerProtocol,
        limits: EngineLimits,
        *,
        vocab_size: int,
        prefix_caching: bool = True,
        seed: int = 0,
        max_logprobs: int = MAX_LOGPROBS,
        overlap: bool = True,
        drafters: Seq[Drafter] = (),
        pace: Pace | None = None,
        pooling: Pooling = DEFAULT_POOLING,
        offload: KVOffload | None = None,
    ) -> None:
        """overlap: plan the next step while an asynchronous model computes. drafters: who proposes tokens; of each
        sequence the first that has a guess. pooling: how a pooled request's prompt becomes a vector. offload: where KV
        of idle prefixes goes.
        """
        model.allocate_kv(tuple(limits.num_blocks), limits.num_states)
        self.vocab_size, self.max_context, self.pooling = vocab_size, limits.max_context, pooling
        self._max_logprobs = max_logprobs
        self._plans_ahead = overlap and model.asynchronous
        self._sampler = sampler
        self.kv = KVCache(
            limits.windows,
            limits.num_blocks,
            max_seqs=limits.num_seqs,
            max_context=limits.max_context,
            copy=model.copy_blocks,
            prefix_caching=prefix_caching,
            outside=offload,
            num_states=limits.num_states,
            state_interval=limits.state_interval,
        )
        self.offload = offload
        self._restoring = Restoring(self.kv, offload)
        self._drafting = Drafting(drafters, vocab_size, pace)
        self.scheduler = Scheduler(
            self.kv,
            max_batch_tokens=limits.max_batch_tokens,
            max_rows=limits.num_rows,
            max_loras=limits.max_loras,
            drafting=self._drafting,
        )
        self._runner = Runner(model, self.kv, pooling.kind, limits, self._drafting)
        self._reader = LogitsReader(model, sampler)
        secret = PROCESS_SECRET if offload is None else offload.store.secret
        self._opener = SequenceOpener(
            tokenizer, sampler, pooling.kind, max_context=limits.max_context, seed=seed, prefix_secret=secret
        )
        self._masks = MaskPool(vocab_size)
        self._recorder = StepRecorder()
        self._sequences: dict[str, list[Sequence]] = {}  # by request: its choices that have not ended
        self._num_added = 0
        self._prefix_log: PrefixLog | None = None  # None: nobody has asked for one
        self._running: RunningStep | None = None  # between steps: one that was planned ahead

    # Requests come and go

    def validate(self, request: Request) -> Request:
        """The request with normalised params. Raises RequestError. Safe from any thread."""
        return validate_request(request, self.vocab_size, self.max_context, max_logprobs=self._max_logprobs)

    def add(self, request: Request) -> None:
        """Take a request. Raises RequestError."""
        self.enter(self.validate(request))

    def enter(self, request: Request) -> None:
        """Take a request that `validate` returned. RequestError: a request of that id is here already."""
        if request.id in self._sequences:
            raise RequestError(f"a request with id {request.id!r} is running already", param="request_id")
        choices = self._opener.open(request, self._num_added)
        self._sequences[request.id] = choices
        self._num_added += 1
        if self._prefix_log is not None and request.pieces is not None:
            self._prefix_log.follow(choices[0])
        if not self._restoring.start(choices[0]):
            self.scheduler.add(choices[0])

    def abort(self, request_id: str) -> bool:
        """End all choices of a request now; the next step reports it. False: no such request."""
        sequences = self._sequences.get(request_id)
        if sequences is None:
            return False
        self._end_all(request_id, "abort")
        return True

    def watch_prefixes(self) -> PrefixLog | None:
        """What the prefix cache holds now; steps report from now on how that changes. None: there is no such cache."""
        if self._prefix_log is None and self.kv.prefix_caching:
            self._prefix_log = PrefixLog(self.kv.prefix)
        return self._prefix_log

    @property
    def has_work(self) -> bool:
        """Whether a step would compute or report something."""
        is_moving = self.offload is not None and self.offload.has_work
        return bool(self._sequences) or bool(self._recorder) or is_moving

    # One step

    def step(self) -> StepResult:
        """Finish one step, the running one or else one that starts now, and report what came of it.

        Between steps the state is as if a running step were planned and not yet computed.
        """
        self._recorder.start()
        if self._restoring:
            for seq in self._restoring.finish(wait_for_one=not self.scheduler.has_work):
                self.scheduler.add(seq)
        running, self._running = self._running, None
        if running is None:
            plan = self.scheduler.plan(time.monotonic())
            if plan.counts:
                staged = self._runner.stage(plan)
                masks = self._masks.start(staged.logits_plan)  # before the launch: a CPU computes inside it
                running = self._runner.launch(staged, masks=masks)
        else:
            running = running.up_to_date()
            plan = running.plan
        if running is not None:
            self._finish(running)
        self._recorder.draft_s = self._drafting.take_seconds()
        if self.offload is not None:
            self.offload.flush(wait=not self._sequences)
        if self._prefix_log is not None:
            self._recorder.prefix_changes = self._prefix_log.take()
        return self._recorder.take(plan, self.scheduler)

    def _finish(self, running: RunningStep) -> None:
        """Wait for the step, sample from its logits and append the tokens; launch the next step as soon as possible."""
        plan = running.logits_plan
        ahead = self._plans_ahead and plan.decides_tokens_only and not self._drafting.active
        staged = self._plan_ahead(running) if ahead else None
        logits = self._reader.read(plan)
        self._recorder.forward_s = time.perf_counter() - running.launched
        self._runner.pool(running)
        start = time.perf_counter()
        unscored = self._score_prompts(logits, plan)
        if running.masks is not None:
            running.masks.wait()
            self._recorder.mask_s = time.perf_counter() - start
        sampled = sample_first(logits, plan, running.masks)
        if staged is not None:
            self._running = self._runner.launch(staged, sampled)
        sampled_first = time.perf_counter()
        runs = verify(logits, plan, running.masks, sampled)
        self._recorder.verify_s = time.perf_counter() - sampled_first if plan.drafts else 0.0
        self._recorder.sample_s = time.perf_counter() - start
        if all(count == 1 for count in running.plan.counts.values()):
            self._drafting.observe(running.plan.num_tokens, self._recorder.forward_s + self._recorder.sample_s)
        ended, num_accepted = self._append(plan, runs, unscored)
        self._runner.follow(running, num_accepted, {seq for seq, _ in ended})
        if not ahead:
            self._commit(running, num_accepted)
        for seq, reason in ended:
            self._leave(seq, reason)
        for request_id, error in unscored.items():
            self._end_all(request_id, "error", error)
        if self._running is not None and self._running.logits_plan.is_constrained:
            masks = self._masks.start(self._running.up_to_date().logits_plan)
            self._running = replace(self._running, masks=masks)

    def _plan_ahead(self, running: RunningStep) -> StagedStep | None:
        """Stage what comes after the running step. Leaves the state equal to: next step planned, not yet computed."""
        self._commit(running, {})
        for seq in running.logits_plan.sequences:
            if seq.ends_with_next:
                self.scheduler.finish(seq)
            else:
                seq.num_pending = 1
        plan = self.scheduler.plan(time.monotonic())
        return self._runner.stage(plan, running.logits_plan) if plan.counts else None

    def _score_prompts(self, logits: StepLogits, plan: LogitsPlan) -> dict[str, str]:
        """Take the logprobs of prompt tokens. → which requests have logits there that are not finite, and the error"""
        failed = {}
        for part in plan.prompt:
            assert isinstance(logits, WholeRows)
            rows = logits.logits[part.first : part.first + len(part.targets)]
            try:
                part.seq.take_prompt_logprobs(self._sampler, rows, part.targets)
            except ValueError as error:
                failed[part.seq.request.id] = str(error)
        return failed

    def _append(
        self, plan: LogitsPlan, runs: list[SampledRun], unscored: dict[str, str]
    ) -> tuple[list[tuple[Sequence, FinishReason]], dict[Sequence, int]]:
        """Sampled tokens become tokens of their sequences.

        → (sequences that end with them, and why; how many tokens of each draft are among them)
        """
        now = time.monotonic()
        ended: list[tuple[Sequence, FinishReason]] = []
        num_accepted: dict[Sequence, int] = {}
        for seq, run in zip(plan.sequences, runs, strict=True):
            if unscored and seq.request.id in unscored:
                continue
            reason: FinishReason | None = None
            num_kept = 0
            draft = plan.drafts.get(seq)
            if draft is not None:
                predicted = draft.drafter.name == PredictionDrafter.name
                seq.count_drafted(len(draft.tokens), run.num_right, predicted=predicted)
            if run.token_ids:
                delta = seq.append(run)
                if seq.request.pooled:
                    ended.append((seq, self._report_vector(seq, delta)))
                    continue
                reason, num_kept = delta.finish_reason, len(delta.token_ids)
                if num_kept > len(run.token_ids):
                    self._recorder.num_forced_tokens += num_kept - len(run.token_ids)
                self._recorder.add_tokens(seq, delta, now)
            if draft is not None:
                num_accepted[seq] = min(run.num_right, num_kept)
                self._drafting.verified(seq, draft, num_accepted[seq])
                self._recorder.add_draft(draft.drafter.name, len(draft.tokens), num_accepted[seq])
            if reason is None and run.error is not None:
                reason = "error"
                self._report_end(seq, reason, run.error)
            if reason is not None:
                ended.append((seq, reason))
        return ended, num_accepted

    def _commit(self, running: RunningStep, num_accepted: Mapping[Sequence, int]) -> None:
        """The planned tokens are in the cache, and so much of each draft; choices that waited for them fork off."""
        self._recorder.add_work(running.plan)
        self.scheduler.commit(running.plan, num_accepted)
        for seq in running.logits_plan.sequences:
            if seq.children:
                self.scheduler.fork(seq)

    # Ends

    def _end_all(self, request_id: str, reason: FinishReason, error: str | None = None) -> None:
        """End the choices of a request that have not ended by themselves."""
        for seq in list(self._sequences.get(request_id, ())):
            if self._restoring.give_up(seq):
                self.scheduler.add(seq)
            self._report_end(seq, reason, error)
            self._leave(seq, reason)

    def _report_end(self, seq: Sequence, reason: FinishReason, error: str | None = None) -> None:
        """The last delta of a choice that did not end by itself."""
        fault: Fault = "engine" if error is None else "model" if error == NOT_FINITE else "request"
        seq.num_pending = 0
        text = seq.output.finish()[0]
        self._recorder.deltas.append(
            Delta(seq.request.id, seq.index, text, (), None, reason, usage=seq.usage(), error=error, fault=fault)
        )

    def _report_vector(self, seq: Sequence, delta: Delta) -> FinishReason:
        """The last delta of a pooled sequence, whose prompt is computed."""
        last = embedded(seq, delta, self.pooling)
        if last is None:
            self._report_end(seq, "error", NOT_FINITE)
            return "error"
        self._recorder.deltas.append(last)
        return "stop"

    def _leave(self, seq: Sequence, reason: FinishReason) -> None:
        if seq.status is not Status.FINISHED:  # by its length, before its last token was known
            self.scheduler.finish(seq)
        self._drafting.forget(seq)
        self._recorder.finished.append(seq.ended(reason, time.monotonic()))
        sequences = self._sequences[seq.request.id]
        sequences.remove(seq)
        if not sequences:
            del self._sequences[seq.request.id]

    def close(self) -> None:
        """End the threads that compute masks and move blocks. Idempotent."""
        self._masks.close()
        if self.offload is not None:
            self.offload.close()

    def check(self) -> None:
        """Every live sequence is where its status says, and nothing else is anywhere."""
        live = {seq for sequences in self._sequences.values() for seq in sequences}
        pending = {seq for seq in live if seq.status is Status.PENDING}
        assert pending == {child for seq in live for child in seq.children}
        assert live - pending == {*self.scheduler.running, *self.scheduler.waiting, *self._restoring}
        self.scheduler.check()
        if self._prefix_log is not None:
            self._prefix_log.check()
