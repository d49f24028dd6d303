"""How many hits may be wrong: the operator states `max_wrong`, and evidence decides what it allows.

Scores of the verifier are cut into regions. For each region there are counts of pairs whose truth is known: from
people's labels when the verifier was trained, and from here (fresh answers compared with kept ones, hits that a person
called wrong). Intervals are those of Clopper and Pearson (1934). A candidate is a hit when either holds:

1. Of its region and all above it together, the upper end of the interval of the share of wrong pairs is well below
   `max_wrong`, by MARGIN, since few hits scatter around their rate.
2. Of its region, the upper end is at most REGION_FACTOR times `max_wrong`, and REGION_LIMIT, so that no region is bad
   and hides behind the others; and the wrong hits to be expected of all that were given, this one included, are so few
   that with a confidence of CONFIDENCE no more than `max_wrong` of all hits are wrong. Repeats of the same normal form
   are hits that are right.

People's labels may be of another kind of questions than those that come here. So what is seen here also shifts the
log odds of being wrong in all regions, by one number that is fitted to it, where it is worse than the labels promised:
misses with a candidate tell that for nothing, since they are answered afresh.

So a cache that has given few hits is stricter than one that has given many, and `state` says so.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

REGION_FACTOR, REGION_LIMIT = 7.0, 0.25
MARGIN = 0.5
CONFIDENCE = 0.99  # of the wrong rate of all hits
REGION_CONFIDENCE = 0.95
PRIOR_WEIGHT = 300.0  # at most so many labelled pairs of a region count for its interval
MEAN_WEIGHT = 30.0  # and so many for what is expected of it; what is seen here outvotes them
FIT_EVERY = 16  # outcomes, after which the shift is fitted anew
FIT_WEIGHT = 20.0  # pairs as the labels promised, that the fit is held back by
EDGES = (-2.0, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5)  # log odds between regions


@dataclass(frozen=True, slots=True)
class Region:
    """Pairs whose scores lie between two edges. Counts may be fractions: old evidence weighs less."""

    num_pairs: float = 0.0
    num_wrong: float = 0.0

    @property
    def share(self) -> float:
        """The share of wrong pairs, never quite 0 or 1."""
        return (self.num_wrong + 0.5) / (self.num_pairs + 1)


def regions_of(log_odds: Sequence[float], same: Sequence[bool]) -> list[Region]:
    """The regions' counts of pairs with known truth."""
    pairs, wrong = [0.0] * (len(EDGES) + 1), [0.0] * (len(EDGES) + 1)
    for score, is_same in zip(log_odds, same, strict=True):
        place = region_index(score)
        pairs[place] += 1
        wrong[place] += not is_same
    return [Region(n, w) for n, w in zip(pairs, wrong, strict=True)]


def region_index(log_odds: float) -> int:
    return bisect_right(EDGES, log_odds)


@dataclass(slots=True)
class Decision:
    """Whether a candidate is a hit, and why not."""

    is_hit: bool
    why: str


@dataclass(slots=True)
class State:
    """What the evidence allows at present, for people and metrics."""

    max_wrong: float
    num_hits: int
    expected_wrong: float
    num_checked: int  # hits by meaning whose truth is known
    num_checked_wrong: int
    interval: tuple[float, float]  # of the share of wrong ones among hits by meaning, 95 %
    min_log_odds: float | None  # the lowest region that is open; None: none is
    says: str


