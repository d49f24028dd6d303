"""One replica in a simulated fleet: the scheduler's rules, the planner's step times, and what its prefix cache holds.

A step decodes a token of every running sequence, and gives what is left of its token budget to prompts, those that came
first first. A waiting request is begun while there are seats and room for its tokens, and no running one computes what
it could share. The prefix cache forgets what was used longest ago, in the pieces of the log, and holds as many as KV
memory does.
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

SERVER_S = 0.002  # of a request, outside of steps: HTTP, template, tokens

StepSeconds = Callable[[StepShape], float]


@dataclass(frozen=True, slots=True)
class Overheads:
    """What a replica takes beside, or more than, the planner's steps.

    seconds of a step    = pace · planned + step_s + row_s · rows of logits
    seconds of a request = request_s, before its first step
    """

    pace: float = 1.0
    step_s: float = 0.0
    row_s: float = 0.0  # for each token that is handed out, too
    request_s: float = SERVER_S

    def of_step(self, planned_s: float, rows: float) -> float:
        """Seconds of a step."""
        return self.pace * planned_s + self.step_s + self.row_s * rows


NO_OVERHEADS = Overheads()


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
    queued: bool = False  # behind other prompts

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
    overheads: Overheads = NO_OVERHEADS
    piece_tokens: float = float(PIECE_TOKENS)  # of the prefixes that it is sent, at the mean
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
        self._held = PrefixIndex(max(1, int(self.limits.kv_tokens / self.piece_tokens)))

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
        job.queued = bool(self._waiting) or any(one.owed for one in self._running)
        self._waiting.append(job)

    def begin_step(self, now: float) -> float | None:
        """Start a step. → when it ends; None: there is nothing to do, or one is under way"""
        if self.ends is not None or not self.healthy:
            return None
        self.now = now
        self._plan = []
        budget = self.limits.batch_tokens
        for job in sorted(self._running, key=lambda job: job.owed > 0):
            budget -= self._give(job, budget)
        while budget > 0 and (begun := self._next_waiting()) is not None:
            self._running.append(begun)
            budget -= self._give(begun, budget)
        if not self._plan:
            return None
        step = self._shape()
        seconds = self.overheads.of_step(self.step_seconds(step), step.rows)
        self.ends, self.busy_s = now + seconds, self.busy_s + seconds
        return self.ends

    def _give(self, job: Job, budget: int) -> int:
        """Plan what the job owes: tokens of its prompt, or else one of its answer. → tokens of the budget"""
        tokens = min(job.owed or 1, budget)
        if tokens:
            self._plan.append((job, min(job.owed, tokens)))
        return tokens

    def _shape(self) -> StepShape:
        """What the planned step computes."""
        contexts = [job.context for job, tokens in self._plan if not tokens]
        rows = len(contexts)
        chunks = [Chunk(rows, 1, _rounded(sum(contexts) / rows))] if rows else []
        for job, tokens in self._plan:
            if tokens:
                chunks.append(Chunk(1, tokens, float(job.context + tokens)))
                rows += tokens == job.owed
        return StepShape(tuple(chunks), float(rows))

    def end_step(self) -> list[Job]:
        """The step is over. → requests that have ended"""
        assert self.ends is not None
        self.now, self.ends = self.ends, None
        for job, tokens in self._plan:
            job.owed -= tokens
            if tokens:
                num_computed = int((job.arrival.prompt - job.owed) / job.arrival.piece_tokens)
                self._held.add(job.arrival.prefix[:num_computed] if job.owed else job.arrival.prefix)
            if not job.owed:
                job.done += 1
                if job.first is None:
                    job.first = self.now
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

    def _next_waiting(self) -> Job | None:
        """Take the first of those that wait, if there is a seat, and room for all tokens that it will have; but not if
        a running one is about to compute what it could share."""
        if not self._waiting or len(self._running) == self.limits.num_seqs:
            return None
        job = self._waiting[0]
        arrival = job.arrival
        room = self.limits.kv_tokens - sum(one.arrival.prompt + one.arrival.output for one in self._running)
        if arrival.prompt + arrival.output > room and self._running:
            return None
        if not job.prefilled_elsewhere:
            num_held = self._held.matched(arrival.prefix)
            if self._is_being_computed(arrival.prefix, num_held):
                return None
            job.cached = arrival.held_tokens(num_held)
            job.owed = arrival.prompt - job.cached
        return self._waiting.popleft()

    def _is_being_computed(self, prefix: tuple[int, ...], num_held: int) -> bool:
        """Whether a running request is about to compute the first piece of this prefix that is not held."""
        wanted = prefix[: num_held + 1]
        return len(wanted) > num_held and any(
            job.owed and job.arrival.prefix[: num_held + 1] == wanted for job in self._running
        )


def _rounded(context: float) -> float:
    return float(math.ceil(context / CONTEXT_STEP) * CONTEXT_STEP)
