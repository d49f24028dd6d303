"""What a run's log says: losses by step, which evaluation was the best, and whether to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Log = Sequence[Mapping[str, Any]]  # transformers' `TrainerState.log_history`
Curve = list[tuple[int, float]]


def losses(log: Log, key: str) -> Curve:
    """(step, value) of every entry that has `key`."""
    return [(int(entry["step"]), float(entry[key])) for entry in log if key in entry]


def evaluations_since_best(evaluations: Curve) -> int:
    """How many evaluations came after the best one; 0 where the last is the best, and where there are none."""
    if not evaluations:
        return 0
    best = min(range(len(evaluations)), key=lambda i: evaluations[i][1])
    return len(evaluations) - 1 - best


def draw(train: Curve, held_out: Curve, path: Path) -> None:
    """loss.png. Imports matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), constrained_layout=True)
    axes.plot(*_columns(train), linewidth=1, alpha=0.4, color="C0")
    axes.plot(*_columns(smoothed(train)), color="C0", label="training, smoothed")
    if held_out:
        axes.plot(*_columns(held_out), "o-", color="C1", label="held out")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def smoothed(curve: Curve, weight: float = 0.9) -> Curve:
    """An exponential mean without the bias of its start."""
    total, out = 0.0, []
    for n, (step, value) in enumerate(curve, 1):
        total = weight * total + (1 - weight) * value
        out.append((step, total / (1 - weight**n)))
    return out


def _columns(curve: Curve) -> tuple[list[int], list[float]]:
    return [step for step, _ in curve], [value for _, value in curve]
