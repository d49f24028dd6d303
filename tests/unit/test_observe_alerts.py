"""Alerts in the process against deploy/prometheus/rules.yml, and over figures that are made up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fake_engine import FakeLoaded
from pagoda.observe.alerts import EVERY_S, LATE_SHARE, RULES, TPOT_S, TTFT_S, Alerts
from pagoda.observe.metrics import Metrics
from prometheus_files import RULES as RULES_FILE
from serving import serving

FROM_OUTSIDE = {"PagodaScrapeGone", "PagodaRestartLoop"}  # what only others can see
SECONDS = {"m": 60, "h": 3600, "s": 1}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def made() -> tuple[Metrics, Alerts, Clock]:
    clock, metrics = Clock(), Metrics("m", 4096)
    metrics.refresh = lambda: None  # type: ignore[method-assign]  # figures are set here
    metrics.machine.memory_limit.value = 100.0
    return metrics, Alerts(metrics, clock), clock


@contextmanager
def passing(alerts: Alerts, clock: Clock, seconds: float) -> Iterator[None]:
    """Looks as often as the thread does, while so many seconds go by."""
    yield
    for _ in range(round(seconds / EVERY_S)):
        clock.now += EVERY_S
        alerts.look()


def firing(alerts: Alerts) -> set[str]:
    return {alert.name for alert in alerts.now() if alert.fires}


def pending(alerts: Alerts) -> set[str]:
    return {alert.name for alert in alerts.now() if not alert.fires}


def rules_of_the_file() -> dict[str, str]:
    parts = re.split(r"^      - (?=alert: )", RULES_FILE.read_text(), flags=re.MULTILINE)[1:]
    return {match[1]: part for part in parts if (match := re.match(r"alert: (\w+)", part))}


def test_rules_are_those_of_the_file() -> None:
    there = rules_of_the_file()
    assert {rule.name for rule in RULES} == set(there) - FROM_OUTSIDE
    for rule in RULES:
        text = there[rule.name]
        lasting = re.search(r"for: (\d+)([mhs])", text)
        assert rule.lasting_s == (int(lasting[1]) * SECONDS[lasting[2]] if lasting else 0), rule.name
        assert f"severity: {rule.severity}" in text, rule.name
        limits = re.findall(r" > ([\d.]+(?: \* [\d.]+)?)", text)
        found = {float(a) * float(b or 1) for a, _, b in (limit.partition(" * ") for limit in limits)}
        assert bool(found) == (rule.name != "PagodaCacheWrongHits")  # there the operator says the limit
        assert all(limit == pytest.approx(rule.limit) for limit in found), rule.name


def test_objectives_are_those_of_the_file() -> None:
    text = RULES_FILE.read_text()
    assert set(re.findall(r'first_token_seconds_bucket{le="([\d.]+)"', text)) == {str(TTFT_S)}
    assert set(re.findall(r'token_latency_seconds_bucket{le="([\d.]+)"', text)) == {str(TPOT_S)}
    assert f"14.4 * {LATE_SHARE}" in text


def test_an_alert_fires_when_its_condition_has_lasted() -> None:
    metrics, alerts, clock = made()
    with passing(alerts, clock, 600):
        metrics.machine.memory_used.value = 80.0
        metrics.engine.kv_cache_usage_perc.value = 0.89
    assert alerts.now() == []
    with passing(alerts, clock, 285):
        metrics.machine.memory_used.value = 86.0
    assert (firing(alerts), pending(alerts)) == (set(), {"PagodaMemoryHigh"})
    with passing(alerts, clock, 45):
        pass
    assert firing(alerts) == {"PagodaMemoryHigh"}
    assert alerts.now()[0].line == "memory is 86% full (PagodaMemoryHigh, warning, for 315 s)"
    with passing(alerts, clock, 15):
        metrics.machine.memory_used.value = 84.0
    assert alerts.now() == []


def test_gpus_memory_counts_where_there_are_any() -> None:
    metrics, alerts, clock = made()
    metrics.machine.gpu_memory.values = {"0": 80.0, "1": 80.0}
    with passing(alerts, clock, 600):
        metrics.machine.gpu_memory_used.values = {"0": 79.0, "1": 70.0}
    assert firing(alerts) == {"PagodaMemoryHigh"}


def test_budgets_burn_in_two_windows() -> None:
    """14.4 times the 5 % is 72 % late, in five minutes and in an hour."""
    metrics, alerts, clock = made()
    times = metrics.engine.time_to_first_token
    for _ in range(61):
        with passing(alerts, clock, 60):
            times.observe(0.5, 100)
    for _ in range(5):
        with passing(alerts, clock, 60):
            times.observe(2.0, 100)
    assert "PagodaTTFTBurnsFast" not in firing(alerts)  # of the hour, a twelfth is late
    for _ in range(45):
        with passing(alerts, clock, 60):
            times.observe(2.0, 100)
    assert {"PagodaTTFTBurnsFast", "PagodaTTFTBurnsSlowly"} <= firing(alerts)
    for _ in range(6):
        with passing(alerts, clock, 60):
            times.observe(0.5, 100)
    assert "PagodaTTFTBurnsFast" not in firing(alerts)  # it is over: the short window says so


def test_answers_and_refusals_are_rates() -> None:
    metrics, alerts, clock = made()
    for _ in range(25):
        with passing(alerts, clock, 60):
            metrics.server.answers.add("stop", 70)
            metrics.server.answers.add("length", 24)
            metrics.server.answers.add("error", 6)
            metrics.server.http_rejected.add("budget", 12)
    assert firing(alerts) == {"PagodaErrors", "PagodaTokenBudgetExceeded", "PagodaKeyBudgetsExceeded"}
    with passing(alerts, clock, 900):
        pass
    assert firing(alerts) == set()  # nothing more happens


def test_wrong_hits_count_among_all_hits() -> None:
    metrics, alerts, clock = made()
    metrics.cache.wrong_ratio_max.value = 0.01
    with passing(alerts, clock, 1000):
        metrics.cache.wrong_ratio_low.value = 0.08
        metrics.cache.hits.add("meaning", 1)
        metrics.cache.hits.add("exact", 19)
    assert alerts.now() == []
    with passing(alerts, clock, 1000):
        metrics.cache.hits.add("meaning", 18)
    assert [alert.line for alert in alerts.now()] == [
        "at least 4% of cache hits are wrong (PagodaCacheWrongHits, critical, for 990 s)"
    ]


def test_a_growing_queue_and_an_engine_that_stands_still() -> None:
    metrics, alerts, clock = made()
    waiting = metrics.engine.num_requests_waiting
    for place in range(60):
        with passing(alerts, clock, 15):
            waiting.value = place
            metrics.own.step.observe(0.01)
    assert firing(alerts) == {"PagodaQueueGrowing"}
    with passing(alerts, clock, 400):
        pass
    assert firing(alerts) == {"PagodaEngineStalled"}
    with passing(alerts, clock, 15):
        waiting.value = 0
    assert alerts.now() == []


def test_a_queue_that_is_long_from_the_start_does_not_grow() -> None:
    metrics, alerts, clock = made()
    for _ in range(40):
        with passing(alerts, clock, 15):
            metrics.engine.num_requests_waiting.value = 50
            metrics.own.step.observe(0.01)
    assert alerts.now() == []


def test_the_page_shows_what_holds() -> None:
    with serving(FakeLoaded()) as served:
        model = served.server.service.model()
        model.metrics.engine.kv_cache_usage_perc.value = 0.95
        model.alerts.look()
        (line,) = [line for line in served.client.get("/live/state").json()["alerts"] if "KV" in line]
        assert line.startswith("95% of the KV blocks are held (PagodaKVCacheHigh, warning soon, for ")
