"""The loop: plan, run, sample, pay and settle. Synchronous and for one thread; `EngineThread` gives it one."""

from __future__ import annotations

import time
from collections.abc import Collection
from collections.abc import Sequence as Seq
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import Protocol

import numpy as np

from pagoda.backends.base import LoadedModel, RankingModel, StagedModel
from pagoda.engine.facts import Facts
from pagoda.engine.output import OutputText, TokenStream
from pagoda.engine.overlap import Overlap, Steps
from pagoda.engine.ranked import fetch, sample
from pagoda.engine.runner import Logits, Runner, Wanted
from pagoda.engine.scheduler import Scheduler, StepPlan
from pagoda.engine.sequence import Sequence, Status
from pagoda.errors import ContextLengthError, RequestError
from pagoda.kv.cache import KVCache
from pagoda.sampling.bad_words import token_sequences
from pagoda.sampling.base import Sampled, SamplerProtocol
from pagoda.sampling.likely import LikelySampler
from pagoda.sampling.params import validate
from pagoda.sampling.reference import NOTHING_ALLOWED
from pagoda.types import Delta, FinishReason, Request, StepResult


class EngineTokenizer(Protocol):
    """What the engine asks of a tokenizer, see `pagoda.text`."""

    @property
    def eos_ids(self) -> Collection[int]: ...

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...

    def stream(self, *, skip_special: bool = True, prompt_ids: Seq[int] = ()) -> TokenStream: ...


