"""KV blocks on the device: a pool a group and kind of heads, and in it the layers one after the other.

    k, v       [layers, blocks, K, 16, D]   f16, bf16, f32, or 8 bits
    scales     [layers, blocks, K, 16] f32  of 8 bits: one a token and head (`kernels/quants.py`)

A head's 16 tokens of a block are contiguous: what attention reads at once. Layers come first, so that one layer's
blocks lie close together and few pages of memory are touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pagoda.backends.specs import KVGroup, KVType
from pagoda.types import BLOCK_SIZE

PLAIN, INT8, E4M3 = 0, 1, 2
Heads = tuple[int, int]  # of a layer: KV heads, and their size

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


def block_bytes(heads: Iterable[Heads], kv_type: KVType) -> int:
    """Bytes of one block: K and V of all layers of a group, with such heads, and their scales."""
    kind, dtype = DTYPES[kv_type]
    scale = 0 if kind == PLAIN else 4
    return sum(2 * kv_heads * BLOCK_SIZE * (size * dtype.itemsize + scale) for kv_heads, size in heads)


class KVPool:
    """The blocks of layers whose heads are alike. Contents are zeros at first: a masked lane may multiply what it reads
    by 0."""

    def __init__(
        self, layers: Sequence[int], num_blocks: int, heads: Heads, kv_type: KVType, device: torch.device
    ) -> None:
        self.kind, dtype = DTYPES[kv_type]
        kv_heads, size = heads
        shape = (len(layers), num_blocks, kv_heads, BLOCK_SIZE, size)
        self.index = {layer: i for i, layer in enumerate(layers)}
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.scales: tuple[torch.Tensor, ...] = ()
        if self.kind != PLAIN:
            self.scales = tuple(torch.zeros(shape[:-1], dtype=torch.float32, device=device) for _ in "kv")

    def layer(self, layer: int) -> KVLayer:
        at = self.index[layer]
        k_scale, v_scale = (scales[at] for scales in self.scales) if self.scales else (None, None)
        return KVLayer(self.k[at], self.v[at], k_scale, v_scale, self.kind)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """[layers, blocks, …] each."""
        return self.k, self.v, *self.scales


class KVBlocks:
    """The blocks of one group: a pool for each kind of heads among its layers. `heads`: of every layer."""

    def __init__(
        self, group: KVGroup, num_blocks: int, heads: Mapping[int, Heads], kv_type: KVType, device: torch.device
    ) -> None:
        self.num_blocks, self._device = num_blocks, device
        alike: dict[Heads, list[int]] = {}
        for layer in group.layers:
            alike.setdefault(heads[layer], []).append(layer)
        pools = [KVPool(layers, num_blocks, kind, kv_type, device) for kind, layers in alike.items()]
        self.layers = {layer: pool.layer(layer) for pool in pools for layer in pool.index}
        self._tensors = [tensor for pool in pools for tensor in pool.tensors]

    @property
    def blocks(self) -> list[torch.Tensor]:
        """What blocks consist of: [blocks, layers, …] each."""
        return [tensor.transpose(0, 1) for tensor in self._tensors]

    def copy(self, pairs: npt.NDArray[np.int32]) -> None:
        """pairs [N, 2] of source and destination block. ValueError: one is outside of the pool."""
        if pairs.size == 0:
            return
        if pairs.min() < 0 or pairs.max() >= self.num_blocks:
            raise ValueError(f"copy of blocks {pairs.tolist()}, but there are {self.num_blocks}")
        chosen = torch.from_numpy(pairs.astype(np.int64))
        if self._device.type == "cuda":  # from pinned memory the copy does not wait for the step that runs
            chosen = chosen.pin_memory().to(self._device, non_blocking=True)
        for tensor in self._tensors:
            tensor[:, chosen[:, 1]] = tensor[:, chosen[:, 0]]


def read_blocks(tensors: Sequence[torch.Tensor], blocks: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """The contents of some blocks of tensors [blocks, …], part after part. → [N, bytes]"""
    chosen = torch.from_numpy(blocks.astype(np.int64)).to(tensors[0].device)
    parts = [tensor[chosen].contiguous().view(len(blocks), -1) for tensor in tensors]
    return np.concatenate([part.view(torch.uint8).cpu().numpy() for part in parts], axis=1)


def write_blocks(tensors: Sequence[torch.Tensor], blocks: npt.NDArray[np.int32], data: npt.NDArray[np.uint8]) -> None:
    """Put back what `read_blocks` gave."""
    chosen = torch.from_numpy(blocks.astype(np.int64)).to(tensors[0].device)
    start = 0
    for tensor in tensors:
        size = tensor[0].numel() * tensor.element_size()
        part = torch.from_numpy(np.ascontiguousarray(data[:, start : start + size])).view(tensor.dtype)
        tensor[chosen] = part.view(len(blocks), *tensor.shape[1:]).to(tensor.device)
        start += size
