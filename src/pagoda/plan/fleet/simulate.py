"""Traffic over replicas, event by event: requests are routed as `pagoda gateway` routes them, replicas take steps."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

from pagoda.plan.cost.roofline import Costs
from pagoda.plan.cost.work import StepShape
from pagoda.plan.fleet.replica import NO_OVERHEADS, Job, Limits, Overheads, SimulatedReplica, StepSeconds
from pagoda.plan.fleet.traffic import PIECE_TOKENS, Arrival
from pagoda.routing.router import Journey, Router, Routing

NOTICED_S = 0.05  # until a broken connection is noticed and a request sent elsewhere
SEED = 0


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is simulated. `prefill`: so many of the replicas compute prompts alone, and hand their KV to the others."""

    num_replicas: int
    limits: Limits
    routing: Routing = "affinity"
    prefill: int = 0
    transfer_s: float = 0.0  # to move the KV of a token from one replica to another
    fails_at: float | None = None  # one replica dies then, and does not come back
    overheads: Overheads = NO_OVERHEADS
    as_logged: bool = False  # the replicas are those of the log, and each request goes where it went then


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the requests; percentiles over those that ended, in seconds."""

    ttft: tuple[float, float]  # p50, p95
    tpot: tuple[float, float]
    num_ended: int
    num_broken: int
    prefix_hits: float  # share of prompt tokens
    balance: float  # requests of the busiest replica over those of the least busy one
    utilization: float  # share of the time that replicas compute


def remembered(costs: Costs) -> StepSeconds:
    """Seconds of steps, each shape computed once."""
    known: dict[StepShape, float] = {}

    def seconds(step: StepShape) -> float:
        if step not in known:
            known[step] = costs.step(step).seconds
        return known[step]

    return seconds


def simulate(traffic: Sequence[Arrival], fleet: Fleet, step_seconds: StepSeconds) -> Outcome:
    """Run all of the traffic to its end."""
    run = _Run(traffic, fleet, step_seconds)
    run.go()
    return run.outcome()


def simulated_jobs(traffic: Sequence[Arrival], fleet: Fleet, step_seconds: StepSeconds) -> list[Job]:
    """What became of each request of the traffic, in its order."""
    run = _Run(traffic, fleet, step_seconds)
    run.go()
    return run.jobs


class _Run:
    """One simulation. Events are (time, number, what), the number for those of one time."""

    def __init__(self, traffic: Sequence[Arrival], fleet: Fleet, step_seconds: StepSeconds) -> None:
        logged = sorted({arrival.upstream for arrival in traffic})
        names = logged if fleet.as_logged else [str(number) for number in range(fleet.num_replicas)]
        pieces = [one.piece_tokens for one in traffic if one.prefix] or [float(PIECE_TOKENS)]
        made = (fleet.limits, step_seconds, fleet.overheads, mean(pieces))
        replicas = [SimulatedReplica(name, *made) for name in names]
        self._fleet = fleet
        self._fronts, self._backs = replicas[: fleet.prefill], replicas[fleet.prefill :]
        self._front_router = Router(self._fronts or self._backs, fleet.routing, SEED)
        self._logged = {one.name: one for one in replicas} if fleet.as_logged else {}
        self._back_router = Router(self._backs, "load", SEED)
        self.jobs = [Job(arrival, arrival.prompt) for arrival in traffic]
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Job | SimulatedReplica | None]] = []
        self._halves: dict[int, Job] = {}  # prompt alone → the request that it is of
        for job in self.jobs:
            self._at(job.arrival.at + fleet.overheads.request_s, job)
        if fleet.fails_at is not None:
            self._at(fleet.fails_at, None)

    def _at(self, time: float, what: Job | SimulatedReplica | None) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), what))

    def go(self) -> None:
        while self._events:
            now, _, what = heapq.heappop(self._events)
            if isinstance(what, Job):
                self._arrive(what, now)
            elif what is None:
                self._fail(now)
            elif what.ends is not None and what.ends <= now:
                for ended in what.end_step():
                    self._hand_over(ended, now)
                self._step(what, now)

    def _step(self, replica: SimulatedReplica, now: float) -> None:
        ends = replica.begin_step(now)
        if ends is not None:
            self._at(ends, replica)

    def _arrive(self, job: Job, now: float) -> None:
        for one in (*self._fronts, *self._backs):
            one.now = now
        router = self._back_router if job.prefilled_elsewhere else self._front_router
        replica = self._logged.get(job.arrival.upstream)
        if replica is None:
            choice = router.choose(Journey(None, job.arrival.prefix))
            assert choice is not None
            replica = choice.replica
        if self._fronts and not job.prefilled_elsewhere:
            half = Job(replace(job.arrival, output=1), job.arrival.prompt)
            self._halves[id(half)] = job
            job = half
        replica.send(job, now)
        self._step(replica, now)

    def _hand_over(self, ended: Job, now: float) -> None:
        """A prompt that was computed apart goes on elsewhere, after its KV has been moved."""
        job = self._halves.pop(id(ended), None)
        if job is None:
            return
        job.first, job.cached, job.done, job.owed = ended.first, ended.cached, 1, 0
        if job.arrival.output == 1:
            job.ended = now
            return
        job.prefilled_elsewhere = True
        self._at(now + job.arrival.prompt * self._fleet.transfer_s, job)

    def _fail(self, now: float) -> None:
        for job in self._backs[0].fail():
            self._at(now + NOTICED_S, job)

    def outcome(self) -> Outcome:
        jobs = [job for job in self.jobs if job.ended is not None and job.first is not None]
        ttft = [job.first - job.arrival.at for job in jobs if job.first is not None]
        tpot = [
            (job.ended - job.first) / (job.arrival.output - 1)
            for job in jobs
            if job.ended is not None and job.first is not None and job.arrival.output > 1
        ]
        replicas = [*self._fronts, *self._backs]
        counts = [one.num_sent for one in self._fronts or self._backs]
        end = max((job.ended or 0.0 for job in jobs), default=0.0)
        return Outcome(
            percentiles(ttft),
            percentiles(tpot),
            len(jobs),
            sum(job.broken for job in self.jobs),
            sum(job.cached for job in jobs) / max(1, sum(job.arrival.prompt for job in jobs)),
            max(counts) / max(1, min(counts)),
            sum(one.busy_s for one in replicas) / (end * len(replicas)) if end else 0.0,
        )


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """p50 and p95, each a value that occurs; zeros without values."""
    ordered = sorted(values)
    if not ordered:
        return 0.0, 0.0
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
