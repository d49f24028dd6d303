"""How much of an adapter is left in a model that it was merged into: rounding takes small changes away.

With W the base's weights, D the adapter's change and M the merged model's weights, all as the numbers that they stand
for: kept is <M - W, D> / <D, D>, 1 where nothing is lost, and noise is |M - W - D| / |D|, what rounding adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pagoda.adapters.adapter import Adapter
from pagoda.adapters.merge import MergedView
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.formats.quantized import as_floats
from pagoda.models.hugging_face import as_hugging_face


@dataclass(frozen=True, slots=True)
class Survival:
    """Over all matrices that the adapter changes."""

    kept: float  # share of the change
    noise: float  # beside the change's size

    def __str__(self) -> str:
        return f"{self.kept:.1%} of the change is left, beside noise of {self.noise:.2g} times its size"


def survival(base: Path, adapter: Adapter, merged: Path) -> Survival | None:
    """None: the merged model has no such matrices, or the adapter changes none of the base's.

    Of formats that scale columns (AWQ) the weights cannot be compared: ask the model's answers.
    """
    products = np.zeros(3)  # <M - W, D>, |D|², |M - W - D|²
    with open_checkpoint(base) as checkpoint, open_checkpoint(merged) as made:
        before, after = as_hugging_face(checkpoint), as_hugging_face(made)
        wanted = MergedView(checkpoint, adapter)
        for name in wanted.changed:
            if name not in before.tensors or name not in after.tensors:
                continue
            weight = as_floats(before.tensors[name])
            change = as_floats(wanted.tensors[name]) - weight
            moved = as_floats(after.tensors[name]) - weight
            pairs = ((moved, change), (change, change), (moved - change, moved - change))
            products += [np.vdot(x.astype(np.float64), y) for x, y in pairs]
    along, size, noise = products
    return Survival(float(along / size), float(np.sqrt(noise / size))) if size > 0 else None
