"""Weights on the device: quantized ones in planes, the others in the type that activations are computed in."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

import numpy as np
import numpy.typing as npt
import torch

from pagoda.backends.cuda.grouped_weights import from_grouped
from pagoda.backends.cuda.planes import PlaneWeight, Weight, pack, stack
from pagoda.backends.cuda.unpack import KINDS
from pagoda.errors import CapacityError, UnsupportedError
from pagoda.formats.blocks import BLOCK_TYPES, dequantize
from pagoda.formats.mxfp4 import Mxfp4Tensor
from pagoda.formats.quantized import QuantizedTensor
from pagoda.types import RawTensor

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CHUNK_ELEMENTS = {"cuda": 1 << 24, "cpu": 1 << 19}  # unpacked at a time: few launches, or what a cache holds


def compute_type(matrices: Iterable[RawTensor]) -> torch.dtype:
    """bf16 or f32 where most weights are, else f16, which rounds an eighth as coarsely and holds quantized weights."""
    sizes: dict[torch.dtype, int] = {}
    for raw in {raw.name: raw for raw in matrices}.values():
        dtype = FLOATS.get(raw.type, torch.float16)
        sizes[dtype] = sizes.get(dtype, 0) + int(np.prod(raw.shape))
    return max(sizes, key=lambda dtype: sizes[dtype])


class WeightLoader:
    """Puts weights on the device, each once; `num_bytes` is what they take there."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.num_bytes = 0
        self._chunk = CHUNK_ELEMENTS[device.type]
        self._matrices: dict[tuple[str, ...], Weight] = {}
        self._parts: dict[str, Weight] = {}  # loaded, and not yet asked for as a matrix
        self._vectors: dict[str, torch.Tensor] = {}

    def matrix(self, *raws: RawTensor) -> Weight:
        """The weight (out, in), or several of one input and one `layout`, one on top of the other."""
        key = tuple(raw.name for raw in raws)
        if key not in self._matrices:
            parts = [self._part(raw) for raw in raws]
            self._matrices[key] = self._guarded(lambda: self._stacked(parts))
            for raw in raws:
                self._parts.pop(raw.name, None)
        return self._matrices[key]

    def layout(self, raw: RawTensor) -> Hashable:
        """Equal for weights that one product can serve, if they read the same value."""
        if not isinstance(raw, QuantizedTensor):
            return raw.type if raw.type in KINDS else "floats"
        part = self._part(raw)
        return "floats" if isinstance(part, torch.Tensor) else part.layout or raw.name

    def _part(self, raw: RawTensor) -> Weight:
        if raw.name not in self._parts:
            self._parts[raw.name] = self._guarded(lambda: self._load(raw))
        return self._parts[raw.name]

    def vector(self, *raws: RawTensor) -> torch.Tensor:
        """Norm or bias, in float32; several end to end."""
        key = " ".join(raw.name for raw in raws)
        if key not in self._vectors:
            values = np.concatenate([dequantize(raw.data, raw.type, raw.shape) for raw in raws])
            self._vectors[key] = self._guarded(lambda: torch.from_numpy(values).to(self.device))
            self.num_bytes += values.nbytes
        return self._vectors[key]

    def _guarded(self, load: Callable[[], Weight]) -> Weight:
        try:
            return load()
        except torch.OutOfMemoryError as error:
            raise CapacityError(
                f"the GPU's memory ran out after {self.num_bytes / 2**30:.1f} GiB of weights; take a smaller or more "
                "quantized model, more GPUs with --tensor-parallel, or free what others hold"
            ) from error

    def _stacked(self, parts: list[Weight]) -> Weight:
        if isinstance(parts[0], PlaneWeight):
            planes = stack(parts)
            self.num_bytes += planes.num_bytes
            return planes
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        self.num_bytes += joined.numel() * joined.element_size()
        return joined

    def _load(self, raw: RawTensor) -> Weight:
        if isinstance(raw, Mxfp4Tensor):
            return self._load_blocks(raw, "MXFP4", raw.file_blocks())
        if isinstance(raw, QuantizedTensor):
            return self._load_quantized(raw)
        if raw.type in FLOATS:
            return self._load_floats(raw)
        if raw.type in KINDS:
            return self._load_blocks(raw, raw.type, np.ascontiguousarray(raw.data).reshape(-1).view(np.uint8))
        if raw.type in BLOCK_TYPES:
            return self._load_decoded(raw)
        known = ", ".join([*FLOATS, *BLOCK_TYPES])
        raise UnsupportedError(
            f"tensor {raw.name!r} has type {raw.type!r}, which the CUDA backend does not compute with; types: {known}"
        )

    def _load_floats(self, raw: RawTensor) -> torch.Tensor:
        flat = np.ascontiguousarray(raw.data).reshape(-1).view(np.uint8)
        out = torch.empty(raw.shape, dtype=self.dtype, device=self.device)
        rows = max(1, self._chunk // raw.shape[1])
        step = rows * raw.shape[1] * BLOCK_TYPES[raw.type].bytes
        for i, at in enumerate(range(0, flat.size, step)):
            part = torch.from_numpy(flat[at : at + step].copy()).to(self.device).view(FLOATS[raw.type])
            out[i * rows : (i + 1) * rows] = part.view(-1, raw.shape[1])
        return out

    def _load_decoded(self, raw: RawTensor) -> torch.Tensor:
        """A weight of a type without planes: what it stands for, in the type that activations are computed in."""
        out = torch.empty(raw.shape, dtype=self.dtype, device=self.device)
        step = max(1, self._chunk // raw.shape[1])
        for at in range(0, raw.shape[0], step):
            part = raw.part(at, min(at + step, raw.shape[0]))
            out[at : at + step] = torch.from_numpy(dequantize(part.data, raw.type, part.shape)).to(self.device)
        return out

    def _load_blocks(self, raw: RawTensor, type: str, flat: npt.NDArray[np.uint8]) -> PlaneWeight:
        """`flat`: the bytes of its blocks of this type, row by row."""
        kind, block = KINDS[type], BLOCK_TYPES[type]
        rows, columns = raw.shape
        if columns % block.elements:
            raise UnsupportedError(
                f"tensor {raw.name!r} has {columns} columns, which {type} packs in blocks of {block.elements}"
            )
        data = flat.reshape(rows, columns // block.elements, -1)
        book = None if kind.codebook is None else torch.tensor(kind.codebook, dtype=torch.float32, device=self.device)
        step = max(1, self._chunk // columns)
        parts = [
            pack(kind.unpack(torch.from_numpy(data[at : at + step].copy()).to(self.device)), kind.scheme, codebook=book)
            for at in range(0, rows, step)
        ]
        return stack(parts)

    def _load_quantized(self, raw: QuantizedTensor) -> Weight:
        weight = raw.unpack()
        planes = from_grouped(weight, self.device)
        return torch.from_numpy(weight.dequantize()).to(self.device, self.dtype) if planes is None else planes
