"""Counters, gauges and histograms that cost a few hundred nanoseconds to write.

One thread writes (the engine's), any thread reads. prometheus_client's own types take a lock and walk their buckets
for every observation; at 64 streams that is 64 walks a step. Here a step's observations go in together, and the
text is made when someone scrapes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

Labels = dict[str, str]


class Counter:
    """Only ever rises. Named without `_total`, which the exposition adds."""

    def __init__(self, name: str, help: str) -> None:
        self.name, self.help, self.value = name, help, 0.0

    def collect(self, name: str, labels: Labels) -> Iterator[Metric]:
        family = CounterMetricFamily(name, self.help, labels=list(labels))
        family.add_metric(list(labels.values()), self.value)
        yield family


class LabelledCounter:
    """A counter for each value of one more label."""

    def __init__(self, name: str, help: str, label: str, values: Iterable[str] = ()) -> None:
        self.name, self.help, self.label = name, help, label
        self.values: dict[str, float] = dict.fromkeys(values, 0.0)

    def add(self, value: str, amount: float = 1.0) -> None:
        self.values[value] = self.values.get(value, 0.0) + amount

    def collect(self, name: str, labels: Labels) -> Iterator[Metric]:
        family = CounterMetricFamily(name, self.help, labels=[*labels, self.label])
        for value, total in list(self.values.items()):
            family.add_metric([*labels.values(), value], total)
        yield family


class Gauge:
    """Goes up and down."""

    def __init__(self, name: str, help: str) -> None:
        self.name, self.help, self.value = name, help, 0.0

    def collect(self, name: str, labels: Labels) -> Iterator[Metric]:
        family = GaugeMetricFamily(name, self.help, labels=list(labels))
        family.add_metric(list(labels.values()), self.value)
        yield family


class Info:
    """Facts as labels of a gauge that is always 1."""

    def __init__(self, name: str, help: str, facts: Labels) -> None:
        self.name, self.help, self.facts = name, help, facts

    def collect(self, name: str, labels: Labels) -> Iterator[Metric]:
        together = labels | self.facts
        family = GaugeMetricFamily(name, self.help, labels=list(together))
        family.add_metric(list(together.values()), 1.0)
        yield family


class Histogram:
    """Counts of observations up to each bound, and their sum."""

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        self.name, self.help = name, help
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


Series = Counter | LabelledCounter | Gauge | Info | Histogram
