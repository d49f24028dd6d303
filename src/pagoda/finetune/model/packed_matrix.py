"""A packed weight as training needs it: x @ W^T by the engine's kernels, and g @ W on the way back.

The weight stays packed as the engine packs it, so that what is trained on is what is served, and so that it costs its
packed size. g @ W has no kernel of its own: some rows of W at a time are unpacked to plain numbers and multiplied by
torch, in bfloat16 where the CPU multiplies that natively, else in float32.
"""

from __future__ import annotations

import numpy as np
import torch

from pagoda import _native
from pagoda.backends.packed_weights import PackedWeights
from pagoda.types import RawTensor

PANEL = 16  # rows that are packed together
TILE_NUMBERS = 1 << 21  # of W that are unpacked at once: 4 MiB in bfloat16, which a cache holds
MAX_TOKENS = 4096  # that the native product takes at once


def fastest_dtype() -> torch.dtype:
    """What g @ W is computed in: bfloat16 where the CPU has instructions for it."""
    has_bfloat16: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32


class PackedMatrix:
    """W (rows, columns) of a linear layer, which nothing trains."""

    def __init__(self, weights: PackedWeights, raw: RawTensor, backward_dtype: torch.dtype | None = None) -> None:
        self._runtime = weights.runtime
        self._packed: _native.Weight = weights[raw]
        order = weights.order(raw)
        self._order = None if order is None else torch.from_numpy(order.astype(np.int64))
        self._dtype = backward_dtype or fastest_dtype()
        self.rows, self.columns = self._packed.rows, self._packed.columns

    @property
    def num_bytes(self) -> int:
        return self._packed.bytes

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, columns] float32 → x @ W^T [T, rows], without gradients."""
        rows = x.detach().contiguous() if self._order is None else x.detach()[:, self._order]
        out = torch.empty(len(x), self.rows)
        for start in range(0, len(x), MAX_TOKENS):
            part = slice(start, start + MAX_TOKENS)
            self._runtime.matmul(self._packed, rows[part].numpy(), out[part].numpy())
        return out

    def transposed_product(self, g: torch.Tensor) -> torch.Tensor:
        """g [T, rows] float32 → g @ W [T, columns], without gradients."""
        out: torch.Tensor | None = None
        narrow = g.detach().to(self._dtype)
        step = max(TILE_NUMBERS // self.columns // PANEL, 1) * PANEL
        for start in range(0, self.rows, step):
            stop = min(start + step, self.rows)
            part = (narrow[:, start:stop] @ self._unpacked(start, stop)).float()
            out = part if out is None else out.add_(part)
        assert out is not None
        if self._order is None:
            return out
        restored = torch.empty_like(out)
        restored[:, self._order] = out
        return restored

    def numbers(self) -> torch.Tensor:
        """W as it stands for, [rows, columns] float32."""
        tile = torch.empty(self.columns, -(-self.rows // PANEL) * PANEL)
        self._runtime.unpack(self._packed, 0, tile.numpy())
        if self._order is None:
            return tile.T[: self.rows]
        whole = torch.empty(self.rows, self.columns)
        whole[:, self._order] = tile.T[: self.rows]
        return whole

    def _unpacked(self, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of W as numbers, columns in packed order; `start` is a multiple of 16. [rows, columns]"""
        padded = -(-(stop - start) // PANEL) * PANEL
        tile = torch.empty(self.columns, padded, dtype=self._dtype)
        numbers = tile if self._dtype == torch.float32 else tile.view(torch.uint16)
        self._runtime.unpack(self._packed, start // PANEL, numbers.numpy())
        return tile.T[: stop - start]
