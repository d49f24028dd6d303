"""Layer by layer: what a quantizer is told of a group of linears, and what it gives back and is kept of it.

A `LayerQuantizer` sees all linears that read one input together, with that input's statistics over the sample. What it
makes is put into files of the work folder at once, so an interrupted run takes it from there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from pagoda.errors import FormatError
from pagoda.formats.packed import GroupedWeight
from pagoda.formats.quantized import as_floats
from pagoda.quantize.arrays import Array, Doubles
from pagoda.quantize.calibration.values import LinearCall, Origin, SampleValue
from pagoda.types import FloatArray, RawTensor


class InputStatistics:
    """Statistics of one input x [T, in] over the whole sample, computed when asked for."""

    def __init__(self, x: SampleValue) -> None:
        self._x = x

    @cached_property
    def hessian(self) -> Array:
        """X^T X. → [in, in] float64"""
        return self._x.arithmetic.gram(self._x.chunks())

    @cached_property
    def mean_abs(self) -> Array:
        """Mean |x| of each column. → [in]"""
        sums, count = column_sums(self._x, 1)
        return self._x.arithmetic.place((sums / count).astype(np.float32))


def column_sums(x: SampleValue, power: int) -> tuple[Doubles, int]:
    """Σ |x|^power of each column over the whole sample, and how many tokens that is. → [in]"""
    sums: list[Doubles] = []
    count = 0
    for chunk in x.chunks():
        sums.append(x.arithmetic.column_sums(chunk, power))
        count += len(chunk)
    return np.sum(sums, axis=0), count


@dataclass(frozen=True, slots=True)
class LinearGroup:
    """Linears that read one input, their weights [out, in] as the model has them, where the computing is done."""

    names: tuple[str, ...]
    weights: tuple[Array, ...]
    origin: Origin | None
    inputs: InputStatistics


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedLinear:
    """A linear whose columns were multiplied by `column_scales` before they were rounded (None: they were not)."""

    weight: GroupedWeight
    column_scales: FloatArray | None = None

    def values(self) -> FloatArray:
        """The weight that the linear computes with, in the model's own columns. → [out, in]"""
        values = self.weight.dequantize()
        return values if self.column_scales is None else values / self.column_scales


@dataclass(frozen=True, slots=True)
class Outcome:
    """A quantized group: its linears, and the divisors of other tensors that make up for column scales."""

    linears: tuple[QuantizedLinear, ...]
    divisors: dict[str, FloatArray] = field(default_factory=dict)  # tensor name → of a vector, or of rows


class LayerQuantizer(Protocol):
    def quantize(self, group: LinearGroup) -> Outcome: ...


class Store:
    """Quantized linears in a folder, a file each, which appear whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, name: str) -> bool:
        return self._path(name).is_file()

    def save(self, name: str, linear: QuantizedLinear, divisors: dict[str, FloatArray]) -> None:
        w = linear.weight
        arrays = {"bits": np.array(w.bits), "codes": w.codes, "scales": w.scales, "zeros": w.zeros, "groups": w.groups}
        if linear.column_scales is not None:
            arrays["column_scales"] = linear.column_scales
        arrays |= {f"divide {target}": values for target, values in divisors.items()}
        writing = self._path(name).with_suffix(".writing")
        with writing.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(writing, self._path(name))

    def load(self, name: str) -> QuantizedLinear:
        with np.load(self._path(name), allow_pickle=False) as file:
            codes, scales, zeros, groups = (file[part] for part in ("codes", "scales", "zeros", "groups"))
            weight = GroupedWeight(int(file["bits"]), codes, scales, zeros, groups)
            return QuantizedLinear(weight, file.get("column_scales"))

    def divisors(self) -> dict[str, FloatArray]:
        """All saved divisors, by the name of the tensor that is divided."""
        found: dict[str, FloatArray] = {}
        for path in sorted(self.folder.glob("*.npz")):
            with np.load(path, allow_pickle=False) as file:
                found |= {key.removeprefix("divide "): file[key] for key in file.files if key.startswith("divide ")}
        return found

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"


class QuantizingSource:
    """A `LinearSource` that quantizes linears, or finds them in the store, and goes on with what came out."""

    def __init__(
        self,
        quantizer: LayerQuantizer,
        store: Store,
        done: Callable[[Sequence[str]], None],
        kept: Collection[str] = (),
    ) -> None:
        """`kept` are weights that stay as they are."""
        self._kept = kept
        self._quantizer = quantizer
        self._store = store
        self._done = done

    def weights(self, x: SampleValue, calls: Sequence[LinearCall]) -> list[FloatArray]:
        names = tuple(call.weight.name for call in calls)
        if all(name in self._kept for name in names):
            return [as_floats(call.weight) for call in calls]
        if all(map(self._store.has, names)):
            values = [self._store.load(name).values() for name in names]
        else:
            values = self._quantize(x, names, calls)
        self._done(names)
        return values

    def _quantize(self, x: SampleValue, names: tuple[str, ...], calls: Sequence[LinearCall]) -> list[FloatArray]:
        weights = tuple(x.arithmetic.place(finite(call.weight)) for call in calls)
        outcome = self._quantizer.quantize(LinearGroup(names, weights, x.origin, InputStatistics(x)))
        for i, (name, linear) in enumerate(zip(names, outcome.linears, strict=True)):
            self._store.save(name, linear, {} if i else outcome.divisors)
        return [linear.values() for linear in outcome.linears]


def finite(raw: RawTensor) -> FloatArray:
    """The tensor in float32. FormatError if it holds what is not a number."""
    values = as_floats(raw)
    check_finite(raw.name, values)
    return values


def check_finite(name: str, values: FloatArray) -> None:
    if not np.isfinite(values).all():
        count = int(values.size - np.isfinite(values).sum())
        raise FormatError(f"tensor {name!r} holds {count} values that are NaN or infinite; the model is damaged")
