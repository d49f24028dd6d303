"""What speculative decoding gains, and when it loses (Leviathan, Kalman, Matias, arXiv:2211.17192).

A draft of k tokens, each accepted with probability α, makes a pass yield

    E(α, k) = (1 − α^(k+1)) / (1 − α)          tokens (their equation 1)

for k drafts at c target steps each and one verifying pass at v plain steps, so that time shrinks by

    S = E / (k c + v)                            (their theorem 3.8 with v = 1)

v is 1 while a step is bound by memory: k + 1 tokens read the same weights as one. Once a batch makes decode bound by
arithmetic, v grows towards k + 1, and speculation loses whatever the drafts are worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pagoda.engine.speculation import gain
from pagoda.errors import ConfigError

LONGEST = 16  # drafts that are looked at; the best is seldom longer

StepSeconds = Callable[[int, int], float]  # (sequences, tokens of each) → seconds of the target's pass


@dataclass(frozen=True, slots=True)
class BatchGain:
    """The best draft length at one batch size. 0: speculation loses, and should be off."""

    batch: int
    draft: int
    speedup: float
    verify: float  # v: the verifying pass in plain steps


@dataclass(frozen=True, slots=True)
class Speculation:
    """Expected gain of drafts accepted with `acceptance` that cost `cost` target steps a token."""

    acceptance: float
    cost: float
    draft: int  # best for one sequence; 0: off
    tokens_per_pass: float
    speedup: float
    operations: float  # as many operations as without, for the best draft
    break_even: float | None  # least acceptance at which any draft gains; None: none does
    batches: tuple[BatchGain, ...]
    reasons: tuple[str, ...]


def tokens_per_pass(acceptance: float, draft: int) -> float:
    """E(α, k): tokens that one verifying pass yields on average, the target's own included."""
    _check(acceptance, draft)
    return gain.tokens_per_pass(acceptance, draft)


def speedup(acceptance: float, draft: int, cost: float, verify: float = 1.0) -> float:
    """S: how many times as fast as plain decoding; below 1 speculation is slower."""
    if not (math.isfinite(cost) and cost >= 0 and math.isfinite(verify) and verify > 0):
        raise ConfigError(f"a draft's cost must be a number from 0 and a pass's above 0, not {cost} and {verify}")
    return tokens_per_pass(acceptance, draft) / (draft * cost + verify)


def operations(acceptance: float, draft: int, cost: float) -> float:
    """Operations relative to plain decoding, where a draft token costs `cost` of a target token's (theorem 3.11)."""
    return (draft * cost + draft + 1) / tokens_per_pass(acceptance, draft)


def best_draft(
    acceptance: float, cost: float, verify: Callable[[int], float] = lambda draft: 1.0, longest: int = LONGEST
) -> int:
    """The draft length with the greatest speedup, the shortest of equals; 0: none gains. verify(k) is v."""
    drafted = [gain.Yield(speedup(acceptance, k, cost, verify(k)), 1.0) for k in range(1, longest + 1)]
    return gain.best_length(gain.Yield(1.0, 1.0), drafted)


def break_even(cost: float, verify: float = 1.0) -> float | None:
    """The least acceptance with which some draft gains: with v = 1, α = c. None if even α = 1 does not."""
    low, high = 0.0, 1.0
    if best_draft(high, cost, lambda draft: verify) == 0:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if best_draft(middle, cost, lambda draft: verify) else (middle, high)
    return high


def advise_speculation(
    acceptance: float, cost: float, step: StepSeconds | None = None, batches: Sequence[int] = (1, 4, 16, 64, 256)
) -> Speculation:
    """The gain for one sequence and, if `step` gives the seconds of passes, for batches."""
    draft = best_draft(acceptance, cost, _verify(step, 1))
    gains = tuple(_gain(acceptance, cost, step, batch) for batch in batches) if step else ()
    found = Speculation(
        acceptance=acceptance,
        cost=cost,
        draft=draft,
        tokens_per_pass=tokens_per_pass(acceptance, draft),
        speedup=speedup(acceptance, draft, cost, _verify(step, 1)(draft)),
        operations=operations(acceptance, draft, cost),
        break_even=break_even(cost),
        batches=gains,
        reasons=(),
    )
    return replace(found, reasons=tuple(_reasons(found)))


def _gain(acceptance: float, cost: float, step: StepSeconds | None, batch: int) -> BatchGain:
    verify = _verify(step, batch)
    draft = best_draft(acceptance, cost, verify)
    return BatchGain(batch, draft, speedup(acceptance, draft, cost, verify(draft)), verify(draft))


def _verify(step: StepSeconds | None, batch: int) -> Callable[[int], float]:
    if step is None:
        return lambda draft: 1.0
    return lambda draft: step(batch, draft + 1) / step(batch, 1)


def _reasons(found: Speculation) -> list[str]:
    a, c = found.acceptance, found.cost
    if found.draft == 0:
        yes = f"acceptance must exceed {found.break_even:.2f}" if found.break_even is not None else "nothing would help"
        return [f"It loses: a draft token costs {c:g} of a target's step and is accepted with {a:g}; {yes}."]
    reasons = [
        f"Drafts of {found.draft} yield {found.tokens_per_pass:.2f} tokens a pass and cost {found.draft * c:.2f} steps "
        f"beside the pass: {found.speedup:.2f} times as fast for one sequence.",
        f"It does {found.operations:.2f} times the operations: free while memory binds, not when arithmetic does.",
    ]
    lost = next((gain for gain in found.batches if gain.draft == 0), None)
    if lost:
        reasons.append(
            f"From a batch of about {lost.batch} it loses: the pass that verifies is bound by arithmetic there, "
            "and rejected tokens are work that other sequences wait for."
        )
    elif found.batches:
        last = found.batches[-1]
        reasons.append(f"At a batch of {last.batch} drafts of {last.draft} still give {last.speedup:.2f}.")
    return reasons


def _check(acceptance: float, draft: int) -> None:
    if not 0 <= acceptance <= 1:  # NaN is neither
        raise ConfigError(f"an acceptance rate lies between 0 and 1, not at {acceptance}")
    if draft < 0:
        raise ConfigError(f"a draft has 0 tokens or more, not {draft}")
