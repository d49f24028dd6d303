"""Activations in parts: [S, T, N], whose value is the sum over S, in order. A product that shares its columns out among
programs (split K) leaves its partial sums so, because whoever reads them can add them up as it reads.
"""

from __future__ import annotations

import torch


def whole(x: torch.Tensor) -> torch.Tensor:
    """The sum of the parts [S, T, N], in order and in float32. → [T, N]"""
    total = x[0].to(torch.float32)
    for part in x[1:]:
        total = total + part.to(torch.float32)
    return total
