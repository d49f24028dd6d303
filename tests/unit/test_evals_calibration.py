"""Judges against labels."""

import numpy as np
import pytest

from pagoda.cli.eval_calibrate import worth_of
from pagoda.evals.calibration import Calibration, agreement, auc, cross_validated, fit
from pagoda.evals.calibration_plot import curve_svg


def judged(shift: float, scale: float) -> tuple[list[float], list[bool]]:
    """A judge whose log odds are the true ones, shifted and scaled."""
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, 4000)
    labels = rng.random(4000) < 1 / (1 + np.exp(-true))
    return (true * scale + shift).tolist(), labels.tolist()


def test_a_judge_that_says_no_to_everything_is_shifted_back() -> None:
    logits, labels = judged(shift=-6, scale=0.5)
    assert max(Calibration().probability(x) for x in logits[:1000]) < 0.5
    found = fit(logits, labels)
    assert found.slope == pytest.approx(2, rel=0.1)
    assert found.offset == pytest.approx(12, rel=0.1)
    raw = agreement([Calibration().probability(x) for x in logits], labels)
    fitted = cross_validated(logits, labels)
    assert fitted.auc == pytest.approx(raw.auc, abs=0.005)  # order is not changed
    assert raw.kappa == pytest.approx(0, abs=0.01)
    assert fitted.kappa > 0.4
    assert all(abs(p - share) < 0.06 for p, share, cases in fitted.curve if cases > 100)


def test_auc_counts_ties_half() -> None:
    assert auc(np.array([0.9, 0.5]), np.array([0.5, 0.1])) == 0.875  # (1 + 1 + 1/2 + 1) / 4


def test_separated_labels_leave_a_finite_fit() -> None:
    found = fit([-2.0, -1.0, 1.0, 2.0], [False, False, True, True])
    assert np.isfinite([found.slope, found.offset]).all()
    assert found.probability(2) > 0.7 > 0.3 > found.probability(-2)


@pytest.mark.parametrize("labels", [[True, True], [False, False]])
def test_labels_of_one_kind_are_refused(labels: list[bool]) -> None:
    with pytest.raises(ValueError, match="both kinds"):
        fit([0.1, 0.2], labels)


def test_the_picture_is_svg_without_anything_from_elsewhere() -> None:
    found = agreement([0.1, 0.9, 0.8, 0.3], [False, True, True, False])
    drawn = curve_svg(found, found)
    assert drawn.startswith("<svg")
    assert drawn.count("<circle") == 2 * len(found.curve)


@pytest.mark.parametrize(("num_labels", "says"), [(20, "20 labels are too few"), (60, "as a judge it is good")])
def test_few_labels_say_nothing_of_the_judge(num_labels: int, says: str) -> None:
    labels = [number % 2 == 0 for number in range(num_labels)]
    found = agreement([0.9 if label else 0.1 for label in labels], labels)
    assert says in worth_of(found, found)
