"""What a judge's probabilities are worth: fitted to people's labels, and how well they then agree.

A small judge says 'no' to nearly everything, but ranks well: its log odds of yes, stretched and shifted (Platt, 1999),
are a probability that can be averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MAX_LOGIT = 30.0
RIDGE = 1e-3  # keeps the slope finite where labels are separated without error
BINS = 10


@dataclass(frozen=True, slots=True)
class Calibration:
    """probability = 1 / (1 + exp(-(slope * log odds + offset)))."""

    slope: float = 1.0
    offset: float = 0.0

    def probability(self, logit: float) -> float:
        """From the judge's log odds of yes."""
        return float(1 / (1 + np.exp(-np.clip(self.slope * logit + self.offset, -MAX_LOGIT, MAX_LOGIT))))


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well verdicts agree with labels."""

    auc: float
    kappa: float  # Cohen's, of verdicts at a probability of one half
    brier: float  # mean squared error of the probabilities
    curve: tuple[tuple[float, float, int], ...]  # of each tenth: (mean probability, share labelled yes, cases)
    num_labels: int


def fit(logits: Sequence[float], labels: Sequence[bool]) -> Calibration:
    """Platt scaling by Newton's method, with his smoothed targets. Raises ValueError unless both labels occur."""
    x, y = _checked(logits, labels)
    positive, negative = y.sum(), (1 - y).sum()
    target = np.where(y > 0, (positive + 1) / (positive + 2), 1 / (negative + 2))
    design = np.stack([x, np.ones_like(x)], axis=1)  # [N, 2]
    weight = np.array([1.0, 0.0])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(design @ weight, -MAX_LOGIT, MAX_LOGIT)))
        gradient = design.T @ (p - target) + RIDGE * weight
        hessian = (design * (p * (1 - p))[:, None]).T @ design + RIDGE * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weight = weight - step * min(1.0, 5 / max(1e-12, float(np.abs(step).max())))
        if np.abs(step).max() < 1e-9:
            break
    return Calibration(float(weight[0]), float(weight[1]))


def agreement(probabilities: Sequence[float], labels: Sequence[bool]) -> Agreement:
    """Compare probabilities of yes with labels. Raises ValueError unless both labels occur."""
    p, y = _checked(probabilities, labels)
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    curve = tuple(
        (float(p[bins == b].mean()), float(y[bins == b].mean()), int((bins == b).sum()))
        for b in range(BINS)
        if (bins == b).any()
    )
    return Agreement(auc(p[y > 0], p[y == 0]), _kappa(p >= 0.5, y > 0), float(((p - y) ** 2).mean()), curve, len(y))


def cross_validated(logits: Sequence[float], labels: Sequence[bool], folds: int = 5) -> Agreement:
    """Agreement of probabilities that were each fitted without the label they are compared with.

    Raises ValueError where a part's rest has labels of one kind only.
    """
    x, y = _checked(logits, labels)
    part = np.argsort(np.argsort(np.random.default_rng(0).random(len(x)))) % folds
    found = np.empty(len(x))
    for k in range(folds):
        fitted = fit(x[part != k].tolist(), (y[part != k] > 0).tolist())
        found[part == k] = [fitted.probability(logit) for logit in x[part == k]]
    return agreement(found.tolist(), (y > 0).tolist())


def auc(positive: Floats, negative: Floats) -> float:
    """The chance that a positive scores above a negative, ties counting half (Mann & Whitney, 1947)."""
    order = np.argsort(np.concatenate([positive, negative]), kind="stable")
    values = np.concatenate([positive, negative])[order]
    ranks = np.empty(len(values))
    _, first, counts = np.unique(values, return_index=True, return_counts=True)
    for start, count in zip(first, counts, strict=True):
        ranks[order[start : start + count]] = start + (count + 1) / 2
    n = len(positive)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(negative)))


def _kappa(verdicts: npt.NDArray[np.bool_], labels: npt.NDArray[np.bool_]) -> float:
    """Agreement beyond chance (Cohen, 1960)."""
    seen = float((verdicts == labels).mean())
    by_chance = float(verdicts.mean() * labels.mean() + (1 - verdicts.mean()) * (1 - labels.mean()))
    return 1.0 if by_chance == 1 else (seen - by_chance) / (1 - by_chance)


def _checked(values: Sequence[float], labels: Sequence[bool]) -> tuple[Floats, Floats]:
    x, y = np.asarray(values, np.float64), np.asarray(labels, np.float64)
    if len(x) != len(y) or not 0 < y.sum() < len(y):
        raise ValueError(f"{len(x)} values and {len(y)} labels, of which both kinds must occur")
    if not np.isfinite(x).all():
        raise ValueError("a value is not finite")
    return x, y
