"""A simulated fleet: costs here are made up, so that every figure can be worked out by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pagoda.errors import ConfigError
from pagoda.observe.request_log import RequestLine
from pagoda.plan.cost.work import StepShape
from pagoda.plan.fleet.questions import Objectives, answer, compared
from pagoda.plan.fleet.replica import SERVER_S, Limits
from pagoda.plan.fleet.simulate import Fleet, percentiles, simulate
from pagoda.plan.fleet.traffic import PIECE_TOKENS, Arrival, multiplied, read_traffic

LIMITS = Limits(batch_tokens=512, num_seqs=64, kv_tokens=100_000)


def step_seconds(step: StepShape) -> float:
    """10 ms a step, and 1 ms a token of a prompt."""
    return 0.01 + 0.001 * sum(chunk.count * chunk.queries for chunk in step.chunks if chunk.queries > 1)


def pieces(seed: int, num_tokens: int) -> tuple[int, ...]:
    return tuple(range(seed * 1000, seed * 1000 + num_tokens // PIECE_TOKENS))


def test_one_request_alone() -> None:
    """Two steps of 512 and 88 tokens, and nine of one."""
    outcome = simulate([Arrival(0, 600, 10)], Fleet(1, LIMITS), step_seconds)
    assert outcome.ttft == pytest.approx((SERVER_S + 0.62,) * 2)
    assert outcome.tpot == pytest.approx((0.01,) * 2)
    assert (outcome.num_ended, outcome.prefix_hits) == (1, 0)


def test_prompts_share_steps_with_answers() -> None:
    """The first answer waits while the second prompt is computed: 0.01 + 0.001 · 200 for one token."""
    outcome = simulate([Arrival(0, 100, 3), Arrival(0.05, 200, 2)], Fleet(1, LIMITS), step_seconds)
    assert max(outcome.tpot) == pytest.approx((0.21 + 0.01) / 2)


def test_seats_and_memory_bound_what_runs() -> None:
    traffic = [Arrival(0, 100, 10), Arrival(0, 100, 10)]
    wide = simulate(traffic, Fleet(1, LIMITS), step_seconds)
    for limits in (Limits(512, 1, 100_000), Limits(512, 64, 200)):
        narrow = simulate(traffic, Fleet(1, limits), step_seconds)
        assert narrow.ttft[1] > wide.ttft[1] + 0.08


def test_a_prefix_that_was_read_is_not_computed_again() -> None:
    prefix = pieces(1, 640)
    outcome = simulate([Arrival(0, 640, 1, prefix), Arrival(5, 640, 1, prefix)], Fleet(1, LIMITS), step_seconds)
    assert outcome.prefix_hits == pytest.approx(639 / 1280)  # the last token is computed for its logits
    small = Limits(512, 64, 640)
    other = [Arrival(0, 640, 1, prefix), Arrival(5, 640, 1, pieces(2, 640)), Arrival(10, 640, 1, prefix)]
    assert simulate(other, Fleet(1, small), step_seconds).prefix_hits == 0


def conversations(turns: int = 5) -> list[Arrival]:
    return [Arrival(turn * 8 + number, 1600, 8, pieces(number, 1536)) for turn in range(turns) for number in range(8)]


def test_affinity_finds_more_prefixes_than_chance() -> None:
    limits = Limits(512, 64, 5 * 1600)
    found = {
        routing: simulate(conversations(), Fleet(2, limits, routing), step_seconds)
        for routing in ("affinity", "random")
    }  # type: ignore[arg-type]
    assert found["affinity"].prefix_hits == pytest.approx(0.8 * 1536 / 1600, rel=0.01)
    assert found["affinity"].prefix_hits > 1.5 * found["random"].prefix_hits
    assert found["affinity"].balance == 1


def test_a_replica_that_dies_takes_what_had_begun_with_it() -> None:
    traffic = [Arrival(0.01 * i, 64, 50) for i in range(40)]
    whole = simulate(traffic, Fleet(2, LIMITS, "load"), step_seconds)
    broken = simulate(traffic, Fleet(2, LIMITS, "load", fails_at=0.3), step_seconds)
    assert whole.num_broken == 0
    assert broken.num_broken > 0
    assert broken.num_ended + broken.num_broken == 40
    assert broken.ttft[1] > whole.ttft[1]


def test_prefill_apart_keeps_prompts_out_of_answers() -> None:
    traffic = [Arrival(0.3 * i, 500, 50) for i in range(40)]
    together = simulate(traffic, Fleet(2, LIMITS, "load"), step_seconds)
    apart = simulate(traffic, Fleet(2, LIMITS, "load", prefill=1, transfer_s=1e-6), step_seconds)
    assert apart.num_ended == 40
    assert apart.tpot[1] < 0.6 * together.tpot[1]
    assert apart.ttft[1] > together.ttft[0]


def test_answers_name_the_fleet_that_holds_the_objectives() -> None:
    traffic = [Arrival(0.1 * i, 500, 4) for i in range(24)]
    report = answer(traffic, Fleet(1, LIMITS), step_seconds, Objectives(1.2, None), transfer_s=1e-6, logged_by=None)
    assert report.needed is not None
    assert report.needed > 1
    assert report.sizes[-1][1].ttft[1] <= 1.2 < report.sizes[-2][1].ttft[1]
    assert report.at == max(report.needed, 2)
    assert report.failure is not None
    assert json.dumps(report.to_json())
    assert [times for times, _, _ in report.apart] == [1, 2, 4]


def test_the_log_stands_beside_its_simulation() -> None:
    traffic = [Arrival(0, 600, 10, ttft_s=0.5, tpot_s=0.01)]
    outcome = simulate(traffic, Fleet(1, LIMITS), step_seconds)
    errors = {one.figure: one.error for one in compared(traffic, outcome)}
    assert errors["TTFT p50"] == pytest.approx((SERVER_S + 0.62) / 0.5 - 1)
    assert errors["TPOT p95"] == pytest.approx(0)


def test_percentiles_are_values_that_occur() -> None:
    assert percentiles(range(1, 101)) == (51, 96)
    assert percentiles([]) == (0, 0)


def test_more_traffic_shares_no_prefixes() -> None:
    traffic = [Arrival(0, 64, 1, (1,)), Arrival(10, 64, 1, (1,))]
    more = multiplied(traffic, 3)
    assert len(more) == 6
    assert len({one.prefix for one in more}) == 3
    assert [one.at for one in more] == sorted(one.at for one in more)


LINE = RequestLine(
    arrival=100.0, id="x", model="m", tenant="", adapter="", stream=True, n=1, max_tokens=None, prompt_tokens=10,
    cached_tokens=0, completion_tokens=5, finish="stop", ttft=0.2, seconds=1.0, machine_seconds=0.0, cost_usd=None,
)  # fmt: skip


def line(**changes: Any) -> str:
    return json.dumps(asdict(LINE) | changes)


def test_a_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    hit = line(prompt_tokens=0, completion_tokens=0)
    of_gateway = line(arrival=101.5, prefix=[1, 2], stream=False, upstream="u")
    log.write_text("\n".join([of_gateway, hit, line(), ""]))
    first, second = read_traffic(log)
    assert first == Arrival(0, 10, 5, (), 0.2, pytest.approx(0.2))
    assert second == Arrival(1.5, 10, 5, (1, 2), upstream="u")
    assert (first.piece_tokens, second.piece_tokens) == (64, 4)


@pytest.mark.parametrize("text", ["", "{}", "no json", line(prompt_tokens=0)])
def test_what_is_no_log_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "log").write_text(text)
    with pytest.raises(ConfigError, match="--request-log"):
        read_traffic(tmp_path / "log")
