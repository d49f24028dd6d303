"""Statistics against closed forms, and the promise: the stated share of wrong hits is kept, on whole streams."""

from __future__ import annotations

import numpy as np
import pytest

from pagoda.cache.evidence import (
    EDGES,
    Evidence,
    Region,
    beta_quantile,
    clopper_pearson,
    incomplete_beta,
    poisson_quantile,
    region_index,
    regions_of,
)

GOOD = [Region(300, 300 if edge < 1 else 3) for edge in (-9.0, *EDGES)]


@pytest.mark.parametrize(  # closed forms
    ("a", "b", "x", "expected"),
    [(1, 1, 0.3, 0.3), (2, 3, 0.5, 0.6875), (1, 149, 0.02, 1 - 0.98**149), (2, 1, 0.7, 0.49), (20, 20, 0.5, 0.5)],
)
def test_incomplete_beta(a: float, b: float, x: float, expected: float) -> None:
    assert incomplete_beta(a, b, x) == pytest.approx(expected, abs=1e-4)
    assert beta_quantile(incomplete_beta(a, b, x), a, b) == pytest.approx(x, abs=1e-6)


def test_clopper_pearson_is_the_textbooks() -> None:
    """None of 10: the rule of three's exact form, 1 - 0.025^(1/10); 8 of 10 as R's binom.test says."""
    assert clopper_pearson(0, 10, 0.95) == pytest.approx((0, 1 - 0.025**0.1), abs=1e-6)
    assert clopper_pearson(8, 10, 0.95) == pytest.approx((0.44390, 0.97479), abs=1e-4)
    assert clopper_pearson(0, 0, 0.95) == (0, 1)


@pytest.mark.parametrize(("mean", "p", "expected"), [(0.0, 0.99, 0), (0.05, 0.95, 0), (1.0, 0.95, 3), (10, 0.99, 18)])
def test_poisson_quantile(mean: float, p: float, expected: int) -> None:
    assert poisson_quantile(mean, p) == expected


def test_without_evidence_nothing_is_a_hit_by_meaning() -> None:
    evidence = Evidence([Region() for _ in (-9.0, *EDGES)], 0.02)
    for _ in range(5000):
        evidence.served()
    assert evidence.decide(9.0).why == "not alike enough"
    assert "until there is more evidence" in evidence.state().says


def test_few_hits_are_stricter_than_many() -> None:
    evidence = Evidence(GOOD, 0.02)
    assert evidence.decide(9.0).why == "too little evidence"
    assert "0 so far" in evidence.state().says
    for _ in range(2000):
        evidence.served()
    assert evidence.decide(9.0).is_hit
    assert not evidence.decide(-9.0).is_hit
    assert evidence.state().says.startswith("hits by meaning are given")


def test_wrong_hits_close_their_region() -> None:
    evidence = Evidence(GOOD, 0.02)
    for _ in range(5000):
        evidence.served()
    for _ in range(600):
        evidence.learn(9.0, same=True)
    for _ in range(60):
        evidence.learn(2.2, same=False, hit=True)
    assert not evidence.decide(2.2).is_hit
    assert evidence.decide(9.0).is_hit
    state = evidence.state()
    assert (state.num_checked, state.num_checked_wrong) == (60, 60)
    assert state.interval[0] > 0.9


def test_much_evidence_opens_by_itself() -> None:
    """Where a region is known to be far better than asked, no repeats of other kinds are needed."""
    evidence = Evidence([Region(300, 300 if edge < 3 else 1) for edge in (-9.0, *EDGES)], 0.1)
    assert evidence.decide(9.0).is_hit
    assert not evidence.decide(2.0).is_hit


def test_regions_hold_all_pairs() -> None:
    regions = regions_of([-9, 0.0, 9, 9], [False, False, True, False])
    assert sum(region.num_pairs for region in regions) == 4
    assert regions[-1] == Region(2, 1)
    assert region_index(EDGES[0]) == 1


def stream(max_wrong: float, seed: int, *, repeats: int, alike: int, honest: bool) -> tuple[int, int]:
    """(hits, wrong ones) of a stream: repeats of the same words, and pairs whose truth the score tells in part.

    honest: the labelled pairs were like those of the stream; otherwise they promised a tenth of the wrong ones.
    """
    rng = np.random.default_rng(seed)

    def pairs(count: int) -> tuple[list[float], list[bool]]:
        odds = rng.normal(0.5, 1.5, count)
        return odds.tolist(), (rng.random(count) < 1 / (1 + np.exp(-1.2 * odds))).tolist()

    prior = regions_of(*pairs(8000))
    if not honest:
        prior = [Region(region.num_pairs, region.num_wrong / 10) for region in prior]
    evidence, hits, wrong = Evidence(prior, max_wrong), 0, 0
    steps = [*([None] * repeats), *zip(*pairs(alike), strict=True)]
    for place in rng.permutation(len(steps)):
        step = steps[place]
        if step is None:
            evidence.served()
            hits += 1
            continue
        odds, same = step
        decision = evidence.decide(odds)
        if decision.is_hit:
            evidence.served(odds)
            hits, wrong = hits + 1, wrong + (not same)
            if rng.random() < 0.05:
                evidence.learn(odds, same, hit=True)
        else:
            evidence.learn(odds, same)
    return hits, wrong


@pytest.mark.parametrize("max_wrong", [0.01, 0.02, 0.05, 0.1])
@pytest.mark.parametrize(("repeats", "alike"), [(1500, 1000), (0, 2500)])
def test_the_stated_share_is_kept(max_wrong: float, repeats: int, alike: int) -> None:
    """Twenty streams; in at most one is the share of wrong hits above what was stated."""
    results = [stream(max_wrong, seed, repeats=repeats, alike=alike, honest=True) for seed in range(20)]
    assert sum(wrong > max_wrong * hits for hits, wrong in results) <= 1
    if repeats and max_wrong >= 0.02:
        assert np.mean([hits for hits, _ in results]) > repeats + 20  # it is not kept by giving none


def test_labels_that_promise_too_much_are_outvoted() -> None:
    results = [stream(0.05, seed, repeats=1500, alike=2500, honest=False) for seed in range(10)]
    assert np.mean([wrong / hits for hits, wrong in results]) < 0.05
