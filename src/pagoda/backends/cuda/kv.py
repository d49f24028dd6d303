"""KV blocks on the device: a pool a group, and in it the layers one after the other.

    k, v       [layers, blocks, K, 16, D]   f16, bf16, f32, or 8 bits
    scales     [layers, blocks, K, 16] f32  of 8 bits: one a token and head (`kernels/quants.py`)

A head's 16 tokens of a block are contiguous: what attention reads at once. Layers come first, so that one layer's
blocks lie close together and few pages of memory are touched.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pagoda.backends.specs import KVGroup, KVType
from pagoda.types import BLOCK_SIZE

PLAIN, INT8, E4M3 = 0, 1, 2

DTYPES: dict[KVType, tuple[int, torch.dtype]] = {
    "f16": (PLAIN, torch.float16),
    "bf16": (PLAIN, torch.bfloat16),
    "f32": (PLAIN, torch.float32),
    "int8": (INT8, torch.int8),
    "fp8": (E4M3, torch.uint8),
}


@dataclass(frozen=True, slots=True, eq=False)
class KVLayer:
    """One layer's part of a pool."""

    k: torch.Tensor  # [blocks, K, 16, D]
    v: torch.Tensor
    k_scale: torch.Tensor | None  # [blocks, K, 16]
    v_scale: torch.Tensor | None
    kind: int


def block_bytes(group: KVGroup, kv_heads: int, head_dim: int, kv_type: KVType) -> int:
    """Bytes of one block: K and V of all layers of the group, and their scales."""
    kind, dtype = DTYPES[kv_type]
    scale = 0 if kind == PLAIN else 4
    return int(2 * len(group.layers) * kv_heads * BLOCK_SIZE * (head_dim * dtype.itemsize + scale))


class KVPool:
    """The blocks of one group. Contents are zeros at first: a masked lane may multiply what it reads by 0."""

    def __init__(
        self,
        group: KVGroup,
        num_blocks: int,
        kv_heads: int,
        head_dim: int,
        kv_type: KVType,
        device: torch.device,
    ) -> None:
        self.kind, dtype = DTYPES[kv_type]
        shape = (len(group.layers), num_blocks, kv_heads, BLOCK_SIZE, head_dim)
        self.num_blocks = num_blocks
        self.index = {layer: i for i, layer in enumerate(group.layers)}
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self._scales: tuple[torch.Tensor, ...] = ()
        if self.kind != PLAIN:
            self._scales = tuple(torch.zeros(shape[:-1], dtype=torch.float32, device=device) for _ in "kv")

    def layer(self, layer: int) -> KVLayer:
        at = self.index[layer]
        k_scale, v_scale = (scales[at] for scales in self._scales) if self._scales else (None, None)
        return KVLayer(self.k[at], self.v[at], k_scale, v_scale, self.kind)

    def read(self, blocks: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
        """The blocks' contents, part after part. → [N, bytes]"""
        chosen = torch.from_numpy(blocks.astype(np.int64)).to(self.k.device)
        parts = [pool[:, chosen].transpose(0, 1).contiguous() for pool in (self.k, self.v, *self._scales)]
        return np.concatenate([part.view(len(blocks), -1).view(torch.uint8).cpu().numpy() for part in parts], axis=1)

    def write(self, blocks: npt.NDArray[np.int32], data: npt.NDArray[np.uint8]) -> None:
        """Put back what `read` gave."""
        chosen = torch.from_numpy(blocks.astype(np.int64)).to(self.k.device)
        start = 0
        for pool in (self.k, self.v, *self._scales):
            shape = (len(blocks), pool.shape[0], *pool.shape[2:])
            size = pool[:, 0].numel() * pool.element_size()
            part = torch.from_numpy(np.ascontiguousarray(data[:, start : start + size])).view(pool.dtype).view(shape)
            pool[:, chosen] = part.to(pool.device).transpose(0, 1)
            start += size

    def copy(self, pairs: npt.NDArray[np.int32]) -> None:
        """pairs [N, 2] of source and destination block. ValueError: one is outside of the pool."""
        if pairs.size == 0:
            return
        if pairs.min() < 0 or pairs.max() >= self.num_blocks:
            raise ValueError(f"copy of blocks {pairs.tolist()}, but there are {self.num_blocks}")
        chosen = torch.from_numpy(pairs.astype(np.int64))
        if self.k.device.type == "cuda":  # from pinned memory the copy does not wait for the step that runs
            chosen = chosen.pin_memory().to(self.k.device, non_blocking=True)
        for pool in (self.k, self.v, *self._scales):
            pool[:, chosen[:, 1]] = pool[:, chosen[:, 0]]
