"""Calibration by logs of replicas whose overheads are known: a simulation has written them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from pagoda.errors import ConfigError
from pagoda.plan.cost.work import StepShape
from pagoda.plan.fleet.calibration import calibrated, least
from pagoda.plan.fleet.questions import compared
from pagoda.plan.fleet.replica import Limits, Overheads
from pagoda.plan.fleet.simulate import Fleet, simulate, simulated_jobs
from pagoda.plan.fleet.traffic import Arrival

LIMITS = Limits(batch_tokens=512, num_seqs=64, kv_tokens=100_000)
TRUE = Overheads(pace=1.3, step_s=0.001, row_s=0.0005, request_s=0.02)


def planned(step: StepShape) -> float:
    """5 ms a step, 2 ms a token of a prompt."""
    return 0.005 + 0.002 * sum(chunk.queries for chunk in step.chunks if chunk.queries > 1)


def logged(seed: int, count: int, gap: float) -> list[Arrival]:
    """A log that two replicas with the true overheads would write."""
    draw = random.Random(seed)
    at, asked = 0.0, []
    for number in range(count):
        one = Arrival(at, draw.randint(40, 300), draw.randint(8, 40), (), upstream="ab"[number % 2])
        asked.append(one)
        at += draw.expovariate(1 / gap)
    jobs = simulated_jobs(asked, Fleet(2, LIMITS, overheads=TRUE, as_logged=True), planned)
    return [
        replace(
            job.arrival,
            ttft_s=(job.first or 0.0) - job.arrival.at,
            tpot_s=((job.ended or 0.0) - (job.first or 0.0)) / (job.arrival.output - 1),
        )
        for job in jobs
    ]


def test_what_one_log_teaches_holds_for_another() -> None:
    found = calibrated([logged(1, 40, 0.6), logged(2, 40, 0.3)], Fleet(1, LIMITS), planned)
    assert found.error < 0.05
    assert found.overheads.pace == pytest.approx(TRUE.pace, rel=0.1)
    other = logged(3, 60, 0.4)
    fleet = Fleet(2, LIMITS, overheads=found.overheads, as_logged=True)
    for one in compared(other, simulate(other, fleet, planned)):
        assert abs(one.error) < 0.1, one
    plain = compared(other, simulate(other, replace(fleet, overheads=Overheads()), planned))
    assert max(abs(one.error) for one in plain) > 0.2


def test_requests_go_where_the_log_sent_them() -> None:
    log = [Arrival(0.0, 100, 4, upstream="a") for _ in range(3)] + [Arrival(0.0, 100, 4, upstream="b")]
    outcome = simulate(log, Fleet(1, LIMITS, as_logged=True), planned)
    assert outcome.balance == 3


def test_the_search_finds_the_least_and_stays_above_zero() -> None:
    def error(one: Overheads) -> float:
        return abs(one.pace - 0.8) + 100 * abs(one.step_s - 0.002) + 100 * one.row_s + 10 * abs(one.request_s + 1)

    found = least(error)
    assert found.overheads.pace == pytest.approx(0.8, abs=0.03)
    assert found.overheads.step_s == pytest.approx(0.002, abs=0.0002)
    assert (found.overheads.row_s, found.overheads.request_s) == (0, 0)


def test_a_log_without_streams_teaches_nothing() -> None:
    log = [replace(one, ttft_s=None) for one in logged(1, 40, 0.5)]
    with pytest.raises(ConfigError, match="clients that stream"):
        calibrated([log], Fleet(1, LIMITS), planned)
