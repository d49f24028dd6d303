"""Paired comparisons: known values, and how often they raise a false alarm or miss a true fall."""

import numpy as np
import pytest

from pagoda.evals.statistics import cases_needed, compare_pairs, holm, mean_interval


def test_the_mean_difference_and_an_interval_around_it() -> None:
    change = compare_pairs([0.9, 0.8, 0.7, 0.6], [0.8, 0.8, 0.5, 0.6])
    assert change.mean == pytest.approx(-0.075)
    assert change.low < change.mean < change.high
    assert change.num_cases == 4


def test_p_of_few_differences_is_the_share_of_sign_assignments() -> None:
    """Three falls of one size, nothing else: one of the eight assignments of signs is as low."""
    assert compare_pairs([1, 1, 1, 0.5], [0.5, 0.5, 0.5, 0.5]).p_worse == 1 / 8


def test_no_difference_is_no_evidence() -> None:
    change = compare_pairs([0.3, 0.4], [0.3, 0.4])
    assert (change.mean, change.low, change.high, change.p_worse) == (0, 0, 0, 1)
    assert change.cases_needed is None


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        change = compare_pairs([0.5] * 40, 0.5 + rng.normal(-0.05, 0.2, 40), seed=seed)
        covered += change.low <= -0.05 <= change.high
    assert covered / 200 >= 0.91  # 95 % are promised; four standard errors of 200 trials below


@pytest.mark.parametrize(("fall", "least", "most"), [(0.0, 0, 0.1), (0.10, 0.9, 1)])
def test_false_alarms_are_rare_and_true_falls_are_found(fall: float, least: float, most: float) -> None:
    """100 cases with a judge's noise of 0.15 on either side, four metrics corrected together."""
    rng = np.random.default_rng(1)
    alarms = 0
    for seed in range(40):
        p = []
        for _ in range(4):
            truth = rng.beta(4, 2, 100)
            worse = (rng.random(100) < 2 * fall) * 0.5
            before, now = (np.clip(truth + rng.normal(0, 0.15, 100), 0, 1) for _ in range(2))
            p.append(compare_pairs(before, np.clip(now - worse, 0, 1), seed=seed).p_worse)
        alarms += min(holm(p)) < 0.05
    assert least <= alarms / 40 <= most


def test_noise_of_the_judge_widens_the_interval() -> None:
    quiet = compare_pairs([0.5, 0.6, 0.7], [0.4, 0.6, 0.6])
    noisy = compare_pairs([0.5, 0.6, 0.7], [0.4, 0.6, 0.6], noise=0.3)
    assert noisy.high - noisy.low > quiet.high - quiet.low


def test_holm_multiplies_the_smallest_most() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # Holm, 1979
    assert holm([]) == []


def test_cases_needed_falls_with_the_square_of_the_effect() -> None:
    """(1.645 + 1.282)² · (0.3 / 0.1)² = 77.1"""
    assert cases_needed(0.3, 0.1) == 78
    assert cases_needed(0.3, 0.05) == pytest.approx(4 * 77.1, abs=1)


@pytest.mark.parametrize(("before", "now"), [([], []), ([1.0], [1.0, 2.0]), ([0.1], [float("nan")])])
def test_what_cannot_be_paired_is_refused(before: list[float], now: list[float]) -> None:
    with pytest.raises(ValueError, match=r"paired|finite"):
        compare_pairs(before, now)


def test_interval_of_equal_scores_is_their_value() -> None:
    assert mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_the_interval_of_a_mean_stays_in_the_range_of_the_scores() -> None:
    """29 of 30: quantiles of the binomial distribution over 30; scipy.stats.binom.ppf(0.025, 30, 29 / 30) is 27."""
    assert mean_interval([1.0] * 29 + [0.0]) == (0.9, 1.0)
