"""One replica in a simulated fleet: the scheduler's rules, the planner's step times, and what its prefix cache holds.

A step decodes a token of every running sequence, and gives what is left of its token budget to prompts, those that came
first first. A waiting request is begun while there are seats and room for its tokens. The prefix cache forgets what was
used longest ago, in pieces of 64 tokens, and holds as many as KV memory does besides the running sequences.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pagoda.plan.cost.work import Chunk, StepShape
from pagoda.plan.fleet.traffic import PIECE_TOKENS, Arrival
from pagoda.routing.prefixes import PrefixIndex

RECENT_S = 60.0
CONTEXT_STEP = 64  # contexts are rounded up to this, so that step times can be remembered

StepSeconds = Callable[[StepShape], float]


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way. Times in seconds of the simulation."""

    arrival: Arrival
    owed: int  # tokens of its prompt that are not computed
    cached: int = 0
    done: int = 0  # tokens of its answer
    first: float | None = None
    ended: float | None = None
    broken: bool = False  # its replica failed after its first token
    prefilled_elsewhere: bool = False

    @property
    def context(self) -> int:
        return self.arrival.prompt - self.owed + self.done


@dataclass(frozen=True, slots=True)
class Limits:
    """What a replica may do at once."""

    batch_tokens: int
    num_seqs: int
    kv_tokens: int


@dataclass(eq=False)
class SimulatedReplica:
    """A replica, as routing sees it, and the steps that it takes."""

    name: str
    limits: Limits
    step_seconds: StepSeconds
    weight: float = 1.0
    fallback: bool = False
    rests: bool = False
    healthy: bool = True
    now: float = 0.0  # when it was last looked at
    prefixes: PrefixIndex = field(default_factory=PrefixIndex)  # as the router remembers
    num_sent: int = 0
    busy_s: float = 0.0
    ends: float | None = None  # of the step under way
    _held: PrefixIndex = field(init=False)
    _waiting: deque[Job] = field(default_factory=deque)
    _running: list[Job] = field(default_factory=list)
    _plan: list[tuple[Job, int]] = field(default_factory=list)
    _recent: float = 0.0
    _noted: float = 0.0

    def __post_init__(self) -> None:
        self._held = PrefixIndex(max(1, self.limits.kv_tokens // PIECE_TOKENS))

    @property
    def load(self) -> float:
        return float(len(self._waiting) + len(self._running))

    @property
    def recent(self) -> float:
        return self._recent * math.exp((self._noted - self.now) / RECENT_S)

    def name_of(self, model: str | None) -> str | None:
        return model or ""

    def holds(self, model: str | None) -> bool:
        return True

    def send(self, job: Job, now: float) -> None:
        """A request comes."""
        self.now = now
        self._recent, self._noted = self.recent + 1, now
        self.num_sent += 1
        self.prefixes.add(job.arrival.prefix)
        self._waiting.append(job)

    def begin_step(self, now: float) -> float | None:
        """Start a step. → when it ends; None: there is nothing to do, or one is under way"""
        if self.ends is not None or not self.healthy:
            return None
        self.now = now
        self._admit()
        budget, chunks, rows = self.limits.batch_tokens, [], 0
        decoding = [job for job in self._running if not job.owed]
        self._plan = [(job, 0) for job in decoding[:budget]]
        budget -= len(self._plan)
        if self._plan:
            rows = len(self._plan)
            context = sum(job.context for job, _ in self._plan) / rows
            chunks.append(Chunk(rows, 1, _rounded(context)))
        for job in self._running:
            if job.owed and budget > 0:
                tokens = min(job.owed, budget)
                budget -= tokens
                self._plan.append((job, tokens))
                chunks.append(Chunk(1, tokens, _rounded(job.context + tokens)))
                rows += tokens == job.owed
        if not self._plan:
            return None
        seconds = self.step_seconds(StepShape(tuple(chunks), float(rows)))
        self.ends, self.busy_s = now + seconds, self.busy_s + seconds
        return self.ends

    def end_step(self) -> list[Job]:
        """The step is over. → requests that have ended"""
        assert self.ends is not None
        self.now, self.ends = self.ends, None
        for job, tokens in self._plan:
            job.owed -= tokens
            if not job.owed:
                job.done += 1
                if job.first is None:
                    job.first = self.now
                if tokens:
                    self._held.add(job.arrival.prefix)
        ended = [job for job in self._running if job.done >= job.arrival.output]
        for job in ended:
            job.ended = self.now
        self._running = [job for job in self._running if job.ended is None]
        return ended

    def fail(self) -> list[Job]:
        """It dies. → requests that have no token yet, to be answered elsewhere; the others are broken"""
        self.healthy, self.ends = False, None
        self.prefixes.clear()
        jobs = [*self._running, *self._waiting]
        self._running, self._plan = [], []
        self._waiting.clear()
        for job in jobs:
            job.broken = job.first is not None
        return [job for job in jobs if not job.broken]

    def _admit(self) -> None:
        """Begin requests that wait, while there is room for all tokens that they will have."""
        room = self.limits.kv_tokens - sum(job.arrival.prompt + job.arrival.output for job in self._running)
        while self._waiting and len(self._running) < self.limits.num_seqs:
            job = self._waiting[0]
            need = job.arrival.prompt + job.arrival.output
            if need > room and self._running:
                return
            room -= need
            self._running.append(self._waiting.popleft())
            if job.prefilled_elsewhere:
                continue
            arrival = job.arrival
            held = int(self._held.matched(arrival.prefix) * arrival.piece_tokens)
            job.cached = min(held, arrival.prompt - 1)
            job.owed = arrival.prompt - job.cached


def _rounded(context: float) -> float:
    return float(math.ceil(context / CONTEXT_STEP) * CONTEXT_STEP)
