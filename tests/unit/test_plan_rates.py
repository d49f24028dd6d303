"""A step predicted from measured rates is the sum of its parts, interpolated between what was measured."""

import json
from dataclasses import replace
from datetime import date, timedelta

import pytest

from measurements import RATES
from pagoda.plan.cost.work import Workload, decode_step, prefill_steps
from pagoda.plan.measured.rates import MeasuredCosts, Rates, interpolate
from pagoda.plan.model.models import builtin_shape
from pagoda.plan.model.weights import weights_in


@pytest.fixture(scope="module")
def costs() -> MeasuredCosts:
    shape = builtin_shape("smollm2-135m")  # 30 layers, all with full attention
    return MeasuredCosts(RATES, Workload(shape, weights_in(shape, "q4_1"), "f16"), 2e10, 4e11)


def test_a_decode_step(costs: MeasuredCosts) -> None:
    expected = 2 * 0.010 + 28 * 0.001 + 0.020 + 30 * 0.001 + 0.003 + 0.0001
    assert costs.step(decode_step(1, 16)).seconds == pytest.approx(expected)


def test_a_prompt_and_what_lies_between_measurements(costs: MeasuredCosts) -> None:
    (whole,) = prefill_steps(64, 64)
    attention = 30 * (64 * 65 / 2 * 1e-6 + 64 * 1e-5)
    expected = 2 * 0.100 + 28 * 0.010 + 0.020 + attention + 0.003 + 0.0001
    assert costs.step(whole).seconds == pytest.approx(expected)
    between = costs.step(decode_step(2.5, 72))  # halfway from 1 to 4 sequences, from 16 to 128 tokens
    attention = 30 * (0.0015 + 0.006) / 2
    layers = 2 * (0.010 + 0.090 * 1.5 / 63) + 28 * (0.001 + 0.009 * 1.5 / 63)
    expected = layers + attention + 0.020 + 0.030 * 1.5 / 15 + 0.003 + 2.5 * 0.0001
    assert between.seconds == pytest.approx(expected)


@pytest.mark.parametrize(("x", "y"), [(0.5, 1.0), (1, 1.0), (2, 2.0), (3, 3.0), (7, 5.0), (9, 6.0)])
def test_interpolation(x: float, y: float) -> None:
    assert interpolate(((1, 1.0), (3, 3.0), (7, 5.0)), x) == pytest.approx(y)


def test_one_measurement_grows_in_proportion() -> None:
    assert [interpolate(((4, 2.0),), x) for x in (1, 4, 8)] == [2.0, 2.0, 4.0]


def test_an_old_measurement_says_its_age(costs: MeasuredCosts) -> None:
    day = (date.today() - timedelta(40)).isoformat()
    assert MeasuredCosts(replace(RATES, date=day), costs.workload, 1e9, 1e9).source == (
        f"made up; 40 days ago ({day}), while it was quiet"
    )


def test_rates_survive_json() -> None:
    rates = replace(RATES, doubts=("other programs took 30% of the CPU time",))
    text = json.dumps(rates.to_json())
    assert json.dumps(Rates.from_json(json.loads(text)).to_json()) == text
    assert Rates.from_json(json.loads(text)).doubts == rates.doubts
