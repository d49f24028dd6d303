"""Block formats of GGUF → codes and scales, in torch, so that a GPU does it. `formats/blocks.py` says what is what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from pagoda.backends.cuda.planes import Scheme, Unpacked
from pagoda.formats.blocks import IQ4_VALUES

Bytes: TypeAlias = torch.Tensor  # [N, blocks, bytes] uint8


def _f16(b: Bytes, at: int) -> torch.Tensor:
    """The f16 at byte `at` of each block. → [N, blocks]"""
    return b[..., at : at + 2].contiguous().view(torch.float16)[..., 0]


def _flat(values: torch.Tensor) -> torch.Tensor:
    """[N, blocks, …] → [N, all]"""
    return values.reshape(values.shape[0], -1)


def _nibbles(q: torch.Tensor) -> torch.Tensor:
    """[..., n] bytes → [..., 2, n]: low nibbles, then high ones."""
    return torch.stack([q & 15, q >> 4], dim=-2)


def _crumbs(q: torch.Tensor) -> torch.Tensor:
    """[..., n] bytes → [..., 4, n]"""
    return torch.stack([(q >> s) & 3 for s in (0, 2, 4, 6)], dim=-2)


def _bits(q: torch.Tensor, dim: int) -> torch.Tensor:
    """The eight bits of each byte, lowest first, along a new dimension."""
    return torch.stack([(q >> s) & 1 for s in range(8)], dim=dim)


def _runs(q: torch.Tensor, size: int) -> torch.Tensor:
    """[..., n] → [..., n / size, size]"""
    return q.reshape(*q.shape[:-1], -1, size)


def _q4_0(b: Bytes) -> Unpacked:
    return Unpacked(_flat(_nibbles(b[..., 2:])), _f16(b, 0))


def _q4_1(b: Bytes) -> Unpacked:
    return Unpacked(_flat(_nibbles(b[..., 4:])), _f16(b, 0), -_f16(b, 2))


def _five_bits(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    fifth = _bits(high, -1).reshape(*high.shape[:-1], 32)
    return _flat(_nibbles(low)) | (_flat(fifth) << 4)


def _q5_0(b: Bytes) -> Unpacked:
    return Unpacked(_five_bits(b[..., 2:6], b[..., 6:]), _f16(b, 0))


def _q5_1(b: Bytes) -> Unpacked:
    return Unpacked(_five_bits(b[..., 4:8], b[..., 8:]), _f16(b, 0), -_f16(b, 2))


def _q8_0(b: Bytes) -> Unpacked:
    return Unpacked(_flat(b[..., 2:] ^ 128), _f16(b, 0))


def _q2_k(b: Bytes) -> Unpacked:
    codes = _crumbs(_runs(b[..., 16:80], 32))
    return Unpacked(_flat(codes), _flat(b[..., :16]), None, _f16(b, 80), _f16(b, 82))


def _q3_k(b: Bytes) -> Unpacked:
    low = _flat(_crumbs(_runs(b[..., 32:96], 32)))
    third = _flat(_bits(b[..., :32], -2))
    packed = b[..., 96:108]
    scales = _flat(_nibbles(packed[..., :8])) | (_flat(_crumbs(packed[..., 8:])) << 4)
    return Unpacked(low | (third << 2), (scales.to(torch.int16) - 32).to(torch.int8), None, _f16(b, 108))


def _k4(b: Bytes, codes: torch.Tensor) -> Unpacked:
    """With the header that Q4_K and Q5_K share."""
    first, second, third = b[..., 4:8], b[..., 8:12], b[..., 12:16]
    scales = torch.cat([first & 63, (third & 15) | (first >> 6 << 4)], dim=-1)
    minima = torch.cat([second & 63, (third >> 4) | (second >> 6 << 4)], dim=-1)
    return Unpacked(_flat(codes), _flat(scales), _flat(minima), _f16(b, 0), _f16(b, 2))


def _q4_k(b: Bytes) -> Unpacked:
    return _k4(b, _nibbles(_runs(b[..., 16:], 32)))


def _q5_k(b: Bytes) -> Unpacked:
    low = _nibbles(_runs(b[..., 48:], 32)).reshape(*b.shape[:-1], 8, 32)
    return _k4(b, low | (_bits(b[..., 16:48], -2) << 4))


def _q6_k(b: Bytes) -> Unpacked:
    low, high = _nibbles(_runs(b[..., :128], 64)), _crumbs(_runs(b[..., 128:192], 32))
    scales = b[..., 192:208].contiguous().view(torch.int8)
    return Unpacked(_flat(low) | (_flat(high) << 4), _flat(scales), None, _f16(b, 208))


def _iq4_xs(b: Bytes) -> Unpacked:
    low = torch.stack([b[..., 4:8] & 15, b[..., 4:8] >> 4], dim=-1).reshape(*b.shape[:-1], 8)
    high = torch.stack([(b[..., 2:4] >> s) & 3 for s in (0, 2, 4, 6)], dim=-1).reshape(*b.shape[:-1], 8)
    scales = ((low | (high << 4)).to(torch.int16) - 32).to(torch.int8)
    return Unpacked(_flat(_nibbles(_runs(b[..., 8:], 16))), _flat(scales), None, _f16(b, 0))


def _mxfp4(b: Bytes) -> Unpacked:
    return Unpacked(_flat(_nibbles(b[..., 1:])), b[..., 0])


@dataclass(frozen=True, slots=True)
class BlockKind:
    scheme: Scheme
    unpack: Callable[[Bytes], Unpacked]
    codebook: tuple[int, ...] | None = None


_IQ4 = tuple(int(v) for v in IQ4_VALUES)

KINDS: dict[str, BlockKind] = {
    "Q4_0": BlockKind(Scheme((4,), 32, zero=8), _q4_0),
    "Q4_1": BlockKind(Scheme((4,), 32), _q4_1),
    "Q5_0": BlockKind(Scheme((4, 1), 32, zero=16), _q5_0),
    "Q5_1": BlockKind(Scheme((4, 1), 32), _q5_1),
    "Q8_0": BlockKind(Scheme((8,), 32, zero=128), _q8_0),
    "IQ4_NL": BlockKind(Scheme((4,), 32), _q4_0, _IQ4),
    "Q2_K": BlockKind(Scheme((2,), 16, nibbles=True), _q2_k),
    "Q3_K": BlockKind(Scheme((2, 1), 16, zero=4), _q3_k),
    "Q4_K": BlockKind(Scheme((4,), 32), _q4_k),
    "Q5_K": BlockKind(Scheme((4, 1), 32), _q5_k),
    "Q6_K": BlockKind(Scheme((4, 2), 16, zero=32), _q6_k),
    "IQ4_XS": BlockKind(Scheme((4,), 32), _iq4_xs, _IQ4),
    "MXFP4": BlockKind(Scheme((4,), 32, e2m1=True), _mxfp4),
}
