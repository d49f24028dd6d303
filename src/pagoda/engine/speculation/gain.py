"""What drafts gain: tokens a second. The engine's pace and `pagoda advise speculation` both go by this.

A draft of k tokens, each right with probability α after right ones, makes a step yield on average

    E(α, k) = (1 − α^(k+1)) / (1 − α) tokens        (Leviathan, Kalman, Matias, arXiv:2211.17192, equation 1)

and a draft is worth a further token as long as that makes tokens a second more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Yield:
    """What a step gives on average, and what it takes."""

    tokens: float
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    def plus(self, chance: float, seconds: float) -> Yield:
        """With a draft token more, which is kept with probability `chance`."""
        return Yield(self.tokens + chance, self.seconds + seconds)

    def gains(self, chance: float, seconds: float, margin: float = 1.0) -> bool:
        """Whether that draft token makes tokens a second more, even if it took `margin` times as long."""
        return chance * self.seconds > margin * seconds * self.tokens


def tokens_per_pass(acceptance: float, draft: int) -> float:
    """E(α, k), the target's own token included."""
    if acceptance == 1:
        return draft + 1.0
    return (1 - acceptance ** (draft + 1)) / (1 - acceptance)


def best_length(plain: Yield, drafted: Iterable[Yield], margin: float = 1.0) -> int:
    """k, of the yields with drafts of 1, 2, … tokens, with most tokens a second; the shortest of equals.

    0: none is more than `margin` times as fast as the plain step.
    """
    best, length = plain.rate * margin, 0
    for k, one in enumerate(drafted, start=1):
        if one.rate > best:
            best, length = one.rate, k
    return length
