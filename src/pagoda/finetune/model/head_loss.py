"""The loss of the tokens that are trained, without all of their logits at once.

Logits of some rows at a time are computed, and become at once what they are for: the rows' losses, and the gradient by
the hidden state. Rows that nothing is learned from never reach the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pagoda.finetune.model.packed_matrix import PackedMatrix

PIECE_BYTES = 64 << 20  # of logits that stand at once


@dataclass(frozen=True, slots=True)
class Head:
    """logits = softcap(scale * hidden @ W^T), as `Decoder` states it."""

    matrix: PackedMatrix
    scale: float = 1.0
    softcap: float | None = None

    def loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Σ -log p(target) of hidden [R, E] and targets [R]: a scalar that gradients pass through to `hidden`."""
        total: torch.Tensor = _HeadLoss.apply(hidden, targets, self)
        return total

    def piece(self, hidden: torch.Tensor, targets: torch.Tensor, wants_gradient: bool) -> tuple[float, Any]:
        """The sum of some rows' losses, and its gradient by their hidden states (None: not wanted)."""
        logits = self.matrix.product(hidden)
        if self.scale != 1.0:
            logits.mul_(self.scale)
        slope = None
        if self.softcap is not None:
            ratio = logits.div_(self.softcap).tanh_()
            slope = 1 - ratio * ratio if wants_gradient else None
            logits = ratio.mul_(self.softcap)
        at = targets[:, None]
        picked = logits.gather(1, at)
        total = torch.logsumexp(logits, 1, keepdim=True)
        loss = float((total - picked).sum(dtype=torch.float64))
        if not wants_gradient:
            return loss, None
        logits.sub_(total).exp_()
        logits.scatter_add_(1, at, torch.full_like(picked, -1.0))
        if slope is not None:
            logits.mul_(slope)
        return loss, self.matrix.transposed_product(logits).mul_(self.scale)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
        wants_gradient = ctx.needs_input_grad[0]
        step = max(PIECE_BYTES // (4 * head.matrix.rows), 1)
        losses, gradients = [], []
        for start in range(0, len(hidden), step):
            part = slice(start, start + step)
            loss, gradient = head.piece(hidden[part], targets[part], wants_gradient)
            losses.append(loss)
            gradients.append(gradient)
        if wants_gradient:
            ctx.save_for_backward(torch.cat(gradients) if gradients else torch.zeros_like(hidden))
        return torch.tensor(sum(losses), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None
