"""Which logits are the likeliest, in plain torch: what the kernels are tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pagoda.backends.base import LOGIT_BLOCK


def likeliest(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks of 64 logits that hold the `count` likeliest tokens of each row [R, V].

    → which blocks [R, count] int32, ascending; their logits [R, count, 64]; the maxima of all [R, ceil(V / 64)]
    """
    blocks = _blocks(logits)
    maxima = blocks.amax(-1)
    ranked = torch.sort(maxima, dim=1, descending=True, stable=True).indices[:, :count]
    chosen = ranked.sort(dim=1).values
    values = blocks.gather(1, chosen[:, :, None].expand(-1, -1, LOGIT_BLOCK))
    return chosen.to(torch.int32), values, maxima


def block_weights(logits: torch.Tensor, maxima: torch.Tensor) -> torch.Tensor:
    """The sum of e^(x - the row's greatest x) over each block of 64; V in whole blocks. → [R, V / 64] float32"""
    most = maxima.amax(1)[:, None, None]
    lanes = _weigh(_blocks(logits), most).unflatten(-1, (-1, 16))
    total = torch.zeros_like(lanes[:, :, 0])
    for part in lanes.unbind(2):
        total = total + part
    for half in (8, 4, 2, 1):
        total = total[..., :half] + total[..., half:]
    return total[..., 0]


def _blocks(logits: torch.Tensor) -> torch.Tensor:
    """[R, V] → [R, ceil(V / 64), 64]"""
    rest = -logits.shape[1] % LOGIT_BLOCK
    return F.pad(logits, (0, rest), value=float("-inf")).unflatten(1, (-1, LOGIT_BLOCK))


def _weigh(x: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
    """e^(x - most), operation by operation as the sampler on the host (`csrc/sampler_passes.inl`)."""
    t = ((x - most) * 1.44269504).clamp_min(-127.0)
    shifted = t + 12582912.0
    r = t - (shifted - 12582912.0)
    r2 = r * r
    high = (0.24022242 + 0.055507336 * r) + r2 * (0.009671513 + 0.0013264727 * r)
    y = (1.0 + 0.693147 * r) + r2 * high
    return (y.view(torch.int32) + (shifted.view(torch.int32) << 23)).view(torch.float32)
