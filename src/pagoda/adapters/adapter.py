"""An adapter as its files hold it: low-rank changes of matrices, and tensors that were trained whole.

A matrix W of a linear becomes W + scale * b @ a; with a DoRA magnitude m, each row of that is scaled to have the length
that m says. Names are those of the model's files of the same kind, GGUF or Hugging Face, and so is the order of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pagoda.errors import FormatError
from pagoda.types import FloatArray


@dataclass(frozen=True, slots=True)
class Delta:
    """What one module gets. Of an embedding, the change of its table (V, E) is scale * (b @ a).T."""

    a: FloatArray  # [rank, in]
    b: FloatArray  # [out, rank]
    scale: float
    magnitude: FloatArray | None = None  # [out], of DoRA
    bias: FloatArray | None = None  # [out], which `lora_bias` adds to b's product before it is scaled
    is_embedding: bool = False

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])


@dataclass(frozen=True, slots=True)
class Adapter:
    """deltas by module, as `model.layers.0.self_attn.q_proj`; whole: new values of tensors, with their suffix."""

    path: Path
    digest: str  # of the files' content
    is_gguf: bool
    deltas: Mapping[str, Delta]
    whole: Mapping[str, FloatArray]
    architecture: str | None = None  # of the base model, where the file says it

    def check(self) -> None:
        """FormatError names a tensor that is not finite, or factors that do not fit together."""
        for module, delta in self.deltas.items():
            _check_finite(f"{self.path}: {module}", (delta.a, delta.b, delta.magnitude, delta.bias, delta.scale))
            _check_factors(f"{self.path}: {module}", delta)
        for name, values in self.whole.items():
            _check_finite(f"{self.path}: {name}", (values,))
        if not self.deltas and not self.whole:
            raise FormatError("the adapter holds nothing", path=str(self.path))


def _check_finite(what: str, parts: Iterable[FloatArray | float | None]) -> None:
    for part in parts:
        if part is not None and not np.isfinite(part).all():
            raise FormatError(f"{what} holds a number that is not finite: the training has diverged; train it again")


def _check_factors(what: str, delta: Delta) -> None:
    a, b = delta.a.shape, delta.b.shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        raise FormatError(f"{what}: A {a} and B {b} do not multiply: A is (rank, in) and B (out, rank)")
    if not 0 < a[0] <= min(a[1], b[0]):
        raise FormatError(f"{what} has rank {a[0]}, but its matrix is {b[0]} by {a[1]}: no rank beyond that exists")
    for name, vector in (("magnitude", delta.magnitude), ("bias", delta.bias)):
        if vector is not None and vector.shape != (b[0],):
            raise FormatError(f"{what}: its {name} has shape {vector.shape}, but there are {b[0]} rows")