class Engine:
    """A loaded model that continues many prompts at once."""

    def __init__(
        self,
        model: LoadedModel,
        tokenizer: EngineTokenizer,
        sampler: SamplerProtocol,
        *,
        vocab_size: int,
        windows: Seq[int | None],
        num_blocks: Seq[int],
        max_context: int,
        max_batch_tokens: int = 512,
        max_num_seqs: int = 64,
        max_rows: int = 0,
        prefix_caching: bool = True,
        seed: int = 0,
        overlap: bool = True,
    ) -> None:
        """`windows` and `num_blocks` describe the KV groups; one sequence of max_context tokens must fit in them.

        max_rows: rows of logits that the model can give in one step, at least max_num_seqs; more are good for prompt
        logprobs alone. overlap: plan the next step while a device computes, where the model can do that.
        """
        model.allocate_kv(tuple(num_blocks))
        self.vocab_size = vocab_size
        self.max_context = max_context
        self.seed = seed
        self._tokenizer = tokenizer
        self._sampler = sampler
        max_num_seqs = min(max_num_seqs, max_batch_tokens)  # so that a running prompt always gets tokens
        self.kv = KVCache(
            windows,
            num_blocks,
            max_seqs=max_num_seqs,
            max_context=max_context,
            copy=model.copy_blocks,
            prefix_caching=prefix_caching,
        )
        self.scheduler = Scheduler(self.kv, max_batch_tokens=max_batch_tokens, max_rows=max(max_rows, max_num_seqs))
        self._runner = Runner(
            model, self.kv, max_batch_tokens=max_batch_tokens, max_num_seqs=max_num_seqs, max_context=max_context
        )
        self._sequences: dict[str, list[Sequence]] = {}  # by request: its choices that have not ended
        self._num_added = 0
        self._unscored: dict[Sequence, str] = {}  # whose prompt logprobs this step could not give, and why
        self._facts = Facts()
        self._overlap: Overlap | None = None
        if overlap and isinstance(model, StagedModel):
            steps = Steps(partial(self._wait, model), self._sample, self._pay, self._settle)
            self._overlap = Overlap(model, self._runner, self.scheduler, self._facts, steps)

    # Requests come and go

    def validate(self, request: Request) -> Request:
        """The request with normalised params. Raises RequestError. Safe from any thread."""
        prompt = request.prompt_token_ids
        if not prompt:
            raise RequestError("the prompt is empty", param="prompt")
        for token_id in (min(prompt), max(prompt)):
            if not 0 <= token_id < self.vocab_size:
                raise RequestError(
                    f"the prompt holds token {token_id}, but token ids run from 0 to {self.vocab_size - 1}",
                    param="prompt",
                )
        params = validate(request.params, self.vocab_size, self.max_context)
        if len(prompt) + (params.max_tokens or 1) > self.max_context:
            raise ContextLengthError.of(self.max_context, len(prompt), params.max_tokens)
        return replace(request, params=params)

    def add(self, request: Request) -> None:
        """Take a request. Raises RequestError."""
        self.enter(self.validate(request))

    def enter(self, request: Request) -> None:
        """Take a request that `validate` returned. RequestError: a request of that id is here already."""
        if request.id in self._sequences:
            raise RequestError(f"a request with id {request.id!r} is running already", param="request_id")
        choices = [self._open(request, index) for index in range(request.params.n)]
        choices[0].children = choices[1:]
        self._sequences[request.id] = choices
        self._num_added += 1
        self.scheduler.add(choices[0])

    def abort(self, request_id: str) -> bool:
        """End all choices of a request now; the next step reports it. False: no such request."""
        sequences = self._sequences.get(request_id)
        if sequences is None:
            return False
        for seq in list(sequences):
            self._end(seq, "abort")
        return True

    @property
    def has_work(self) -> bool:
        """Whether a step would compute or report something."""
        return bool(self._sequences) or bool(self._facts)

    # One step

    def step(self) -> StepResult:
        """Compute some of the tokens that are owed, and report what came of it."""
        self._facts.start()
        plan = self._turn() if self._overlap is None else self._overlap.turn()
        return self._facts.take(plan, self.scheduler)

    def _turn(self) -> StepPlan:
        """One thing after the other; `Overlap` does it on a device that computes by itself."""
        plan = self.scheduler.plan(time.monotonic())
        if plan.counts:
            logits = self._facts.time_forward(lambda: self._runner.run(plan))
            sampled = self._facts.time_sample(lambda: self._sample(logits))
            self._pay(plan, logits.wanted.ready)
            self._settle(logits.wanted.ready, sampled)
        return plan

    def _wait(self, model: StagedModel, wanted: Wanted) -> Logits:
        """What sampling needs of the step that runs."""
        if isinstance(model, RankingModel) and isinstance(self._sampler, LikelySampler) and not wanted.prompt:
            ranked = fetch(model, [seq.sampler for seq in wanted.ready], wanted.logit_rows)
            if ranked is not None:
                return Logits(np.empty((0, self.vocab_size), np.float32), wanted, ranked)
        return Logits(model.wait(), wanted)

    def _sample(self, logits: Logits) -> Sampled:
        """A token for every choice whose turn it is."""
        wanted = logits.wanted
        if logits.ranked is not None:
            assert isinstance(self._sampler, LikelySampler)
            return sample(self._sampler, logits.ranked, [seq.sampler for seq in wanted.ready], wanted.logit_rows)
        for rows in wanted.prompt:
            part = logits.logits[rows.first : rows.first + len(rows.targets)]
            try:
                rows.seq.take_prompt_logprobs(self._sampler, part, rows.targets)
            except ValueError as error:  # not finite
                self._unscored[rows.seq] = str(error)
        return self._sampler.sample(logits.logits, [seq.sampler for seq in wanted.ready], rows=wanted.rows)

    def _pay(self, plan: StepPlan, ready: Seq[Sequence]) -> None:
        """The planned tokens are computed."""
        self._facts.count_prompt_tokens(plan)
        self.scheduler.commit(plan)
        for seq in ready:
            if seq.children:
                self.scheduler.fork(seq)

    def _settle(self, ready: Seq[Sequence], sampled: Sampled) -> None:
        """The sampled tokens are owed, or the last."""
        now = time.monotonic()
        for i, (seq, token_id) in enumerate(zip(ready, sampled.token_ids.tolist(), strict=True)):
            if sampled.errors and i in sampled.errors:
                seq.forget_unknown()
                self._end(seq, "error", sampled.errors[i])
                continue
            if seq in self._unscored:
                continue
            delta = seq.append(token_id, sampled.logprobs[i])
            self._facts.token(seq, delta, now)
            if delta.finish_reason is not None:
                self._leave(seq, delta.finish_reason, now)
        for parent, why in self._unscored.items():
            for seq in list(self._sequences.get(parent.request.id, ())):
                seq.forget_unknown()
                self._end(seq, "error", why)
        self._unscored.clear()

    # Inside

    def _open(self, request: Request, index: int) -> Sequence:
        params = request.params
        eos_ids = frozenset() if params.ignore_eos else frozenset(self._tokenizer.eos_ids)
        stop_ids = eos_ids.union(params.stop_token_ids)
        seed = self._seed_of(request) if params.seed is None else params.seed
        state = self._sampler.open(
            params,
            request.prompt_token_ids,
            index,
            seed,
            stop_token_ids=sorted(stop_ids),
            bad_words=token_sequences(params.bad_words, self._encode),
        )
        stream = self._tokenizer.stream(skip_special=params.skip_special_tokens, prompt_ids=request.prompt_token_ids)
        room = self.max_context if params.max_tokens is None else len(request.prompt_token_ids) + params.max_tokens
        return Sequence(
            request,
            index,
            order=self._num_added,
            max_len=min(room, self.max_context),
            stop_ids=stop_ids,
            sampler=state,
            output=OutputText(stream, params),
        )

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special=False)

    def _seed_of(self, request: Request) -> int:
        digest = blake2b(f"{self.seed} {request.id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def _end(self, seq: Sequence, reason: FinishReason, error: str | None = None) -> None:
        """End a choice that did not end by itself."""
        delta = Delta(seq.request.id, seq.index, seq.output.finish()[0], (), finish_reason=reason, usage=seq.usage())
        if error is not None:
            delta = replace(delta, error=error, fault="request" if error == NOTHING_ALLOWED else "model")
        self._facts.deltas.append(delta)
        self._leave(seq, reason, time.monotonic())

    def _leave(self, seq: Sequence, reason: FinishReason, now: float) -> None:
        if seq.status is not Status.FINISHED:  # by its length, before its last token was known
            self.scheduler.finish(seq)
        self._facts.finished.append(seq.ended(reason, now))
        sequences = self._sequences[seq.request.id]
        sequences.remove(seq)
        if not sequences:
            del self._sequences[seq.request.id]

    def check(self) -> None:
        """Every live sequence is where its status says, and nothing else is anywhere."""
        live = {seq for sequences in self._sequences.values() for seq in sequences}
        pending = {seq for seq in live if seq.status is Status.PENDING}
        assert pending == {child for seq in live for child in seq.children}
        assert live - pending == {*self.scheduler.running, *self.scheduler.waiting}
        self.scheduler.check()
