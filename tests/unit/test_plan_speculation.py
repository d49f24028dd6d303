"""Speculative decoding: the paper's formulas, against simulation and its own figures."""

import random

import pytest

from pagoda.errors import ConfigError
from pagoda.plan.advice.speculation import (
    advise_speculation,
    best_draft,
    break_even,
    operations,
    speedup,
    tokens_per_pass,
)


def test_tokens_per_pass_by_simulation() -> None:
    rng = random.Random(0)
    for acceptance, draft in ((0.6, 3), (0.8, 5), (0.9, 8)):
        total = 0
        for _ in range(40_000):
            accepted = 0
            while accepted < draft and rng.random() < acceptance:
                accepted += 1
            total += accepted + 1
        assert tokens_per_pass(acceptance, draft) == pytest.approx(total / 40_000, rel=0.01)


def test_edges() -> None:
    assert tokens_per_pass(0, 5) == 1
    assert tokens_per_pass(1, 5) == 6
    assert tokens_per_pass(0.7, 0) == 1
    assert speedup(0.7, 0, 0.1) == 1


@pytest.mark.parametrize(
    ("acceptance", "draft", "ops", "speed"),
    [(0.6, 2, 1.53, 1.96), (0.7, 3, 1.58, 2.53), (0.8, 2, 1.23, 2.44), (0.8, 5, 1.63, 3.69), (0.9, 10, 1.60, 6.86)],
)
def test_the_papers_table(acceptance: float, draft: int, ops: float, speed: float) -> None:
    """Leviathan et al., table 1: c = ĉ = 0."""
    assert operations(acceptance, draft, 0) == pytest.approx(ops, abs=0.006)
    assert speedup(acceptance, draft, 0) == pytest.approx(speed, abs=0.006)


def test_corollary() -> None:
    """α > c gains at least (1 + α)/(1 + c) (corollary 3.9); α ≤ c never does."""
    for acceptance, cost in ((0.5, 0.1), (0.8, 0.3), (0.31, 0.3)):
        draft = best_draft(acceptance, cost)
        assert draft >= 1
        assert speedup(acceptance, draft, cost) >= (1 + acceptance) / (1 + cost) - 1e-12
    assert best_draft(0.3, 0.3) == 0
    assert best_draft(0.2, 0.5) == 0
    assert break_even(0.25) == pytest.approx(0.25, abs=1e-3)
    assert break_even(1.5) is None


def test_best_draft_is_best() -> None:
    gains = [speedup(0.75, k, 0.08) for k in range(17)]
    assert gains[best_draft(0.75, 0.08)] == max(gains)


def step(batch: int, tokens: int) -> float:
    """Memory-bound up to 64 tokens at once, then by arithmetic."""
    return max(1.0, batch * tokens / 64)


def test_large_batches_lose() -> None:
    found = advise_speculation(0.7, 0.05, step)
    gains = {gain.batch: gain for gain in found.batches}
    assert gains[1].speedup > 2
    assert gains[1].draft >= gains[16].draft >= gains[64].draft == 0
    assert gains[64].speedup == 1
    assert any("batch of about 64 it loses" in reason for reason in found.reasons)


def test_what_loses_is_said() -> None:
    found = advise_speculation(0.2, 0.4)
    assert (found.draft, found.speedup, found.tokens_per_pass) == (0, 1, 1)
    assert found.reasons == (
        "It loses: a draft token costs 0.4 of a target's step and is accepted with 0.2; acceptance must exceed 0.40.",
    )
    assert "nothing would help" in advise_speculation(0.9, 2).reasons[0]


@pytest.mark.parametrize("acceptance", [-0.1, 1.1, float("nan")])
def test_nonsense_is_refused(acceptance: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        advise_speculation(acceptance, 0.1)
    with pytest.raises(ConfigError, match="cost"):
        speedup(0.5, 2, float("nan"))
    with pytest.raises(ConfigError, match="0 tokens or more"):
        tokens_per_pass(0.5, -1)
