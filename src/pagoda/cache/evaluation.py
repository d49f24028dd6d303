"""How many true repeats are found at a stated share of wrong hits, by the cosine alone and by a verifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVELS = (0.02, 0.05, 0.10, 0.20)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """Taking pairs as hits from the highest score down, at each step: hits are distinct scores, ties come together."""

    name: str
    found: Floats  # share of the true repeats that are hits
    wrong: Floats  # share of the hits that are wrong
    hits: Floats  # share of all pairs that are hits
    scores: Floats  # the lowest score of a hit

    def found_at(self, level: float) -> float:
        """The largest share of true repeats that is found with at most `level` of the hits wrong."""
        good = self.wrong <= level
        return float(self.found[good].max(initial=0.0))

    def score_at(self, level: float) -> float | None:
        """The score from which on that is so; None: at no score."""
        good = np.flatnonzero(self.wrong <= level)
        return float(self.scores[good[-1]]) if len(good) else None


def curve(
    name: str, scores: Sequence[float] | npt.NDArray[np.float32], same: Sequence[bool], num_same: int | None = None
) -> Curve:
    """`num_same`: true repeats that there are, where not all of them are among the pairs."""
    values = np.asarray(scores, np.float64)
    truth = np.asarray(same, bool)
    order = np.argsort(-values, kind="stable")
    ranked, right = values[order], np.cumsum(truth[order])
    count = np.arange(1, len(values) + 1)
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: len(values)])
    total = max(int(truth.sum()) if num_same is None else num_same, 1)
    return Curve(
        name,
        right[ends] / total,
        1 - right[ends] / count[ends],
        count[ends] / max(len(values), 1),
        ranked[ends],
    )
