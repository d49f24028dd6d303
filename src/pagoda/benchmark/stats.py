"""Percentiles, as benchmarks report them: linear between ranks, as numpy's default."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the sorted values lie. Raises IndexError when there are none."""
    place = share * (len(ordered) - 1)
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def median(values: Iterable[float]) -> float:
    return percentile(sorted(values), 0.5)


def spread(seconds: Iterable[float]) -> dict[str, float] | None:
    """Mean, p50, p90 and p99 in milliseconds; None without values."""
    ordered = sorted(seconds)
    if not ordered:
        return None
    points = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    shown = {"mean": sum(ordered) / len(ordered)} | {name: percentile(ordered, at) for name, at in points.items()}
    return {name: round(1000 * value, 3) for name, value in shown.items()}
