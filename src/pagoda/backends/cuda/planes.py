"""Quantized weights as a GPU streams them: codes cut into bit planes, scales apart from them.

A weight [N, C] stands for w = scale * (code - zero) - offset, with a scale and maybe an offset for each `group` columns
of a row; with a codebook, for scale * codebook[code]. Every block format of GGUF, GPTQ, AWQ and NF4 has this form; in
MXFP4 codes are numbers of 4 bits (E2M1), and scales the exponents of powers of two.

    planes   codes of b = 4 + 2 bits, say, are a plane of 4 and a plane of 2. Columns go in runs of 4 parts of `part`
             columns; lane j of a run holds column j of each of the four parts, part i at bit i * b. So a lane is
             int16 for 4 bits, uint8 for 2, int32 for 8, and one load gives four tiles that are contiguous columns of
             the activations, no element of which has to change its place. 1 bit: two runs share a uint8.
    scales   [columns / group, N]: neighbours in memory are neighbours in a tile of rows.
    super    k-quants: scale = super_scale * integer scale, super_offset likewise, for each 256 columns.

Columns are padded to whole runs with codes whose scale is 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import lcm
from typing import TypeAlias

import torch

from pagoda.formats.blocks import E2M1_VALUES

SUPER = 256  # columns of one super-block
BY_ROW = ("scales", "offsets", "super_scales", "super_offsets")  # of a `PlaneWeight`: [groups, N]
LANE_TYPES = {1: torch.uint8, 2: torch.uint8, 4: torch.int16, 8: torch.int32}


@dataclass(frozen=True, slots=True)
class Scheme:
    """What kernels are compiled for; weights of one scheme can be stacked."""

    planes: tuple[int, ...]  # bits of each, the lowest first
    group: int  # columns that share a scale
    zero: int = 0
    nibbles: bool = False  # scales holds integer scale and offset in one byte, low and high
    e2m1: bool = False  # codes are E2M1, taken twice, and scales hold e of 2^(e - 128)

    @property
    def part(self) -> int:
        return min(self.group, 32)

    @property
    def run(self) -> int:
        return 4 * self.part

    @property
    def pad(self) -> int:
        """What columns are padded to a multiple of."""
        return lcm(self.run * (2 if 1 in self.planes else 1), self.group)


@dataclass(frozen=True, slots=True, eq=False)
class PlaneWeight:
    """A quantized matrix [rows, columns] on a device."""

    scheme: Scheme
    rows: int
    columns: int
    planes: tuple[torch.Tensor, ...]  # [N, runs, part]; of 1 bit: [N, runs / 2, part]
    scales: torch.Tensor  # [padded / group, N], f16, f32, int8 or uint8
    offsets: torch.Tensor | None = None  # as scales
    super_scales: torch.Tensor | None = None  # [padded / 256, N] f16
    super_offsets: torch.Tensor | None = None
    codebook: torch.Tensor | None = None  # [2^bits] f32
    order: torch.Tensor | None = None  # [columns]: column c of the codes is column order[c] of the activations

    @property
    def runs(self) -> int:
        return int(self.planes[0].shape[1]) * (2 if self.scheme.planes[0] == 1 else 1)

    @property
    def num_bytes(self) -> int:
        tensors = (*self.planes, self.scales, self.offsets, self.super_scales, self.super_offsets)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    @property
    def device(self) -> torch.device:
        return self.scales.device

    @property
    def layout(self) -> tuple[object, ...] | None:
        """Equal for weights of which one product can serve several; None: it serves no other."""
        if self.order is not None:
            return None
        tensors = self.scales, self.offsets, self.super_scales, self.codebook
        return self.scheme, *(None if tensor is None else tensor.dtype for tensor in tensors)


Weight: TypeAlias = "torch.Tensor | PlaneWeight"  # [N, C], of the compute type or quantized


def stack(weights: list[PlaneWeight]) -> PlaneWeight:
    """One weight whose rows are those of all, in order."""
    if len(weights) == 1:
        return weights[0]
    first = weights[0]
    joined = {
        name: torch.cat([getattr(w, name) for w in weights], dim=1)
        for name in BY_ROW
        if getattr(first, name) is not None
    }
    planes = tuple(torch.cat(parts) for parts in zip(*(w.planes for w in weights), strict=True))
    return replace(first, rows=sum(w.rows for w in weights), planes=planes, **joined)


def part_of(weight: Weight, start: int, end: int) -> Weight:
    """Rows [start, end) of it, a view."""
    if isinstance(weight, torch.Tensor):
        return weight[start:end]
    found = {name: getattr(weight, name) for name in BY_ROW}
    parts = {name: tensor[:, start:end] for name, tensor in found.items() if tensor is not None}
    return replace(weight, rows=end - start, planes=tuple(plane[start:end] for plane in weight.planes), **parts)


@dataclass(frozen=True, slots=True, eq=False)
class Unpacked:
    """Codes and scales row by row, as unpacking a file gives them."""

    codes: torch.Tensor  # [N, C] uint8
    scales: torch.Tensor  # [N, C / group]
    offsets: torch.Tensor | None = None
    super_scales: torch.Tensor | None = None  # [N, C / 256]
    super_offsets: torch.Tensor | None = None


def pack(unpacked: Unpacked, scheme: Scheme, *, codebook: torch.Tensor | None = None) -> PlaneWeight:
    """Cut codes into planes. A part of the rows at a time keeps what is needed in between small."""
    rows, columns = unpacked.codes.shape
    padded = -(-columns // scheme.pad) * scheme.pad
    codes = torch.nn.functional.pad(unpacked.codes, (0, padded - columns)).view(rows, -1, 4, scheme.part)
    planes, at = [], 0
    for bits in scheme.planes:
        planes.append(_pack_plane((codes >> at) & ((1 << bits) - 1), bits))
        at += bits
    return PlaneWeight(
        scheme,
        rows,
        columns,
        tuple(planes),
        _transposed(unpacked.scales, padded // scheme.group),
        _transposed(unpacked.offsets, padded // scheme.group),
        _transposed(unpacked.super_scales, -(-padded // SUPER)),
        _transposed(unpacked.super_offsets, -(-padded // SUPER)),
        codebook,
    )


def _pack_plane(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """codes [N, runs, 4, part] → lanes"""
    if bits == 1:
        rows, runs, _, part = codes.shape
        codes = codes.reshape(rows, runs // 2, 8, part)
    lanes = torch.zeros(codes.shape[0], codes.shape[1], codes.shape[3], dtype=torch.int32, device=codes.device)
    for i in range(codes.shape[2]):
        lanes |= codes[:, :, i].to(torch.int32) << (i * bits)
    return lanes.to(LANE_TYPES[bits]).contiguous()  # wraps where the sign bit is a code's


def _transposed(values: torch.Tensor | None, groups: int) -> torch.Tensor | None:
    """[N, G] → [groups, N], zeros where there were none"""
    if values is None:
        return None
    return torch.nn.functional.pad(values, (0, groups - values.shape[1])).t().contiguous()


def dequantize(weight: PlaneWeight, rows: torch.Tensor | None = None) -> torch.Tensor:
    """All rows, or those asked for, in float32. → [n, C]; what kernels are tested against"""
    codes = _codes(weight, rows)
    book = weight.codebook
    if weight.scheme.e2m1:
        book = torch.from_numpy(E2M1_VALUES).to(weight.device, torch.float32)
    values = codes.to(torch.float32) - weight.scheme.zero if book is None else book[codes.to(torch.int64)]
    scales, offsets = _scales(weight, rows)
    values = values * scales if offsets is None else values * scales - offsets
    values = values[:, : weight.columns]
    if weight.order is None:
        return values
    out = torch.empty_like(values)
    out[:, weight.order] = values
    return out


def _codes(weight: PlaneWeight, rows: torch.Tensor | None) -> torch.Tensor:
    """→ [n, padded] int32"""
    out, at = None, 0
    for bits, plane in zip(weight.scheme.planes, weight.planes, strict=True):
        lanes = (plane if rows is None else plane[rows]).to(torch.int32)
        parts = torch.stack([(lanes >> (i * bits)) & ((1 << bits) - 1) for i in range(8 if bits == 1 else 4)], 2)
        codes = parts.reshape(parts.shape[0], -1) << at
        out = codes if out is None else out | codes
        at += bits
    assert out is not None
    return out


def _scales(weight: PlaneWeight, rows: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scale and offset of each column, None where there are no offsets. → two of [n, padded] float32"""
    scheme, padded = weight.scheme, weight.runs * weight.scheme.run

    def spread(values: torch.Tensor | None, columns: int) -> torch.Tensor | None:
        if values is None:
            return None
        chosen = values if rows is None else values[:, rows]
        return chosen.to(torch.float32).repeat_interleave(columns, 0)[:padded].t()

    scales, offsets = spread(weight.scales, scheme.group), spread(weight.offsets, scheme.group)
    if scheme.e2m1:
        e = scales.to(torch.int32)  # type: ignore[union-attr]
        scales = torch.where(e < 2, (e + 1) << 21, (e - 1) << 23).view(torch.float32)
    if scheme.nibbles:
        both = scales.to(torch.int32)  # type: ignore[union-attr]
        scales, offsets = (both & 15).to(torch.float32), (both >> 4).to(torch.float32)
    assert scales is not None
    if weight.super_scales is not None:
        scales = spread(weight.super_scales, SUPER) * scales
        offsets = None if offsets is None else spread(weight.super_offsets, SUPER) * offsets
    return scales, offsets
