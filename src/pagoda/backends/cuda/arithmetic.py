"""What ops compute that are functions of their inputs alone, in plain torch: the twin of `backends/arithmetic.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pagoda.backends.arithmetic import LEAST_TOTAL, SWIGLU_ALPHA, SWIGLU_LIMIT
from pagoda.backends.cuda.elementwise import sigmoid, silu
from pagoda.backends.specs import Activation, ExpertGroups, ExpertsSpec


def activated(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    """What a gated layer makes of its gate."""
    if activation == "silu":
        return silu(x)
    if activation == "relu2":
        return F.relu(x).square()
    if activation == "sigmoid":
        return sigmoid(x)
    if activation == "clamped_swiglu":
        x = x.clamp(max=SWIGLU_LIMIT)
        return x * sigmoid(SWIGLU_ALPHA * x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def beside_gate(up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """What the activated gate is multiplied by."""
    return up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT) + 1 if activation == "clamped_swiglu" else up


def expert_weights(router: torch.Tensor, spec: ExpertsSpec, corrections: torch.Tensor | None = None) -> torch.Tensor:
    """How much each expert counts for each token, 0 for those not picked. router [T, N], corrections [N] → [T, N]"""
    scores = router.softmax(-1) if spec.scoring == "softmax" else router.sigmoid()
    ranked = router if corrections is None else scores + corrections
    if spec.groups is not None:
        allowed = _in_best_groups(scores if corrections is None else ranked, spec.groups)
        ranked = ranked.masked_fill(~allowed, float("-inf"))
    picked = torch.sort(ranked, dim=-1, descending=True, stable=True).indices[:, : spec.num_used]
    chosen = scores.gather(-1, picked)
    if spec.normalize:
        chosen = chosen / (chosen.sum(-1, keepdim=True) + LEAST_TOTAL)
    return torch.zeros_like(router).scatter(-1, picked, chosen * spec.scale)


def _in_best_groups(scores: torch.Tensor, groups: ExpertGroups) -> torch.Tensor:
    """Which experts belong to a token's groups, of equals the first. scores [T, N] → [T, N]"""
    each = scores.unflatten(-1, (groups.count, -1))
    of_group = each.topk(groups.best, -1).values.sum(-1)
    used = torch.sort(of_group, dim=-1, descending=True, stable=True).indices[:, : groups.num_used]
    allowed = torch.zeros_like(of_group, dtype=torch.bool).scatter(-1, used, True)
    return allowed.repeat_interleave(each.shape[-1], -1)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., N], weight of the same N or one that is broadcast"""
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., N], weight and bias [N]"""
    return rms_norm(x - x.mean(-1, keepdim=True), weight, eps) + bias


def gaussian_topk(x: torch.Tensor, deviations: float) -> torch.Tensor:
    """See `backends.base.Ops`. x [T, F] → [T, F]"""
    away = x - x.mean(-1, keepdim=True)
    return (away - deviations * away.square().mean(-1, keepdim=True).sqrt()).clamp_min(0)


def mix_streams(x: torch.Tensor, coefficients: torch.Tensor, streams: int) -> torch.Tensor:
    """See `backends.base.Ops`. x [T, M * E], coefficients [T, N * M] → [T, N * E] float32"""
    held, each = x.unflatten(1, (streams, -1)), coefficients.unflatten(1, (-1, streams))
    out = torch.zeros((len(held), each.shape[1], held.shape[2]), dtype=torch.float32, device=x.device)
    for j in range(streams):  # in one order, whatever the number of tokens
        out += each[:, :, j, None] * held[:, None, j]
    return out.flatten(1)
