"""LoRA adapters on the device: their numbers, and which of them the tokens of a step ask for.

Tokens stand in order of their adapters, in tiles of one adapter's, so that one launch serves any number of adapters of
any ranks; a table of addresses says where each has its numbers (Punica, arXiv 2310.18547, has the idea).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from pagoda.backends.cuda.shard import Shard
from pagoda.backends.specs import AdapterWeights, LoraDelta, LoraType
from pagoda.errors import CapacityError, UnsupportedError
from pagoda.types import Batch, FloatArray, RawTensor

TILE = 16  # tokens, the least that tensor cores take
FIELDS = 7  # of a row of the table: addresses of a, b, a_scale, b_scale, bias, row_scale; and the rank
TYPES: dict[LoraType, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True, slots=True)
class Site:
    """A linear that adapters may add to: its weight's name, its columns [start, end) of the product that it is part of,
    and, where the model is cut, whether this device has a part of its input's columns or of its rows."""

    name: str
    start: int
    end: int
    columns: int  # of its input
    cuts_columns: bool = False

    def part(self, delta: LoraDelta, shard: Shard) -> LoraDelta:
        """What of the delta is this device's: partial products are summed, so a bias is one device's. ValueError: the
        delta has another shape."""
        rows, size = self.end - self.start, shard.size
        shape = (rows, self.columns * size) if self.cuts_columns else (rows * size, self.columns)
        if (delta.b.shape[0], delta.a.shape[1]) != shape or delta.a.shape[0] != delta.b.shape[1]:
            raise ValueError(f"factors of shape {delta.b.shape}, {delta.a.shape} for {self.name!r} {shape}")
        if self.cuts_columns:
            part = slice(shard.rank * self.columns, (shard.rank + 1) * self.columns)
            return LoraDelta(delta.a[:, part], delta.b, None if shard.rank else delta.bias, delta.row_scale)
        part = slice(shard.rank * rows, (shard.rank + 1) * rows)
        bias, scale = (None if v is None else v[part] for v in (delta.bias, delta.row_scale))
        return LoraDelta(delta.a, delta.b[part], bias, scale)


def sites_of(weights: Iterable[RawTensor], *, cuts_columns: bool) -> tuple[Site, ...]:
    """The sites of weights that are one product, one on top of the other."""
    sites, at = [], 0
    for weight in weights:
        rows, columns = weight.shape
        sites.append(Site(weight.name, at, at + rows, columns, cuts_columns))
        at += rows
    return tuple(sites)


def places_of(sites: Iterable[Site], device: torch.device) -> torch.Tensor:
    """The first of each site's columns of the product, and how many. → [sites, 2] int32"""
    return torch.tensor([[site.start, site.end - site.start] for site in sites], dtype=torch.int32).to(device)


@dataclass(frozen=True, eq=False, slots=True)
class Factors:
    """What an adapter adds to one linear: row_scale * out + b_scale * (b @ (a_scale * (a @ x))) + bias."""

    a: torch.Tensor  # [rank, in]
    b: torch.Tensor  # [out, rank]
    a_scale: torch.Tensor | None  # [rank] float32, of bytes
    b_scale: torch.Tensor | None  # [out]
    bias: torch.Tensor | None  # [out]
    row_scale: torch.Tensor | None  # [out]; None: 1

    @property
    def tensors(self) -> list[torch.Tensor | None]:
        return [self.a, self.b, self.a_scale, self.b_scale, self.bias, self.row_scale]

    @property
    def fields(self) -> list[int]:
        """A row of the table; 0 where there is nothing."""
        return [0 if tensor is None else tensor.data_ptr() for tensor in self.tensors] + [self.a.shape[0]]


