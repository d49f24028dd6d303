"""The alerts of `deploy/prometheus/rules.yml` in the process itself, for who looks at /live without a Prometheus.

The same figures are read as often as that reads them, and the same conditions are held against the same thresholds
(`tests/unit/test_observe_alerts.py` compares both). Not covered: what can be seen from outside alone, a server that
does not answer and one that starts again and again.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pagoda.observe.metrics import Metrics
from pagoda.observe.series import Histogram

logger = logging.getLogger("pagoda.server")

EVERY_S = 15.0  # the rules' interval
STOP_S = 1.0
MINUTE, HOUR = 60.0, 3600.0
KEPT = int(6 * HOUR / EVERY_S) + 2  # samples: the longest window
TTFT_S, TPOT_S = 1.0, 0.1  # objectives: 95 % of first and of further tokens come within
LATE_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Sample:
    """What the series said at one moment. Counts are since the start."""

    at: float
    memory_share: float
    kv_share: float
    num_running: float
    num_waiting: float
    num_steps: float
    first_tokens: tuple[float, float]  # all, and those that came too late
    further_tokens: tuple[float, float]
    answers: dict[str, float]  # by stop reason
    over_budget: float  # requests refused
    wrong_share: float  # at least, of the semantic cache's hits
    wrong_share_max: float


class Window:
    """The samples so far, latest last."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=KEPT)

    def add(self, sample: Sample) -> None:
        self._samples.append(sample)

    @property
    def now(self) -> Sample:
        return self._samples[-1]

    def then(self, seconds: float) -> Sample:
        """The last sample that is at least so old; the first of all where none is."""
        place = bisect_right(self._samples, self.now.at - seconds, key=lambda sample: sample.at)
        return self._samples[max(place - 1, 0)]

    def late_share(self, get: Callable[[Sample], tuple[float, float]], seconds: float) -> float:
        """The share of the last so many seconds' tokens that came too late."""
        (count, late), (old_count, old_late) = get(self.now), get(self.then(seconds))
        return (late - old_late) / (count - old_count) if count > old_count else 0.0

    def stop_share(self, reason: str, seconds: float = 5 * MINUTE) -> float:
        """The share of the last so many seconds' answers that ended so."""
        now, then = self.now.answers, self.then(seconds).answers
        total = sum(now.values()) - sum(then.values())
        return (now.get(reason, 0.0) - then.get(reason, 0.0)) / total if total > 0 else 0.0

    def rate(self, get: Callable[[Sample], float], seconds: float) -> float:
        """By how much a figure rose, a second."""
        then = self.then(seconds)
        span = self.now.at - then.at
        return (get(self.now) - get(then)) / span if span > 0 else 0.0

    def slope(self, get: Callable[[Sample], float], seconds: float) -> float:
        """By how much a figure rises a second, by least squares over the samples of the last so many seconds."""
        since = self.now.at - seconds
        points = [(sample.at - since, get(sample)) for sample in self._samples if sample.at >= since]
        mean_x, mean_y = (sum(column) / len(points) for column in zip(*points, strict=True))
        spread = sum((x - mean_x) ** 2 for x, _ in points)
        return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


@dataclass(frozen=True, slots=True)
class Rule:
    """An alert: `find` gives the figure that is too high, None where nothing is."""

    name: str
    severity: str
    lasting_s: float  # that it has to hold before the alert fires
    limit: float
    find: Callable[[Window, float], float | None]  # window, limit → figure
    says: Callable[[float], str]


def _above(get: Callable[[Window], float]) -> Callable[[Window, float], float | None]:
    def find(window: Window, limit: float) -> float | None:
        value = get(window)
        return value if value > limit else None

    return find


def _burns(
    get: Callable[[Sample], tuple[float, float]], short: float, long: float
) -> Callable[[Window, float], float | None]:
    def find(window: Window, limit: float) -> float | None:
        value = window.late_share(get, short)
        return value if value > limit and window.late_share(get, long) > limit else None

    return find


def _growing(window: Window, limit: float) -> float | None:
    """Longer than five minutes ago, and rising."""
    now, then = window.now, window.then(5 * MINUTE)
    if now.at - then.at < 5 * MINUTE or now.num_waiting <= then.num_waiting:
        return None
    rise = window.slope(lambda sample: sample.num_waiting, 5 * MINUTE)
    return rise if rise > limit else None


def _wrong_hits(window: Window, limit: float) -> float | None:
    now = window.now
    return now.wrong_share if now.wrong_share > now.wrong_share_max else None


def _stalled(window: Window, limit: float) -> float | None:
    now, then = window.now, window.then(2 * MINUTE)
    has_stood = now.at - then.at >= 2 * MINUTE and now.num_steps == then.num_steps
    waiting = now.num_running + now.num_waiting
    return waiting if waiting > limit and has_stood else None


def _first(sample: Sample) -> tuple[float, float]:
    return sample.first_tokens


def _further(sample: Sample) -> tuple[float, float]:
    return sample.further_tokens


def _late(what: str) -> Callable[[float], str]:
    return lambda value: f"{value:.0%} of {what}"


