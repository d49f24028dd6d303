"""Did a metric really fall? Paired comparisons of two runs over the same cases.

The difference of each case is taken first, so that hard and easy cases do not blur the comparison. Intervals come from
the bootstrap (Efron, 1979; studentized: Efron & Tibshirani, 1993, chapter 12), p-values from flipping the signs of the
differences (Fisher's randomization test), which holds whatever their distribution; several metrics are corrected by
Holm's method (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 10_000
CONFIDENCE = 0.95
POWER = 0.9  # chance to find a drop of the stated size, for `cases_needed`
EXACT_PAIRS = 12  # up to so many nonzero differences every assignment of signs is tried


@dataclass(frozen=True, slots=True)
class Change:
    """How a metric's mean changed from baseline to current. All figures are current minus baseline."""

    mean: float
    low: float  # of the two-sided interval at `CONFIDENCE`
    high: float
    p_worse: float  # chance of a fall at least this large if nothing had changed
    num_cases: int
    std: float  # of one case's difference

    @property
    def cases_needed(self) -> int | None:
        """How many cases would tell a change of this size from noise, with `POWER`. None: there is no change."""
        return cases_needed(self.std, self.mean)


def cases_needed(std: float, effect: float) -> int | None:
    """Pairs that find a fall of `effect` at a one-sided level of 1 - CONFIDENCE with `POWER`; None: no effect."""
    if not effect:
        return None
    z = NormalDist().inv_cdf(CONFIDENCE) + NormalDist().inv_cdf(POWER)
    return max(2, ceil((z * std / effect) ** 2))


def compare_pairs(baseline: Sequence[float], current: Sequence[float], *, noise: float = 0.0, seed: int = 0) -> Change:
    """Compare the scores of the same cases, in the same order.

    noise: standard deviation of one score when the same answer is judged again; what it adds to the spread of the
    differences widens the interval, so that a judge's whims are not taken for a change. Raises ValueError for lists of
    different lengths, none at all, or scores that are not finite.
    """
    before, after = np.asarray(baseline, np.float64), np.asarray(current, np.float64)
    if before.shape != after.shape or before.ndim != 1 or not len(before):
        raise ValueError(f"{len(before)} scores before and {len(after)} after cannot be paired")
    difference = after - before
    if not np.isfinite(difference).all():
        raise ValueError("a score is not a finite number")
    rng = np.random.default_rng(seed)
    mean, std = float(difference.mean()), float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    low, high = _interval(difference, rng)
    extra = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * noise * sqrt(2 / len(difference))
    low, high = mean - sqrt((mean - low) ** 2 + extra**2), mean + sqrt((high - mean) ** 2 + extra**2)
    return Change(mean, low, high, _p_worse(difference, rng), len(difference), std)


def _interval(difference: Floats, rng: np.random.Generator) -> tuple[float, float]:
    """The studentized bootstrap interval of the mean; the mean alone where all differences are the same."""
    n = len(difference)
    mean, error = difference.mean(), difference.std(ddof=1) / sqrt(n) if n > 1 else 0.0
    if error == 0:
        return float(mean), float(mean)
    sampled = difference[rng.integers(0, n, (RESAMPLES, n))]  # [RESAMPLES, n]
    errors = sampled.std(axis=1, ddof=1) / sqrt(n)
    usable = errors > error * 1e-3  # a resample of equal differences says nothing of the spread
    t = (sampled.mean(axis=1)[usable] - mean) / errors[usable]
    tail = (1 - CONFIDENCE) / 2
    upper, lower = np.quantile(t, [1 - tail, tail])
    return float(mean - upper * error), float(mean - lower * error)


def _p_worse(difference: Floats, rng: np.random.Generator) -> float:
    """One-sided: how many assignments of signs to the differences give a sum at most as large as the one seen."""
    changed = difference[difference != 0]
    if not len(changed):
        return 1.0
    seen = changed.sum()
    margin = 1e-12 * np.abs(changed).sum()
    if len(changed) <= EXACT_PAIRS:
        bits = (np.arange(1 << len(changed))[:, None] >> np.arange(len(changed))) & 1
        return float(((2 * bits - 1) @ np.abs(changed) <= seen + margin).mean())
    signs = rng.choice(np.array([-1.0, 1.0]), (RESAMPLES, len(changed)))
    return float((1 + (signs @ changed <= seen + margin).sum()) / (RESAMPLES + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being several: the chance of any false alarm stays below the level (Holm, 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))
        corrected[i] = largest
    return corrected


def mean_interval(scores: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean of scores, at `CONFIDENCE`, which stays in the scores' range.

    Raises ValueError where there are none.
    """
    if not len(scores):
        raise ValueError("no scores")
    values = np.asarray(scores, np.float64)
    means = values[np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
