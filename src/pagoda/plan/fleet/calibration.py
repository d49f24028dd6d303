"""What replicas take beside the planner's step times, found from another log of theirs.

The planner's rates are those of kernels that run alone. A replica also hands out tokens over HTTP, shares memory and
clock with its neighbours, and reads and tokenizes what it is asked: `Overheads`. They are those with which a simulation
comes closest to the times in the log: the mean of |log(simulated / logged)| is least, over the TPOT of all requests and
the TTFT of those that found no other prompt before them. (Who has waited has often waited for a step that was slow by
chance, so that waits make the machine slower than it is.) Each request is simulated on the replica that answered it.
The search is that of Hooke and Jeeves ("Direct search", 1961): one number after the other is moved by a step as long as
that helps, then all steps are halved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from statistics import mean

from pagoda.errors import ConfigError
from pagoda.plan.fleet.replica import NO_OVERHEADS, Job, Overheads, StepSeconds
from pagoda.plan.fleet.simulate import Fleet, simulated_jobs
from pagoda.plan.fleet.traffic import Arrival

LEAST_REQUESTS = 20  # with times in a log that calibrates
MOST_REQUESTS = 300  # of a log, from its beginning, that are simulated again and again
HALVINGS = 2


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was found. `error`: mean of |log(simulated / logged)|, by which the log itself is missed."""

    overheads: Overheads
    error: float


FIRST_STEPS = Overheads(pace=0.1, step_s=0.0005, row_s=0.00025, request_s=0.004)  # of the search


def calibrated(logs: Sequence[Sequence[Arrival]], one: Fleet, planned: StepSeconds) -> Calibration:
    """From logs of replicas such as the one of the fleet `one`. ConfigError: too few of the requests were streams."""
    logs = [log[: MOST_REQUESTS // len(logs)] for log in logs]
    num_timed = sum(arrival.ttft_s is not None for log in logs for arrival in log)
    if num_timed < LEAST_REQUESTS:
        raise ConfigError(
            f"--fleet-calibration: {num_timed} requests with a time to the first token; {LEAST_REQUESTS} are needed, "
            "of clients that stream"
        )

    def error(found: Overheads) -> float:
        fleet = replace(one, overheads=found, as_logged=True)
        jobs = [job for log in logs for job in simulated_jobs(log, fleet, planned)]
        return mean(part for job in jobs for part in _errors(job))

    return least(error)


def least(error: Callable[[Overheads], float], first: Overheads = NO_OVERHEADS) -> Calibration:
    """Where `error` is least, or nearly so, none of the numbers being negative."""
    best, lowest, scale = first, error(first), 1.0
    for _ in range(HALVINGS + 1):
        improved = True
        while improved:
            improved = False
            for name in (field.name for field in fields(Overheads)):
                for sign in (1, -1):
                    moved = getattr(best, name) + sign * scale * getattr(FIRST_STEPS, name)
                    trial = replace(best, **{name: max(0.0, moved)})
                    found = error(trial) if trial != best else lowest
                    if found < lowest - 1e-9:
                        best, lowest, improved = trial, found, True
                        break
        scale /= 2
    return Calibration(best, lowest)


def _errors(job: Job) -> list[float]:
    """|log(simulated / logged)| of the request's TTFT and TPOT, as far as they were logged."""
    logged, output = job.arrival, job.arrival.output
    if job.first is None or job.ended is None:
        return []
    found = []
    if logged.ttft_s and not job.queued:
        found.append(abs(math.log((job.first - logged.at) / logged.ttft_s)))
    if logged.tpot_s:
        found.append(abs(math.log(max(1e-9, job.ended - job.first) / (output - 1) / logged.tpot_s)))
    return found
