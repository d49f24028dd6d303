"""GPTQ's arithmetic against a slow twin, and what it promises."""

import importlib

import numpy as np
import pytest

from pagoda.errors import FormatError
from pagoda.quantize.algorithms.gptq import GPTQOptions, factorize, inverse_factor, quantize
from pagoda.quantize.algorithms.grid import Grid, full_range, search
from pagoda.types import FloatArray
from quantize_runs import need_torch

RNG = np.random.default_rng(5)


def inputs(tokens: int, columns: int) -> FloatArray:
    """Correlated columns of very different sizes."""
    mix = RNG.normal(size=(columns, columns)) * np.exp(RNG.normal(size=columns))
    return np.asarray(RNG.normal(size=(tokens, columns)) @ mix, dtype=np.float32)


def slow_gptq(w: FloatArray, hessian: np.ndarray, size: int, damping: float, *, bits: int = 4) -> FloatArray:
    """Frantar's algorithm, column by column: after each column the inverse of what is left is taken anew."""
    w, h = w.astype(np.float64).copy(), hessian + damping * hessian.diagonal().mean() * np.eye(len(hessian))
    out = np.zeros_like(w)
    for i in range(w.shape[1]):
        if i % size == 0:
            grid = full_range(w.T[i : i + size].astype(np.float32), bits, symmetric=True)
        out[:, i] = grid.rounded(w[:, i].astype(np.float32))
        rest = np.linalg.inv(h[i:, i:])
        w[:, i:] -= np.outer((w[:, i] - out[:, i]) / rest[0, 0], rest[0])
    return out.astype(np.float32)


def error(w: FloatArray, other: FloatArray, hessian: np.ndarray) -> float:
    return float(np.trace((w - other) @ hessian @ (w - other).T))


@pytest.mark.parametrize(("columns", "size"), [(96, 32), (150, 50), (64, 64)])
def test_agrees_with_the_slow_twin(columns: int, size: int) -> None:
    x, w = inputs(400, columns), RNG.normal(size=(40, columns)).astype(np.float32)
    hessian = x.T.astype(np.float64) @ x
    options = GPTQOptions(group_size=size, act_order="none", search_scales=False)
    fast = quantize(w, factorize(hessian, "none", options.damping), options).values().T
    slow = slow_gptq(w, hessian, size, options.damping)
    # Sums that differ in last bits may tip a weight between two codes, and then its row goes on otherwise, as well.
    assert (np.abs(fast - slow) < 1e-5).mean() > 0.9
    assert error(w, fast, hessian) == pytest.approx(error(w, slow, hessian), rel=0.02)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", ["static", "full", "none"])
def test_loses_less_than_rounding_to_nearest(bits: int, symmetric: bool, act_order: str) -> None:
    x, w = inputs(600, 128), RNG.normal(size=(48, 128)).astype(np.float32)
    hessian = x.T.astype(np.float64) @ x
    options = GPTQOptions(bits, 32, symmetric, act_order, 0.01)  # type: ignore[arg-type]
    done = quantize(w, factorize(hessian, options.act_order, 0.01), options)
    nearest = np.concatenate(
        [full_range(w.T[i : i + 32], bits, symmetric).rounded(w.T[i : i + 32]) for i in range(0, 128, 32)]
    ).T
    assert done.codes.max() < 1 << bits
    assert error(w, done.values().T, hessian) < 0.7 * error(w, nearest, hessian)
    assert (np.diff(done.groups) >= 0).all() == (act_order != "full")


def test_act_order_helps_and_a_row_may_be_one_group() -> None:
    x, w = inputs(600, 128), RNG.normal(size=(64, 128)).astype(np.float32)
    hessian = x.T.astype(np.float64) @ x
    lost = {}
    for order in ("static", "none"):
        options = GPTQOptions(group_size=-1, act_order=order)  # type: ignore[arg-type]
        done = quantize(w, factorize(hessian, options.act_order, 0.01), options)
        assert done.scales.shape == (1, 64)
        lost[order] = error(w, done.values().T, hessian)
    assert lost["static"] < lost["none"]


@pytest.mark.parametrize("module", ["numpy", pytest.param("torch", marks=need_torch)])
def test_singular_hessians_are_damped_more(module: str) -> None:
    xp = importlib.import_module(module)
    x = inputs(10, 64)  # fewer tokens than columns
    x[:, 7] = 0  # and one that is never used
    hessian = x.T.astype(np.float64) @ x
    factor = factorize(xp.asarray(hessian), "static", 0.0)
    assert 0 < factor.damping <= 0.01
    w = RNG.normal(size=(8, 64)).astype(np.float32)
    done = quantize(xp.asarray(w), factor, GPTQOptions(group_size=32))
    assert np.isfinite(done.grouped().dequantize()).all()


def test_what_is_not_a_number_is_refused() -> None:
    hessian = np.eye(4)
    hessian[2, 1] = np.nan
    with pytest.raises(FormatError, match="weights are damaged"):
        factorize(hessian, "none", 0.01)


def test_inverse_factor() -> None:
    x = RNG.normal(size=(500, 200))
    matrix = x.T @ x
    upper = inverse_factor(matrix)
    assert (np.tril(upper, -1) == 0).all()
    np.testing.assert_allclose(upper.T @ upper @ matrix, np.eye(200), atol=1e-8)


def test_searched_grids_lose_no_more_than_full_ones() -> None:
    w, importance = RNG.standard_t(3, size=(64, 30)).astype(np.float32), RNG.random(64).astype(np.float32)
    for symmetric in (True, False):
        full, best = full_range(w, 4, symmetric), search(w, importance, 4, symmetric)

        def loss(grid: Grid) -> FloatArray:
            return np.asarray((importance[:, None] * (w - grid.rounded(w)) ** 2).sum(axis=0))

        assert (loss(best) <= loss(full) * 1.0001).all()
        assert loss(best).sum() < 0.95 * loss(full).sum()


def test_rows_of_zeros_stay_zero() -> None:
    w = np.zeros((4, 32), dtype=np.float32)
    for symmetric in (True, False):
        done = quantize(w, factorize(np.eye(32), "static", 0.01), GPTQOptions(group_size=32, symmetric=symmetric))
        assert (done.values() == 0).all()
