"""What a request costs, in its answer, its header, the log line, the series and the request log."""

from __future__ import annotations

import asyncio
import json
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fake_engine import FakeEngine, FakeLoaded
from pagoda.benchmark.load import Load, run_load
from pagoda.cli.bench_serve import _arrivals
from pagoda.cli.main import app
from pagoda.errors import ConfigError
from pagoda.observe.cost import CostSettings
from pagoda.observe.request_log import BillLine, read_lines, read_log
from pagoda.server.accounts import make_ledger
from serving import Served, events, serving, wait_for


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


def priced(log: Path | None = None, **settings: object) -> AbstractContextManager[Served]:
    """A server at 36,000 USD an hour, ten a second: costs that are easy to read."""
    loaded = FakeLoaded(engine=FakeEngine(step_s=0.002))
    return serving(loaded, cost=CostSettings(price=36000), request_log=log, **settings)


def test_cost_is_in_usage_where_it_is_asked_for(log: Path) -> None:
    with priced(log) as served:
        response = served.post("/v1/completions", prompt="abc", max_tokens=5, include_cost=True)
        cost = response.json()["usage"]["cost_usd"]
        assert cost >= 0.002 * 5 * 10
        assert float(response.headers["x-cost-usd"]) == pytest.approx(cost)
        plain = served.post("/v1/completions", prompt="abc", max_tokens=5)
        assert "cost_usd" not in plain.json()["usage"]
        assert "x-cost-usd" in plain.headers
        stream = served.post(
            "/v1/completions", prompt="abc", max_tokens=5, stream=True, include_cost=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        assert events(stream)[-1]["usage"]["cost_usd"] > 0
        wait_for(lambda: len(log.read_text().splitlines()) == 3)
        ledger = served.server.service.model().metrics.ledger
    lines = list(read_lines(log))
    (bill,) = [line for line in read_log(log) if isinstance(line, BillLine)]
    assert bill.requests_s == pytest.approx(sum(line.machine_seconds for line in lines), abs=1e-5)
    assert bill.requests_s + bill.recomputed_s + bill.idle_s == pytest.approx(bill.until - bill.since)
    assert bill.requests_s == ledger.charged_s
    assert lines[0].cost_usd == pytest.approx(cost)
    assert lines[0].machine_seconds == pytest.approx(cost / 10, abs=1e-6)
    assert [line.stream for line in lines] == [False, False, True]
    assert (lines[0].prompt_tokens, lines[0].completion_tokens, lines[0].max_tokens) == (4, 5, 5)
    assert "abc" not in log.read_text()


def test_drafts_are_counted_in_usage_and_in_the_log(log: Path) -> None:
    with serving(FakeLoaded(), request_log=log) as served:
        predicted = {"type": "content", "content": "abx"}
        usage = served.ok("/v1/completions", prompt=[97, 98, 99], max_tokens=5, prediction=predicted)["usage"]
        assert usage["completion_tokens_details"] == {
            "accepted_prediction_tokens": 2, "rejected_prediction_tokens": 1,
            "draft_tokens": 3, "accepted_draft_tokens": 2,
        }  # fmt: skip
        plain = served.ok("/v1/completions", prompt=[97, 98, 99], max_tokens=5)
        assert "completion_tokens_details" not in plain["usage"]
        wait_for(lambda: len(log.read_text().splitlines()) == 2)
    drafted = [(line.draft_tokens, line.accepted_draft_tokens) for line in read_lines(log)]
    assert drafted == [(3, 2), (0, 0)]


def test_without_a_price_nothing_is_priced(log: Path) -> None:
    with serving(FakeLoaded(), request_log=log) as served:
        response = served.post("/v1/completions", prompt="abc", max_tokens=5, include_cost=True)
        assert "cost_usd" not in response.json()["usage"]
        assert "x-cost-usd" not in response.headers
        wait_for(lambda: log.read_text())
    assert next(read_lines(log)).cost_usd is None


def test_a_full_disk_loses_lines_and_no_request() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with priced(Path("/dev/full")) as served:
        for stream in (False, True):
            assert served.post("/v1/completions", prompt="abc", max_tokens=5, stream=stream).status_code == 200


def test_a_client_that_leaves_pays_for_what_it_used(log: Path) -> None:
    with priced(log) as served:
        with served.client.stream(
            "POST", "/v1/completions", json={"prompt": "abc", "max_tokens": 400, "stream": True}
        ) as r:
            next(r.iter_lines())
        wait_for(lambda: log.read_text())
        metrics = served.server.service.model().metrics
        assert metrics.server.answers.values[("abort",)] == 1
    (line,) = read_lines(log)
    assert line.finish == "unfinished"
    assert 0 < line.completion_tokens < 400
    assert line.cost_usd is not None
    assert line.cost_usd > 0


def test_stop_reasons_are_counted_as_clients_see_them() -> None:
    with serving(FakeLoaded()) as served:
        served.ok("/v1/completions", prompt="abc", max_tokens=2)
        served.ok("/v1/completions", prompt="abc", max_tokens=9, stop="b")
        answers = served.server.service.model().metrics.server.answers
        wait_for(lambda: answers.values[("stop",)] == 1)
        assert answers.values[("length",)] == 1


def test_allowed_headers_are_counted() -> None:
    with serving(FakeLoaded(), metrics_headers=("X-Team",)) as served:
        for team in ("red", "red", "blue"):
            body = {"prompt": "abc", "max_tokens": 1}
            served.client.post("/v1/completions", json=body, headers={"x-team": team, "x-other": "?"})
        counts = served.server.service.model().metrics.server.header_requests.values
    assert counts == {("x-team", "red"): 2, ("x-team", "blue"): 1}


def test_prices_come_from_the_planners_table() -> None:
    """2.79 USD: devices.toml, a100-80gb."""
    assert make_ledger(CostSettings(price_of="a100-80gb")).usd_per_hour == 2.79
    assert make_ledger(CostSettings(price=1.0, price_of="a100-80gb")).usd_per_hour == 1.0
    assert make_ledger(CostSettings()).usd_per_hour is None
    with pytest.raises(ConfigError, match="did you mean"):
        make_ledger(CostSettings(price_of="a100-80"))


def line(arrival: float, tenant: str, cost: float | None, **facts: object) -> str:
    known = {
        "arrival": arrival, "id": "x", "model": "m", "tenant": tenant, "adapter": "", "stream": False, "n": 1,
        "max_tokens": 5, "prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 5, "finish": "stop", "ttft": 0.1,
        "seconds": 0.5, "machine_seconds": 0.25, "cost_usd": cost,
    }  # fmt: skip
    return json.dumps(known | facts)


def test_cost_report_sums_up(log: Path) -> None:
    """1790812800 is 2026-10-01 UTC."""
    day = 1790812800.0
    log.write_text(
        "\n".join([line(day - 1, "a", 9.0), line(day, "a", 0.5), line(day + 9, "b", 2.0), line(day, "a", 1.0)])
    )
    result = CliRunner().invoke(app, ["cost", "report", str(log), "--from", "2026-10-01", "--json"])
    report = json.loads(result.output)
    assert list(report["tenant"]) == ["b", "a"]
    assert report["tenant"]["a"] | {"requests": 2, "cost_usd": 1.5, "prompt_tokens": 20} == report["tenant"]["a"]
    assert report["total"]["cost_usd"] == 3.5
    shown = CliRunner().invoke(app, ["cost", "report", str(log), "--to", "2026-10-01", "--by", "day"])
    assert "2026-09-30" in shown.output
    assert "9.000000" in shown.output


def bill(since: float, until: float, requests: float, idle: float) -> str:
    again = until - since - requests - idle
    shape = {"since": since, "until": until, "requests_s": requests, "recomputed_s": again, "idle_s": idle}
    return json.dumps({"time": "", **shape, "usd_per_hour": 3600.0})


def test_cost_report_adds_up_to_the_machines_bill(log: Path) -> None:
    """1790812800 is 2026-10-01 UTC; a dollar is a second. Of the first bill, half is of the day."""
    day = 1790812800.0
    lines = [
        bill(day - 10, day + 10, 4.0, 14.0),
        line(day + 20, "a", 3.0, machine_seconds=3.0),
        bill(day + 10, day + 40, 6.0, 23.0),
    ]
    log.write_text("\n".join(lines))
    command = ["cost", "report", str(log), "--from", "2026-10-01"]
    report = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    house = report["house"]
    assert {name: house[name] for name in ("idle_s", "recomputed_s", "other_s", "seconds")} == {
        "idle_s": 30.0, "recomputed_s": 2.0, "other_s": 5.0, "seconds": 40.0,
    }  # fmt: skip
    parts = house["idle_usd"] + house["recomputed_usd"] + house["other_usd"] + report["total"]["cost_usd"]
    assert parts == pytest.approx(house["bill_usd"]) == pytest.approx(40.0)
    shown = CliRunner().invoke(app, command).output
    assert "idle" in shown
    assert "40.000000" in shown
    log.write_text(lines[1])
    assert "idle" not in CliRunner().invoke(app, command).output  # no bill is there


@pytest.mark.parametrize("text", ['{"idle_s": 1}', '{"arrival": 1}', "no json", "[1]"])
def test_a_damaged_log_is_named(log: Path, text: str) -> None:
    log.write_text(line(1.0, "a", None) + "\n" + text)
    with pytest.raises(ConfigError, match="line 2"):
        list(read_lines(log))


def test_a_log_is_replayed_at_its_moments(log: Path) -> None:
    log.write_text("\n".join([line(100.0, "a", None), line(100.4, "a", None, prompt_tokens=3, completion_tokens=7)]))
    arrivals = _arrivals(log, speed=2.0)
    assert [(round(a.after_s, 6), a.prompt, a.output) for a in arrivals] == [(0.0, 10, 5), (0.2, 3, 7)]
    with serving(FakeLoaded()) as served:
        load = Load(served.url, 1, 1, 1, 2, "fake", 258, replay=arrivals)
        exchanges, seconds = asyncio.run(run_load(load))
    assert seconds >= 0.2
    assert [len(json.loads(load.body(i))["prompt"]) for i in range(2)] == [10, 3]
    assert [exchange.error for exchange in exchanges] == [None, None]