FIRST, FURTHER = _late("first tokens take over a second"), _late("tokens take over 100 ms")
FAST, SLOW = 14.4 * LATE_SHARE, 6 * LATE_SHARE
RULES = (
    Rule("PagodaMemoryHigh", "warning", 5 * MINUTE, 0.85, _above(lambda w: w.now.memory_share),
         lambda v: f"memory is {v:.0%} full"),
    Rule("PagodaKVCacheHigh", "warning", 5 * MINUTE, 0.9, _above(lambda w: w.now.kv_share),
         lambda v: f"{v:.0%} of the KV blocks are held"),
    Rule("PagodaQueueGrowing", "warning", 5 * MINUTE, 0.0, _growing,
         lambda v: f"the queue grows by {v:.2f} requests a second"),
    Rule("PagodaTTFTBurnsFast", "critical", 0, FAST, _burns(_first, 5 * MINUTE, HOUR), FIRST),
    Rule("PagodaTTFTBurnsSlowly", "warning", 0, SLOW, _burns(_first, 30 * MINUTE, 6 * HOUR), FIRST),
    Rule("PagodaTPOTBurnsFast", "critical", 0, FAST, _burns(_further, 5 * MINUTE, HOUR), FURTHER),
    Rule("PagodaTPOTBurnsSlowly", "warning", 0, SLOW, _burns(_further, 30 * MINUTE, 6 * HOUR), FURTHER),
    Rule("PagodaErrors", "critical", 5 * MINUTE, 0.05,
         _above(lambda w: max(w.stop_share("error"), w.stop_share("abort"))),
         lambda v: f"{v:.0%} of answers end with an error or a client that goes away"),
    Rule("PagodaTokenBudgetExceeded", "warning", 15 * MINUTE, 0.2, _above(lambda w: w.stop_share("length")),
         lambda v: f"{v:.0%} of answers are cut off by their length"),
    Rule("PagodaKeyBudgetsExceeded", "info", 5 * MINUTE, 0.1,
         _above(lambda w: w.rate(lambda sample: sample.over_budget, 5 * MINUTE)),
         lambda v: f"{v:.2f} requests a second are refused for their key's budget"),
    Rule("PagodaCacheWrongHits", "critical", 15 * MINUTE, 0.0, _wrong_hits,
         lambda v: f"at least {v:.0%} of cache hits are wrong"),
    Rule("PagodaEngineStalled", "critical", MINUTE, 0.0, _stalled,
         lambda v: f"{v:.0f} requests are under way, and no step is taken"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Alert:
    """A condition that holds now. It fires once it has held for as long as its rule says."""

    name: str
    severity: str
    fires: bool
    seconds: float  # for which it has held
    says: str

    @property
    def line(self) -> str:
        """For people: docs/runbook.md has a section of this name."""
        kind = self.severity if self.fires else f"{self.severity} soon"
        return f"{self.says} ({self.name}, {kind}, for {self.seconds:.0f} s)"


class Alerts:
    """Reads the series every 15 seconds on a thread of its own. `now` may be called from any."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._clock = clock
        self._window = Window()
        self._found: dict[str, tuple[float, float]] = {}  # by rule: since when, and the figure
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pagoda-alerts", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait a moment for what it reads. Idempotent, and also before `start`."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def look(self) -> None:
        """Read the series once, and hold all rules against them."""
        self._metrics.refresh()
        sample = read(self._metrics, self._clock())
        with self._lock:
            self._window.add(sample)
            for rule in RULES:
                value = rule.find(self._window, rule.limit)
                if value is None:
                    self._found.pop(rule.name, None)
                else:
                    self._found[rule.name] = self._found.get(rule.name, (sample.at, 0.0))[0], value

    def now(self) -> list[Alert]:
        """What holds at the last look."""
        now = self._clock()
        with self._lock:
            found = dict(self._found)
        return [
            Alert(rule.name, rule.severity, now - since >= rule.lasting_s, now - since, rule.says(value))
            for rule in RULES
            if rule.name in found
            for since, value in [found[rule.name]]
        ]

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            try:
                self.look()
            except Exception:  # a figure that cannot be read now may be read the next time
                logger.exception("the alerts' figures were not read")


def read(metrics: Metrics, at: float) -> Sample:
    """The series as they stand now."""
    engine, cache = metrics.engine, metrics.cache
    hits = dict(cache.hits.values)
    return Sample(
        at=at,
        memory_share=_memory_share(metrics),
        kv_share=engine.kv_cache_usage_perc.value,
        num_running=engine.num_requests_running.value,
        num_waiting=engine.num_requests_waiting.value,
        num_steps=sum(metrics.own.step.counts),
        first_tokens=_late_counts(engine.time_to_first_token, TTFT_S),
        further_tokens=_late_counts(engine.inter_token_latency, TPOT_S),
        answers={values[0]: count for values, count in list(metrics.server.answers.values.items())},
        over_budget=metrics.server.http_rejected.values.get(("budget",), 0.0),
        wrong_share=cache.wrong_ratio_low.value * hits.get(("meaning",), 0.0) / (sum(hits.values()) or 1.0),
        wrong_share_max=cache.wrong_ratio_max.value,
    )


def _memory_share(metrics: Metrics) -> float:
    """How full the GPUs' memory is, or where there are none, the machine's."""
    machine = metrics.machine
    if total := sum(machine.gpu_memory.values.values()):
        return sum(machine.gpu_memory_used.values.values()) / total
    return machine.memory_used.value / machine.memory_limit.value if machine.memory_limit.value else 0.0


def _late_counts(times: Histogram, limit: float) -> tuple[float, float]:
    """(all, those above `limit`, which is one of the bounds)"""
    counts = list(times.counts)
    return sum(counts), sum(counts[times.bounds.index(limit) + 1 :])
