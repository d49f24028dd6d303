"""A quantized linear layer of a Hugging Face checkpoint as one tensor, which stands under its weight's name.

`quant_methods.py` folds the parts that a layer is stored in (codes, scales, zeros …) into a `QuantizedTensor`; whoever
reads a model sees `NAME.weight` of its shape, and decodes it or unpacks it to codes and scales.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pagoda.errors import UnsupportedError
from pagoda.formats.blocks import dequantize
from pagoda.formats.packed import GroupedWeight, Ints
from pagoda.types import FloatArray, RawTensor

FLOAT_TYPES = ("F32", "F16", "BF16")  # of tensors that are no blocks
_NUMPY = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1", "F8_E4M3": "u1"}


@dataclass(frozen=True, slots=True)
class QuantizedTensor(RawTensor):
    """`data` holds the codes as the file packs them; `type` is a name for people, such as GPTQ-4."""

    parts: Mapping[str, RawTensor]  # by what follows the layer's name, the codes among them
    unpacker: Callable[[Mapping[str, npt.NDArray[Any]]], GroupedWeight]
    group_part: str | None = None  # the part that says each column's group, where they may be out of order

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts.values())

    def unpack(self) -> GroupedWeight:
        """Codes [R, C] and what they stand for; R * C bytes and more. FormatError where parts do not fit each other."""
        return self.unpacker({suffix: as_array(part) for suffix, part in self.parts.items()})

    def part(self, start: int, stop: int) -> QuantizedTensor:
        """Rows [start, stop) as a tensor of its own; the layer is unpacked whole, and cut then."""
        return replace(
            self.cut(slice(start, stop)), name=f"{self.name}[{start}:{stop}]", part_of=self.part_of or self.name
        )

    def run(self, i: int, of: int, groups: int) -> QuantizedTensor:
        """As `RawTensor.run`."""
        rows = np.arange(self.shape[0]).reshape(groups, of, -1)[:, i].reshape(-1)
        return replace(self.picked(rows), name=f"{self.name}[{i} of {of}]")

    def picked(self, rows: npt.NDArray[np.integer]) -> QuantizedTensor:
        """A matrix of these rows; the layer is unpacked whole, and they are picked then."""
        whole = self.unpacker

        def unpack(parts: Mapping[str, npt.NDArray[Any]]) -> GroupedWeight:
            return whole(parts).pick(rows)

        shape, name = (len(rows), self.shape[1]), f"{self.name}[{rows[0]}…]"
        return replace(self, name=name, shape=shape, unpacker=unpack, part_of=self.part_of or self.name)

    def cut(self, rows: slice = slice(None), columns: slice = slice(None)) -> QuantizedTensor:
        """Some rows and columns under the same name; the layer is unpacked whole, and cut then."""
        whole = self.unpacker

        def unpack(parts: Mapping[str, npt.NDArray[Any]]) -> GroupedWeight:
            return whole(parts).cut(rows, columns)

        shape = len(range(self.shape[0])[rows]), len(range(self.shape[1])[columns])
        return replace(self, shape=shape, unpacker=unpack)

    def column_order(self) -> Ints | None:
        """The columns sorted by group, each group's in order; None where they are. [C]"""
        if self.group_part is None or self.group_part not in self.parts:
            return None
        groups = as_array(self.parts[self.group_part])
        order = np.argsort(groups, kind="stable").astype(np.int32)
        return None if np.array_equal(order, np.arange(order.size)) else order


def as_array(tensor: RawTensor) -> npt.NDArray[Any]:
    """A stored tensor as numpy has it, a view where that is possible; BF16 as float32."""
    if tensor.type == "BF16":
        return dequantize(tensor.data, tensor.type, tensor.shape)
    if tensor.type not in _NUMPY:
        raise UnsupportedError(f"tensor {tensor.name!r} has type {tensor.type}, which no quantized layer is made of")
    return tensor.data.view(_NUMPY[tensor.type]).reshape(tensor.shape)


def as_floats(tensor: RawTensor) -> FloatArray:
    """Any weight decoded: block formats, floats, and quantized layers. → float32 of its shape"""
    if isinstance(tensor, QuantizedTensor):
        return tensor.unpack().dequantize()
    return dequantize(tensor.data, tensor.type, tensor.shape)
