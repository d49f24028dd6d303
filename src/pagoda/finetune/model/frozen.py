"""Layers that keep packed weights packed: linears that gradients pass through, and the embedding table."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from pagoda import _native
from pagoda.finetune.model.packed_matrix import PackedMatrix
from pagoda.formats.quantized import QuantizedTensor, as_floats
from pagoda.types import FloatArray, RawTensor


class _Product(torch.autograd.Function):
    """x @ W^T, whose gradient by x is g @ W. W has none, so nothing of the forward pass is kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, matrix: PackedMatrix) -> torch.Tensor:
        ctx.matrix = matrix
        return matrix.product(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.matrix.transposed_product(grads[0]), None


class FrozenLinear(nn.Linear):
    """x @ W^T + bias over a packed W. An `nn.Linear` by type, so that peft puts adapters on it.

    Its `weight` is empty: peft only asks it for device and dtype. Where it needs the numbers, for DoRA, it has a layer
    with a `W_q` dequantize itself.
    """

    def __init__(self, matrix: PackedMatrix, bias: FloatArray | None) -> None:
        nn.Module.__init__(self)
        self.matrix = matrix
        self.in_features, self.out_features = matrix.columns, matrix.rows
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(torch.from_numpy(bias), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _Product.apply(x.reshape(-1, self.in_features), self.matrix)
        out = out.view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias

    @property
    def W_q(self) -> torch.Tensor:
        return self.weight

    def dequantize(self) -> torch.Tensor:
        """W, [out, in] float32."""
        return self.matrix.numbers()


class FrozenEmbedding(nn.Module):
    """Rows of a table that is read from the mapped file, times `scale`."""

    def __init__(self, table: RawTensor, scale: float = 1.0) -> None:
        super().__init__()
        self.table = table
        self.scale = scale
        self._whole = as_floats(table) if isinstance(table, QuantizedTensor) else None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        used, place = np.unique(ids.numpy(), return_inverse=True)
        rows = self._rows(used) * np.float32(self.scale)
        return torch.from_numpy(rows[place.reshape(-1)]).view(*ids.shape, -1)

    def _rows(self, ids: np.ndarray[Any, Any]) -> FloatArray:
        """→ [len(ids), E]"""
        if self._whole is not None:
            whole: FloatArray = self._whole[ids]
            return whole
        out = np.empty((len(ids), self.table.shape[1]), np.float32)
        data = np.ascontiguousarray(self.table.rows()[ids]).reshape(-1)
        _native.dequantize(data, self.table.type, self.table.shape[1], out)
        return out
