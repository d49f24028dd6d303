"""What a fleet is asked: how many replicas hold the objectives, what affinity saves, what a failure costs, and when
prefill and decode apart would pay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pagoda.errors import ConfigError
from pagoda.plan.cost.speed import smallest
from pagoda.plan.fleet.calibration import Calibration
from pagoda.plan.fleet.replica import Limits, StepSeconds
from pagoda.plan.fleet.simulate import Fleet, Outcome, percentiles, simulate
from pagoda.plan.fleet.traffic import Arrival, multiplied
from pagoda.plan.target import Target
from pagoda.routing.router import Routing

MOST_REPLICAS = 32
MULTIPLES = (1, 2, 4)  # of the traffic, at which prefill and decode apart are looked at
CPU_KV_TOKENS = 2048  # for each sequence that may run at once: `pagoda serve`'s default on CPUs
MOST_APART = 2000  # requests of which the split is simulated


@dataclass(frozen=True, slots=True)
class Objectives:
    """Bounds on the 95th percentiles, in seconds; None: any."""

    ttft_s: float | None
    tpot_s: float | None

    def hold(self, outcome: Outcome) -> bool:
        ttft, tpot = outcome.ttft[1], outcome.tpot[1]
        return (self.ttft_s is None or ttft <= self.ttft_s) and (self.tpot_s is None or tpot <= self.tpot_s)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the log says beside what the simulation of the fleet that wrote it says; seconds."""

    figure: str  # "TTFT p50" …
    predicted: float
    logged: float

    @property
    def error(self) -> float:
        return self.predicted / self.logged - 1 if self.logged else 0.0


@dataclass(frozen=True, slots=True)
class FleetReport:
    """Answers. `needed` of None: not with MOST_REPLICAS."""

    needed: int | None
    sizes: tuple[tuple[int, Outcome], ...]  # that were looked at
    at: int  # replicas of the following
    routings: dict[str, Outcome]
    needed_random: int | None
    failure: Outcome | None  # one of `at` dies halfway
    spare: Outcome | None  # the same with one replica more
    apart: tuple[tuple[int, int | None, int | None], ...]  # times the traffic, replicas together, and apart
    comparisons: tuple[Comparison, ...]
    calibration: Calibration | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def limits_of(target: Target, kv_tokens: int | None = None) -> Limits:
    """What one replica of a plan may do at once. ConfigError: the model does not fit there."""
    memory, on_cpu = target.memory, target.device.kind != "gpu"
    room = int(memory.kv_room_bytes / memory.kv_token_bytes)
    if room < 1:
        raise ConfigError(f"{target.shape.name} in {target.weights.format} does not fit on {target.device.name}")
    num_seqs = target.settings.concurrency or (64 if on_cpu else 256)
    tokens = min(room, num_seqs * CPU_KV_TOKENS) if on_cpu else room
    return Limits(target.chunk, num_seqs, kv_tokens or tokens)


def answer(
    traffic: Sequence[Arrival],
    one: Fleet,
    step_seconds: StepSeconds,
    objectives: Objectives,
    *,
    transfer_s: float,
    logged_by: int | None,
    calibration: Calibration | None = None,
) -> FleetReport:
    """All of it. `one`: a fleet of one replica, whose steps take `step_seconds`, corrected by the calibration.

    `transfer_s`: to move a token's KV to another replica; `logged_by`: replicas that wrote the log. Where the log says
    which of them answered, it is compared with a simulation that sends requests to the same ones."""
    if calibration is not None:
        one = replace(one, overheads=calibration.overheads)

    def run(fleet: Fleet) -> Outcome:
        return simulate(traffic, fleet, step_seconds)

    sizes = list(_sizes(traffic, one, step_seconds, objectives))
    needed = next((size for size, outcome in sizes if objectives.hold(outcome)), None)
    at = logged_by or max(needed or MOST_REPLICAS, 2)
    routings: tuple[Routing, ...] = ("random", "load", "affinity")
    base = replace(one, num_replicas=at)
    half = traffic[len(traffic) // 2].at
    named = len({arrival.upstream for arrival in traffic}) == logged_by
    return FleetReport(
        needed,
        tuple(sizes),
        at,
        {name: run(replace(base, routing=name)) for name in routings},
        _smallest(traffic, replace(one, routing="random"), step_seconds, objectives),
        run(replace(base, fails_at=half)),
        run(replace(base, num_replicas=at + 1, fails_at=half)),
        tuple(_apart(traffic[:MOST_APART], base, step_seconds, objectives, transfer_s)),
        () if logged_by is None else compared(traffic, run(replace(base, num_replicas=logged_by, as_logged=named))),
        calibration,
    )


def compared(traffic: Sequence[Arrival], outcome: Outcome) -> tuple[Comparison, ...]:
    """Percentiles of the log beside those of the simulation."""
    ttft = percentiles([one.ttft_s for one in traffic if one.ttft_s is not None])
    tpot = percentiles([one.tpot_s for one in traffic if one.tpot_s is not None])
    rows = zip(
        ("TTFT p50", "TTFT p95", "TPOT p50", "TPOT p95"), (*outcome.ttft, *outcome.tpot), (*ttft, *tpot), strict=True
    )
    return tuple(Comparison(name, predicted, logged) for name, predicted, logged in rows)


def _sizes(
    traffic: Sequence[Arrival], fleet: Fleet, step_seconds: StepSeconds, objectives: Objectives
) -> Iterator[tuple[int, Outcome]]:
    """Fleets of 1, 2, … replicas, up to the first that holds the objectives."""
    for size in range(1, MOST_REPLICAS + 1):
        outcome = simulate(traffic, replace(fleet, num_replicas=size), step_seconds)
        yield size, outcome
        if objectives.hold(outcome):
            return


def _apart(
    traffic: Sequence[Arrival], fleet: Fleet, step_seconds: StepSeconds, objectives: Objectives, transfer_s: float
) -> Iterator[tuple[int, int | None, int | None]]:
    """For multiples of the traffic: the smallest fleets, together and with the best split, that hold the objectives."""
    for times in MULTIPLES:
        more = multiplied(traffic, times)[:MOST_APART]

        def splits(size: int, more: Sequence[Arrival] = more) -> bool:
            apart = (replace(fleet, num_replicas=size, prefill=n, transfer_s=transfer_s) for n in range(1, size))
            return any(objectives.hold(simulate(more, one, step_seconds)) for one in apart)

        yield times, _smallest(more, fleet, step_seconds, objectives), smallest(MOST_REPLICAS, splits)


def _smallest(
    traffic: Sequence[Arrival], fleet: Fleet, step_seconds: StepSeconds, objectives: Objectives
) -> int | None:
    """By bisection: more replicas are taken to be no worse."""

    def holds(size: int) -> bool:
        return objectives.hold(simulate(traffic, replace(fleet, num_replicas=size), step_seconds))

    return smallest(MOST_REPLICAS, holds)
