"""Weights as the CPU backend keeps them: matrices packed in panels (csrc/weights.h), vectors as float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pagoda import _native
from pagoda.backends import grouped
from pagoda.errors import UnsupportedError
from pagoda.formats.blocks import BLOCK_TYPES, dequantize, tensor_bytes
from pagoda.formats.mapped import release_pages
from pagoda.formats.mxfp4 import Mxfp4Tensor
from pagoda.formats.packed import Ints
from pagoda.formats.quantized import QuantizedTensor
from pagoda.types import FloatArray, RawTensor

FLOAT_TYPES = ("F32", "F16", "BF16", "F8_E4M3")  # that meet activations as they are
TOGETHER = 64 << 20  # bytes of a file that are packed, and in memory besides what they become, at a time


def check_blocks(tensor: RawTensor) -> None:
    """UnsupportedError that names the tensor, where no kernel takes its type, or its rows are not whole blocks."""
    if tensor.type not in BLOCK_TYPES:
        known = ", ".join(BLOCK_TYPES)
        raise UnsupportedError(f"tensor {tensor.name!r} has type {tensor.type!r}; supported: {known}")
    columns, elements = tensor.shape[-1], BLOCK_TYPES[tensor.type].elements
    if columns % elements:
        raise UnsupportedError(
            f"tensor {tensor.name!r} has {columns} columns, which {tensor.type} cannot pack in blocks of {elements}"
        )


class PackedWeights:
    """Weights by name: one that is used twice is packed once."""

    def __init__(self, runtime: _native.Runtime) -> None:
        self.runtime = runtime
        self._packed: dict[str, _native.Weight] = {}
        self._orders: dict[str, Ints | None] = {}
        self._vector_bytes = 0

    def __getitem__(self, tensor: RawTensor) -> _native.Weight:
        if tensor.name not in self._packed:
            self._packed[tensor.name] = self._pack(tensor)
            for part in tensor.parts.values() if isinstance(tensor, QuantizedTensor) else (tensor,):
                release_pages(part.data)  # so that no model is in memory twice
        return self._packed[tensor.name]

    def all(self, tensors: Sequence[RawTensor]) -> list[_native.Weight]:
        """Those of many tensors: plain ones of one type and shape, as experts are, the threads pack together."""
        alike = {(tensor.type, tensor.shape) for tensor in tensors}
        if len(alike) == 1 and not any(isinstance(tensor, QuantizedTensor) for tensor in tensors):
            for some in _runs([tensor for tensor in tensors if tensor.name not in self._packed]):
                self._packed |= zip((tensor.name for tensor in some), self._pack_alike(some), strict=True)
                release_pages(*(tensor.data for tensor in some))
        return [self[tensor] for tensor in tensors]

    def _pack_alike(self, tensors: Sequence[RawTensor]) -> list[_native.Weight]:
        return self.runtime.pack_all([self.table(tensor) for tensor in tensors], tensors[0].type, *tensors[0].shape)

    def _pack(self, tensor: RawTensor) -> _native.Weight:
        rows, columns = tensor.shape
        if isinstance(tensor, Mxfp4Tensor):
            return self.runtime.pack(tensor.file_blocks().reshape(-1), tensor.type, rows, columns)
        if isinstance(tensor, QuantizedTensor):
            return grouped.pack(self.runtime, tensor)
        return self.runtime.pack(self.table(tensor), tensor.type, rows, columns)

    def table(self, tensor: RawTensor) -> npt.NDArray[np.uint8]:
        """The tensor's bytes as they lie in the file. UnsupportedError where no kernel reads them."""
        check_blocks(tensor)
        return np.ascontiguousarray(tensor.data.reshape(-1))

    def vector(self, tensor: RawTensor) -> FloatArray:
        """A norm's weight or a bias. A program keeps a copy for each use."""
        check_blocks(tensor)
        values = np.ascontiguousarray(dequantize(tensor.data, tensor.type, tensor.shape).reshape(-1), np.float32)
        self._vector_bytes += values.nbytes
        return values

    def clear(self) -> None:
        """Forget all weights; programs that have them keep them."""
        self._packed.clear()
        self._orders.clear()

    def order(self, tensor: RawTensor) -> Ints | None:
        """The order of columns that the packed weight wants its activations in; None: as they are."""
        if not isinstance(tensor, QuantizedTensor):
            return None
        if tensor.name not in self._orders:
            self._orders[tensor.name] = tensor.column_order()
        return self._orders[tensor.name]

    @property
    def num_bytes(self) -> int:
        """What matrices and vectors take; embedding tables are read from the file."""
        return sum(weight.bytes for weight in self._packed.values()) + self._vector_bytes


def _runs(tensors: Sequence[RawTensor]) -> Iterator[Sequence[RawTensor]]:
    """Tensors of one size, in runs of about TOGETHER bytes."""
    each = max(1, TOGETHER // tensors[0].num_bytes) if tensors else 1
    return (tensors[begin : begin + each] for begin in range(0, len(tensors), each))


class EmptyWeights(PackedWeights):
    """Weights of the same sizes with nothing in them: tells what a model takes without reading it."""

    def _pack_alike(self, tensors: Sequence[RawTensor]) -> list[_native.Weight]:
        return [self._pack(tensor) for tensor in tensors]

    def _pack(self, tensor: RawTensor) -> _native.Weight:
        check_blocks(tensor)
        return self.runtime.empty_weight(tensor.type, *tensor.shape)

    def table(self, tensor: RawTensor) -> npt.NDArray[np.uint8]:
        check_blocks(tensor)
        return np.zeros(tensor_bytes(tensor.type, tensor.shape), np.uint8)  # which the OS gives when it is touched