@dataclass(frozen=True, eq=False, slots=True)
class CudaAdapter:
    """A `PlacedAdapter`; factors by the name of the linear's weight."""

    type: LoraType
    factors: Mapping[str, Factors]

    @property
    def bytes(self) -> int:
        tensors = [tensor for factors in self.factors.values() for tensor in factors.tensors if tensor is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def place(
    weights: AdapterWeights, sites: Mapping[str, Site], type: LoraType, shard: Shard, device: torch.device
) -> CudaAdapter:
    """This device's part of the adapter. UnsupportedError names a linear that takes none; CapacityError: no memory."""
    factors: dict[str, Factors] = {}
    for name, delta in weights.items():
        if name not in sites:
            raise UnsupportedError(f"adapters of {name!r} cannot be served: merge it into the model (pagoda merge)")
        part = sites[name].part(delta, shard)
        try:
            a, a_scale = _kept(part.a, type, device)
            b, b_scale = _kept(part.b, type, device)
            bias, row_scale = (None if v is None else _floats(v, device) for v in (part.bias, part.row_scale))
        except torch.OutOfMemoryError as error:
            raise CapacityError(
                "the GPU's memory cannot hold one more adapter; lower --max-cpu-loras or --memory-utilization"
            ) from error
        factors[name] = Factors(a, b, a_scale, b_scale, bias, row_scale)
    return CudaAdapter(type, factors)


def _floats(values: FloatArray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(values, np.float32)).to(device)


def _kept(values: FloatArray, type: LoraType, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The factor, and of bytes the scale of each row."""
    floats = _floats(values, device)
    if type != "int8":
        return floats.to(TYPES[type]), None
    top = floats.abs().amax(-1) if floats.numel() else torch.zeros(len(floats), device=device)
    scale = torch.where(top > 0, top / 127, torch.ones_like(top))
    return torch.round(floats / scale[:, None]).to(torch.int8), scale


@dataclass(frozen=True, eq=False, slots=True)
class AdapterTables:
    """For each group of sites a table of where some adapters, all of one type, have their numbers."""

    adapters: tuple[CudaAdapter, ...]
    device: torch.device
    rank: int  # the largest
    scales_rows: bool  # whether any does
    tables: dict[tuple[str, ...], torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, adapters: Sequence[object], device: torch.device) -> AdapterTables:
        """ValueError: adapters of several types, or not of this backend."""
        known = tuple(adapter for adapter in adapters if isinstance(adapter, CudaAdapter))
        if len(known) < len(adapters) or len({adapter.type for adapter in known}) != 1:
            raise ValueError("a step's adapters are all of this model, and kept in one type")
        factors = [f for adapter in known for f in adapter.factors.values()]
        rank = max((f.a.shape[0] for f in factors), default=0)
        return cls(known, device, rank, any(f.row_scale is not None for f in factors))

    def table(self, names: tuple[str, ...]) -> torch.Tensor:
        """[sites, adapters, FIELDS] int64; a row of zeros where an adapter adds nothing."""
        if names not in self.tables:
            rows = [[self._fields(adapter, name) for adapter in self.adapters] for name in names]
            self.tables[names] = torch.tensor(rows, dtype=torch.int64).to(self.device)
        return self.tables[names]

    def _fields(self, adapter: CudaAdapter, name: str) -> list[int]:
        factors = adapter.factors.get(name)
        return [0] * FIELDS if factors is None else factors.fields


@dataclass(frozen=True, eq=False, slots=True)
class StepAdapters:
    """The adapters of a step, and its tokens in order of them."""

    tables: AdapterTables
    groups: tuple[tuple[CudaAdapter, torch.Tensor], ...]  # each with its tokens, ascending
    tokens: torch.Tensor  # [n] int32, of one group after the other
    tiles: torch.Tensor  # [tiles, 3] int32: which adapter, the first of `tokens`, and how many

    @classmethod
    def of(cls, batch: Batch, tables: AdapterTables) -> StepAdapters:
        assert batch.adapter_of is not None
        counts = np.diff(batch.seq_starts)
        which = np.repeat(batch.adapter_of, counts)
        order = np.argsort(which, kind="stable").astype(np.int32)
        order = order[int((which < 0).sum()) :]
        tiles: list[tuple[int, int, int]] = []
        groups = []
        at = 0
        for i, adapter in enumerate(tables.adapters):
            count = int((which == i).sum())
            tiles += [(i, at + t, min(TILE, count - t)) for t in range(0, count, TILE)]
            groups.append((adapter, torch.from_numpy(order[at : at + count].astype(np.int64)).to(tables.device)))
            at += count
        rows = np.array(tiles, np.int32).reshape(-1, 3)
        return cls(
            tables,
            tuple(groups),
            torch.from_numpy(order).to(tables.device, non_blocking=True),
            torch.from_numpy(rows).to(tables.device, non_blocking=True),
        )
