"""Keys and values of one KV group in numpy's float32, in blocks, as the reference backend keeps them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from pagoda.types import BLOCK_SIZE, FloatArray, Int32Array


class PagedKV:
    """Keys and values of each layer of a group, [blocks, BLOCK_SIZE, K, D] by the layer's own K and D.

    keys_alone: layers whose values are a part of their keys.
    """

    def __init__(self, heads: Mapping[int, tuple[int, int]], num_blocks: int, keys_alone: Collection[int] = ()) -> None:
        self.num_blocks = num_blocks
        shapes = {layer: (num_blocks, BLOCK_SIZE, *heads_and_size) for layer, heads_and_size in heads.items()}
        self.k = {layer: np.zeros(shape, dtype=np.float32) for layer, shape in shapes.items()}
        self.v = {
            layer: np.zeros(shape, dtype=np.float32) for layer, shape in shapes.items() if layer not in keys_alone
        }

    @property
    def arrays(self) -> list[FloatArray]:
        """All of them, keys first."""
        return [*self.k.values(), *self.v.values()]

    def store(self, layer: int, table: Int32Array, positions: Int32Array, k: FloatArray, v: FloatArray | None) -> None:
        """Put k, v [T, K * D] of one sequence where its block table says."""
        blocks = self._blocks(table, positions // BLOCK_SIZE)
        for pool, values in ((self.k, k), (self.v, v)):
            if values is None:
                continue
            pool[layer][blocks, positions % BLOCK_SIZE] = values.reshape(-1, *pool[layer].shape[-2:])

    def load(self, layer: int, table: Int32Array, first: int, last: int) -> tuple[FloatArray, FloatArray]:
        """Keys and values of positions [first, last), keys twice where they stand for both. → two of [N, K, D]"""
        start = first // BLOCK_SIZE
        blocks = self._blocks(table, np.arange(start, (last - 1) // BLOCK_SIZE + 1))
        rows = slice(first - start * BLOCK_SIZE, last - start * BLOCK_SIZE)
        pools = self.k[layer], self.v.get(layer, self.k[layer])
        k, v = (pool[blocks].reshape(-1, *pool.shape[-2:])[rows] for pool in pools)
        return k, v

    def _blocks(self, table: Int32Array, indices: npt.NDArray[np.integer]) -> Int32Array:
        blocks: Int32Array = table[indices]
        assert ((blocks >= 0) & (blocks < self.num_blocks)).all(), f"blocks {blocks} of {self.num_blocks} are touched"
        return blocks
