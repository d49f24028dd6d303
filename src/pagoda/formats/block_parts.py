"""What block decoders share: pieces of blocks [N, bytes] as arrays."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pagoda.types import FloatArray

Bytes: TypeAlias = npt.NDArray[np.uint8]


def f16(b: Bytes, at: int) -> FloatArray:
    """The f16 at byte `at` of each block. → [N, 1]"""
    return np.ascontiguousarray(b[:, at : at + 2]).view("<f2").astype(np.float32)


def words(b: Bytes, type: str) -> npt.NDArray[np.int64]:
    """Bytes [N, n] as little-endian numbers of numpy's `type`, such as "<u2", widened. → [N, n / size]"""
    return np.ascontiguousarray(b).view(type).astype(np.int64)


def nibbles(q: Bytes) -> Bytes:
    """[..., n] bytes → [..., 2, n]: low nibbles, then high ones."""
    return np.stack([q & 15, q >> 4], axis=-2)


def crumbs(q: Bytes) -> Bytes:
    """[..., n] bytes → [..., 4, n]: bits 0-1, 2-3, 4-5, 6-7."""
    return np.stack([(q >> s) & 3 for s in (0, 2, 4, 6)], axis=-2)
