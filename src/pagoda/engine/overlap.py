"""The loop on a device that computes by itself: while a step runs there, the next one is planned and laid out here.

    launch n ── plan n+1 ── stage n+1 ── wait n ── sample n ── launch n+1 ── settle n: texts, ends, deltas ── plan n+2 …

Between `wait` and `launch` the device has nothing to do, so what must be there is the tokens alone: each sequence whose
turn it is gets an unknown one, for which the next step is planned as for any other, and the sampled ones are put into
the staged step at the end. Which sequences end by length is known beforehand, and they give their blocks back at once.
Who ends otherwise (EOS, a stop string, an abort) has by then been computed once more, for nothing: that is dropped.

Blocks of such a sequence may be given to others while the device still writes to them: it works in order, so whoever
has them now writes later.

What cannot be planned for is not: where choices fork off a prompt, or prompt logprobs are due, the step is committed
first, as on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pagoda.backends.base import StagedModel
from pagoda.engine.facts import Facts
from pagoda.engine.runner import Logits, Runner, Wanted
from pagoda.engine.scheduler import Scheduler, StepPlan
from pagoda.engine.sequence import UNKNOWN, Sequence, Status
from pagoda.sampling.base import Sampled
from pagoda.types import Int32Array

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Steps:
    """What the engine does with a step's results."""

    wait: Callable[[Wanted], Logits]  # for the running step, and for no more of it than sampling needs
    sample: Callable[[Logits], Sampled]
    pay: Callable[[StepPlan, list[Sequence]], None]  # the planned tokens are computed
    settle: Callable[[list[Sequence], Sampled], None]  # the sampled tokens are owed, or the last


@dataclass(frozen=True, slots=True)
class _Running:
    """A step on the device."""

    plan: StepPlan
    wanted: Wanted
    launched: float

    def forget_ended(self) -> _Running:
        """Without the sequences that have ended since it was planned."""
        for seq in [seq for seq in self.plan.counts if seq.status is Status.FINISHED]:
            self.plan.withdraw(seq)
        return replace(self, wanted=self.wanted.without_ended())

    @property
    def is_foreseeable(self) -> bool:
        """Whether what it leaves behind is known but for the tokens."""
        return not self.wanted.prompt and not any(seq.children for seq in self.wanted.ready)


@dataclass(frozen=True, slots=True)
class _Staged:
    """A step that is laid out, and where its unknown tokens will come from."""

    plan: StepPlan
    wanted: Wanted
    tokens: Int32Array  # [T]
    holes: Rows  # [N] of tokens
    sources: Rows  # [N] of the running step's sampled tokens

    def fill(self, sampled: Sampled) -> Int32Array:
        found = sampled.token_ids
        if sampled.errors:  # those rows have no token, and their sequences end
            found = found.copy()
            found[list(sampled.errors)] = 0
        self.tokens[self.holes] = found[self.sources]
        return self.tokens


class Overlap:
    """Turns an engine over a `StagedModel`. Between two turns the next step is running, and the engine is as it would
    be had it been planned and not yet computed.
    """

    def __init__(self, model: StagedModel, runner: Runner, scheduler: Scheduler, facts: Facts, steps: Steps) -> None:
        self._model = model
        self._runner = runner
        self._scheduler = scheduler
        self._facts = facts
        self._steps = steps
        self._running: _Running | None = None

    def turn(self) -> StepPlan:
        """Get one step's results, of the one that runs or else of one that starts now. → its plan"""
        running, self._running = self._running, None
        if running is None:
            plan = self._scheduler.plan(time.monotonic())
            if not plan.counts:
                return plan
            running = self._start(plan)
        running = running.forget_ended()
        foreseen = running.is_foreseeable
        staged = self._plan_ahead(running) if foreseen else None
        logits = self._steps.wait(running.wanted)
        self._facts.forward_s = time.perf_counter() - running.launched
        sampled = self._facts.time_sample(lambda: self._steps.sample(logits))
        if staged is not None:
            self._running = self._launch(staged.plan, staged.wanted, staged.fill(sampled))
        if not foreseen:
            self._steps.pay(running.plan, running.wanted.ready)
        self._steps.settle(running.wanted.ready, sampled)
        return running.plan

    def _start(self, plan: StepPlan) -> _Running:
        batch, wanted = self._runner.lay_out(plan)
        self._model.stage(batch)
        return self._launch(plan, wanted, batch.tokens)

    def _launch(self, plan: StepPlan, wanted: Wanted, tokens: Int32Array) -> _Running:
        launched = time.perf_counter()
        self._model.launch(tokens)
        return _Running(plan, wanted, launched)

    def _plan_ahead(self, running: _Running) -> _Staged | None:
        """While the device computes: what comes next, as far as it is known. None: nothing."""
        ready = running.wanted.ready
        self._steps.pay(running.plan, ready)
        for seq in ready:
            if seq.ends_with_next:
                self._scheduler.finish(seq)
            else:
                seq.tokens.append(UNKNOWN)
        plan = self._scheduler.plan(time.monotonic())
        if not plan.counts:
            return None
        batch, wanted = self._runner.lay_out(plan)
        self._model.stage(batch)
        source = {seq: i for i, seq in enumerate(ready)}
        pairs = [
            (row, source[seq])
            for row, seq in zip(batch.logit_rows.tolist(), wanted.ready, strict=False)
            if seq.tokens[-1] == UNKNOWN
        ]
        holes, sources = np.array(pairs, np.intp).reshape(-1, 2).T
        return _Staged(plan, wanted, batch.tokens, holes, sources)
