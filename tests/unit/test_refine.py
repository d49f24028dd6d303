"""Refining lowers the output error of what was quantized, whoever quantized it."""

import numpy as np
import pytest

from pagoda.quantize.algorithms.gptq import GPTQOptions, factorize, quantize
from pagoda.quantize.algorithms.grid import Rounded
from pagoda.quantize.algorithms.refine import move_codes, refined, refit_scales
from pagoda.types import FloatArray
from quantize_runs import need_torch

RNG = np.random.default_rng(11)
MIX = RNG.normal(size=(96, 96)) * np.exp(RNG.normal(size=96))
HESSIAN: FloatArray = ((x := (RNG.normal(size=(500, 96)) @ MIX)).T @ x).astype(np.float32)
WEIGHT: FloatArray = RNG.normal(size=(32, 96)).astype(np.float32)


def quantized(options: GPTQOptions) -> Rounded:
    return quantize(WEIGHT, factorize(HESSIAN.astype(np.float64), options.act_order, 0.01), options)


def nearest(bits: int) -> Rounded:
    """Rounded to nearest: H is the identity."""
    plain = factorize(np.eye(96), "none", 0.0)
    return quantize(WEIGHT, plain, GPTQOptions(bits, 32, False, "none"))


def row_errors(values: FloatArray) -> FloatArray:
    """(w - v) H (w - v)^T of each row of values [out, in]. → [out]"""
    change = WEIGHT - values
    return np.asarray(np.einsum("oi,oi->o", change @ HESSIAN, change))


@pytest.mark.parametrize("options", [GPTQOptions(4, 32), GPTQOptions(3, 48, False, "full"), GPTQOptions(2, -1)])
def test_every_step_lowers_the_error(options: GPTQOptions) -> None:
    start = quantized(options)
    errors = [row_errors(start.values().T)]
    steps = [start]
    for step in (refit_scales, move_codes, refit_scales):
        steps.append(step(steps[-1], HESSIAN, HESSIAN @ WEIGHT.T))
        errors.append(row_errors(steps[-1].values().T))
        assert (errors[-1] <= errors[-2] * 1.001).all()
    assert errors[-1].sum() < 0.98 * errors[0].sum()
    np.testing.assert_array_equal(refined(WEIGHT, start, HESSIAN).codes, steps[-1].codes)
    assert (steps[-1].scales == steps[-1].scales.astype(np.float16)).all()  # as files keep them
    assert steps[-1].codes.max() < 1 << options.bits


@need_torch
@pytest.mark.parametrize("options", [GPTQOptions(4, 32), GPTQOptions(3, 48, False, "full"), GPTQOptions(2, -1)])
def test_torch_rounds_as_well_as_numpy(options: GPTQOptions) -> None:
    import torch

    found = []
    for place in (np.asarray, torch.tensor):
        weight, hessian = place(WEIGHT), place(HESSIAN)
        factor = factorize(place(HESSIAN.astype(np.float64)), options.act_order, 0.01)
        found.append(refined(weight, quantize(weight, factor, options), hessian).grouped())
    in_numpy, in_torch = found
    assert (in_numpy.groups == in_torch.groups).all()
    losses = [row_errors(one.dequantize()).sum() for one in found]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_rounding_to_nearest_gains_much() -> None:
    start = nearest(4)
    end = refined(WEIGHT, start, HESSIAN)
    assert row_errors(end.values().T).sum() < 0.6 * row_errors(start.values().T).sum()


def test_a_perfect_weight_stays() -> None:
    start = nearest(4)
    again = refined(start.values().T, start, HESSIAN)
    np.testing.assert_allclose(again.values().T, start.values().T, atol=1e-6)


def test_rows_and_columns_of_nothing() -> None:
    hessian = HESSIAN.copy()
    hessian[5], hessian[:, 5] = 0, 0
    weight = WEIGHT.copy()
    weight[3] = 0
    options = GPTQOptions(4, 32)
    start = quantize(weight, factorize(hessian.astype(np.float64), "static", 0.01), options)
    end = refined(weight, start, hessian)
    assert np.isfinite(end.values()).all()
    assert (end.values().T[3] == 0).all()
