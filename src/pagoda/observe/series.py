"""Counters, gauges and histograms that cost a few hundred nanoseconds to write.

One thread writes (the engine's), any thread reads. prometheus_client's own types take a lock and walk their buckets
for every observation; at 64 streams that is 64 walks a step. Here a step's observations go in together, and the
text is made when someone scrapes.

A series says its name, its unit, what it means and its labels. A label has a bounded number of values: what comes after
them is counted under `other`, so that neither memory nor the text grows with the number of clients.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

Labels = dict[str, str]
Kind = Literal["counter", "gauge", "histogram"]

OTHER = "other"
MAX_VALUES = 100  # distinct label values of one series, where it does not say otherwise


class Series:
    """What all kinds have in common. `name` is without prefix, and without the `_total` of counters."""

    kind: Kind

    def __init__(self, name: str, help: str, unit: str = "", labels: tuple[str, ...] = ()) -> None:
        self.name, self.help, self.unit, self.labels = name, help, unit, labels

    def collect(self, name: str, labels: Labels) -> Iterator[Metric]:
        """As prometheus_client takes it, under `name` and with `labels` before its own."""
        raise NotImplementedError


class Counter(Series):
    """Only ever rises. Named without `_total`, which the exposition adds."""

    kind = "counter"

    def __init__(self, name: str, help: str, unit: str = "") -> None:
        super().__init__(name, help, unit)
        self.value = 0.0

    def collect(self, name: str, labels: Labels) -> Iterator[Metric]:
        family = CounterMetricFamily(name, self.help, labels=list(labels))
        family.add_metric(list(labels.values()), self.value)
        yield family


class LabelledCounter(Series):
    """A counter for each combination of values of its labels, of which there are at most `limit` and `other`."""

    kind = "counter"

    def __init__(
        self,
        name: str,
        help: str,
        labels: str | tuple[str, ...],
        values: Iterable[str] = (),
        *,
        unit: str = "",
        limit: int = MAX_VALUES,
    ) -> None:
        super().__init__(name, help, unit, (labels,) if isinstance(labels, str) else labels)
        self.values: dict[tuple[str, ...], float] = {(value,): 0.0 for value in values}
        self._limit = limit
        self._other = (OTHER,) * len(self.labels)

    def add(self, value: str | tuple[str, ...], amount: float = 1.0) -> None:
        key = (value,) if isinstance(value, str) else value
        if key not in self.values and len(self.values) >= self._limit:
            key = self._other
        self.values[key] = self.values.get(key, 0.0) + amount

    def collect(self, name: str, labels: Labels) -> Iterator[Metric]:
        family = CounterMetricFamily(name, self.help, labels=[*labels, *self.labels])
        for values, total in list(self.values.items()):
            family.add_metric([*labels.values(), *values], total)
        yield family


class Gauge(Series):
    """Goes up and down."""

    kind = "gauge"

    def __init__(self, name: str, help: str, unit: str = "") -> None:
        super().__init__(name, help, unit)
        self.value = 0.0

    def collect(self, name: str, labels: Labels) -> Iterator[Metric]:
        family = GaugeMetricFamily(name, self.help, labels=list(labels))
        family.add_metric(list(labels.values()), self.value)
        yield family


class LabelledGauge(Series):
    """A gauge for each value of one more label. Whoever sets it keeps the values few."""

    kind = "gauge"

    def __init__(self, name: str, help: str, label: str, unit: str = "") -> None:
        super().__init__(name, help, unit, (label,))
        self.values: dict[str, float] = {}

    def collect(self, name: str, labels: Labels) -> Iterator[Metric]:
        family = GaugeMetricFamily(name, self.help, labels=[*labels, *self.labels])
        for value, amount in list(self.values.items()):
            family.add_metric([*labels.values(), value], amount)
        yield family


class Info(Series):
    """Facts as labels of a gauge that is always 1."""

    kind = "gauge"

    def __init__(self, name: str, help: str, facts: Labels) -> None:
        super().__init__(name, help, "", tuple(facts))
        self.facts = facts

    def collect(self, name: str, labels: Labels) -> Iterator[Metric]:
        together = labels | self.facts
        family = GaugeMetricFamily(name, self.help, labels=list(together))
        family.add_metric(list(together.values()), 1.0)
        yield family


class Histogram(Series):
    """Counts of observations up to each bound, and their sum."""

    kind = "histogram"

    def __init__(self, name: str, help: str, bounds: Sequence[float], unit: str = "") -> None:
        super().__init__(name, help, unit)
        self.bounds = [float(bound) for bound in bounds]
        self.counts = [0] * (len(bounds) + 1)  # the last: above every bound
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def observe_all(self, values: Iterable[float]) -> None:
        bounds, counts, total = self.bounds, self.counts, 0.0
        for value in values:
            counts[bisect_left(bounds, value)] += 1
            total += value
        self.sum += total

    def collect(self, name: str, labels: Labels) -> Iterator[Metric]:
        family = HistogramMetricFamily(name, self.help, labels=list(labels))
        names = [*map(str, self.bounds), "+Inf"]
        buckets = list(zip(names, accumulate(self.counts), strict=True))
        family.add_metric(list(labels.values()), buckets, self.sum)
        yield family
