"""A frozen linear with its adapter, in one step of autograd.

peft's own layer adds the two products by five operations, each of which fills a new array of the product's size, and as
many again on the way back; for small models that is a third of a training step. Here the adapter's part is added into
the product that stands already.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import nn

from pagoda.finetune.model.frozen import FrozenLinear
from pagoda.finetune.model.packed_matrix import PackedMatrix


class _AdaptedProduct(torch.autograd.Function):
    """x @ W^T + scale * (x @ A^T) @ B^T of x [T, in], A [rank, in], B [out, rank] and a packed W [out, in]."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float, matrix: PackedMatrix
    ) -> torch.Tensor:
        inner = x @ a.T
        ctx.save_for_backward(x, inner, a, b)
        ctx.scale, ctx.matrix = scale, matrix
        return matrix.product(x).addmm_(inner, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        x, inner, a, b = ctx.saved_tensors
        grad_inner = (grad @ b).mul_(ctx.scale)
        by_x = ctx.matrix.transposed_product(grad).addmm_(grad_inner, a) if ctx.needs_input_grad[0] else None
        return by_x, grad_inner.T @ x, (grad.T @ inner).mul_(ctx.scale), None, None


class AdaptedLinear(Linear):
    """peft's layer, whose plain case is computed here: one adapter of the usual kind, switched on, without dropout."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        base: FrozenLinear = self.get_base_layer()
        if not self._is_plain() or args or kwargs:
            out: torch.Tensor = super().forward(x, *args, **kwargs)
            return out
        (name,) = self.active_adapters
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        rows = x.reshape(-1, base.in_features)
        out = _AdaptedProduct.apply(rows, a, b, self.scaling[name], base.matrix)
        out = out.view(*x.shape[:-1], base.out_features)
        return out if base.bias is None else out + base.bias

    def _is_plain(self) -> bool:
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return False
        name = self.active_adapters[0]
        if name not in self.lora_A or name in getattr(self, "lora_variant", {}):
            return False
        return isinstance(self.lora_dropout[name], nn.Identity) and self.lora_B[name].bias is None