class Evidence:
    """Counts of what is known, and the decisions that follow. Any thread may call."""

    def __init__(self, prior: Sequence[Region], max_wrong: float) -> None:
        """`prior`: of each region, pairs that people have labelled."""
        self.max_wrong = max_wrong
        self._labelled = [_shrunk(region) for region in prior]
        self._prior = list(self._labelled)  # shifted
        self._seen = [Region() for _ in prior]
        self._hits = [0] * len(self._prior)  # by meaning, given in each region
        self._known: dict[int, tuple[bool, float]] = {}  # of regions, until something is learned
        self._certain: dict[int, bool] = {}
        self._was_certain = [False] * len(self._prior)
        self._num_learned = 0
        self._lock = threading.Lock()
        self.num_hits = 0
        self.num_checked = 0
        self.num_checked_wrong = 0

    @property
    def expected_wrong(self) -> float:
        """Wrong hits to be expected among those that were given, by what is known now."""
        return sum(count * self._region(place)[1] for place, count in enumerate(self._hits) if count)

    def decide(self, log_odds: float) -> Decision:
        """Whether a candidate with this score is a hit. Changes no counts: `served` does."""
        with self._lock:
            place = region_index(log_odds)
            is_good, mean = self._region(place)
            if self._is_certain(place):
                return Decision(True, "meaning")
            if not is_good:
                return Decision(False, "not alike enough")
            allowed = math.floor(self.max_wrong * (self.num_hits + 1))
            if poisson_quantile(self.expected_wrong + mean, CONFIDENCE) > allowed:
                return Decision(False, "too little evidence")
            return Decision(True, "meaning")

    def served(self, log_odds: float | None = None) -> None:
        """A hit was given, by meaning with this score; None: a repeat of the same normal form."""
        with self._lock:
            self.num_hits += 1
            if log_odds is not None:
                self._hits[region_index(log_odds)] += 1

    def learn(self, log_odds: float, same: bool, *, hit: bool = False) -> None:
        """The truth of a pair has been found out; `hit`: it had been given as one."""
        with self._lock:
            place = region_index(log_odds)
            seen = self._seen[place]
            self._seen[place] = Region(seen.num_pairs + 1, seen.num_wrong + (not same))
            self._known.pop(place, None)
            self._certain.clear()
            self._num_learned += 1
            if self._num_learned % FIT_EVERY == 0:
                self._refit()
            if hit:
                self.num_checked += 1
                self.num_checked_wrong += not same

    def to_json(self) -> dict[str, Any]:
        """What was found out here, for `restore`."""
        with self._lock:
            return {
                "edges": list(EDGES),
                "seen": [[region.num_pairs, region.num_wrong] for region in self._seen],
                "hits": list(self._hits),
                "num_hits": self.num_hits,
                "num_checked": self.num_checked,
                "num_checked_wrong": self.num_checked_wrong,
            }

    def restore(self, shape: Any) -> None:
        """Go on from what was found out before. Raises ValueError for anything else, and then changes nothing."""
        try:
            if shape["edges"] != list(EDGES) or not len(shape["seen"]) == len(shape["hits"]) == len(self._seen):
                raise ValueError("its regions are others")
            seen = [Region(float(pairs), float(wrong)) for pairs, wrong in shape["seen"]]
            hits = [int(count) for count in shape["hits"]]
            counts = tuple(int(shape[name]) for name in ("num_hits", "num_checked", "num_checked_wrong"))
        except (KeyError, TypeError) as error:
            raise ValueError(f"it is no evidence: {error!r}") from None
        if min(*hits, *counts, *(min(r.num_wrong, r.num_pairs - r.num_wrong) for r in seen), 0) < 0:
            raise ValueError("it has negative counts")
        with self._lock:
            self._seen, self._hits = seen, hits
            self.num_hits, self.num_checked, self.num_checked_wrong = counts
            self._refit()

    def state(self) -> State:
        with self._lock:
            good = [place for place in range(len(self._prior)) if self._region(place)[0]]
            floor = None if not good else EDGES[good[0] - 1] if good[0] else -math.inf
            certain = any(self._is_certain(place) for place in good)
            interval = clopper_pearson(self.num_checked_wrong, self.num_checked, 0.95)
            hits, expected, checked = self.num_hits, self.expected_wrong, self.num_checked
            wrong = self.num_checked_wrong
        room = poisson_quantile(expected, CONFIDENCE) < math.floor(self.max_wrong * (hits + 1))
        if floor is None:
            says = "no hits by meaning until there is more evidence: no region of scores is known to be good enough"
        elif not certain and not room:
            says = f"no hits by meaning until there are more hits that are surely right: {hits} so far"
        else:
            says = "hits by meaning are given where their region of scores is known to be good"
        return State(self.max_wrong, hits, expected, checked, wrong, interval, floor, says)

    def _refit(self) -> None:
        """Shift what labels promised to what was seen."""
        shift = fit_shift(self._labelled, self._seen)
        self._prior = [_shifted(region, shift) for region in self._labelled]
        self._known.clear()
        self._certain.clear()

    def _region(self, place: int) -> tuple[bool, float]:
        """(whether hits of a region may be given, the expected share of wrong ones among them)"""
        if place not in self._known:
            prior, seen = self._prior[place], self._seen[place]
            wrong, pairs = prior.num_wrong + seen.num_wrong, prior.num_pairs + seen.num_pairs
            is_good = is_below(min(REGION_FACTOR * self.max_wrong, REGION_LIMIT), wrong, pairs)
            weight = min(MEAN_WEIGHT, prior.num_pairs)
            mean = (weight * prior.share + seen.num_wrong) / (weight + seen.num_pairs) if pairs else 1.0
            self._known[place] = is_good, mean
        return self._known[place]

    def _is_certain(self, place: int) -> bool:
        """Whether this region and all above it are together good enough by themselves. What was stays so for longer."""
        if place not in self._certain:
            regions = [*self._prior[place:], *self._seen[place:]]
            wrong, pairs = sum(region.num_wrong for region in regions), sum(region.num_pairs for region in regions)
            margin = 1.0 if self._was_certain[place] else MARGIN
            self._certain[place] = self._region(place)[0] and is_below(margin * self.max_wrong, wrong, pairs)
            self._was_certain[place] = self._certain[place]
        return self._certain[place]


