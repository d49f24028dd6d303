"""Functions whose bits are the same wherever a number stands in its tensor. torch's own silu, sigmoid and softplus, on
CPUs, round what is left over of whole vectors in another way; its exp and log1p do not.
"""

from __future__ import annotations

import torch


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-x))


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def softplus(x: torch.Tensor) -> torch.Tensor:
    """ln(1 + e^x)"""
    return x.clamp_min(0) + torch.log1p(torch.exp(-x.abs()))