def is_below(limit: float, wrong: float, pairs: float) -> bool:
    """Whether the upper end of the interval of a share is at most `limit`."""
    return wrong < pairs and incomplete_beta(wrong + 1, pairs - wrong, limit) >= REGION_CONFIDENCE


def _shrunk(region: Region) -> Region:
    scale = min(1.0, PRIOR_WEIGHT / region.num_pairs) if region.num_pairs else 1.0
    return Region(region.num_pairs * scale, region.num_wrong * scale)


def _shifted(region: Region, shift: float) -> Region:
    """The region with its log odds of being wrong raised by `shift`."""
    if not shift or not region.num_pairs:
        return region
    odds = region.share / (1 - region.share) * math.exp(shift)
    return Region(region.num_pairs, region.num_pairs * odds / (1 + odds))


def fit_shift(labelled: Sequence[Region], seen: Sequence[Region]) -> float:
    """By how much the log odds of being wrong are higher in what was seen than labels promised; 0: they are not.

    As many wrong pairs are then expected as were seen. By bisection, to 0.01.
    """
    low, high = 0.0, 6.0
    while high - low > 0.01:
        middle = (low + high) / 2
        excess = 0.0
        for promised, found in zip(labelled, seen, strict=True):
            share = _shifted(promised, middle).share
            excess += found.num_wrong - found.num_pairs * share
        held_back = FIT_WEIGHT * (_shifted(Region(1, 0.1), middle).share - 0.1)
        low, high = (middle, high) if excess > held_back else (low, middle)
    return low if low > 0.02 else 0.0


def clopper_pearson(wrong: float, pairs: float, confidence: float) -> tuple[float, float]:
    """The two-sided interval of a share; (0, 1) where nothing is known."""
    if pairs <= 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if wrong <= 0 else beta_quantile(tail, wrong, pairs - wrong + 1)
    high = 1.0 if wrong >= pairs else beta_quantile(1 - tail, wrong + 1, pairs - wrong)
    return low, high


def beta_quantile(p: float, a: float, b: float) -> float:
    """x at which the regularized incomplete beta function is p, by bisection to 1e-9."""
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if incomplete_beta(a, b, middle) < p else (low, middle)
    return (low + high) / 2


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function I_x(a, b), by Lentz's continued fraction (DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    fraction = d
    for m in range(1, 300):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + numerator * d
            d = 1 / (d if abs(d) > tiny else tiny)
            c = 1 + numerator / c
            c = c if abs(c) > tiny else tiny
            fraction *= d * c
        if abs(d * c - 1) < 1e-12:
            break
    return front * fraction


def poisson_quantile(mean: float, p: float) -> int:
    """The least count that is not exceeded with probability p."""
    term = total = math.exp(-mean)
    count = 0
    while total < p and count < 100_000:
        count += 1
        term *= mean / count
        total += term
    return count
