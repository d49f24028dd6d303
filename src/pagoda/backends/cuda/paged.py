"""Attention over paged KV in plain torch, piece by piece: what kernels are tested against."""

from __future__ import annotations

import torch

from pagoda.backends.cuda.kv import E4M3, PLAIN
from pagoda.backends.cuda.metadata import Step
from pagoda.backends.specs import AttentionSpec, QueryGrowth
from pagoda.types import BLOCK_SIZE


def grown(queries: torch.Tensor, positions: torch.Tensor, growth: QueryGrowth) -> torch.Tensor:
    """queries [T, H * D], multiplied by what their positions make of them; padding, at -1, as at 0."""
    periods = positions[: len(queries)].clamp_min(0).div(growth.length, rounding_mode="floor").to(torch.float32)
    return (queries * (1 + growth.beta * torch.log1p(periods))[:, None]).to(queries.dtype)


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotary_dim: int, *, interleaved: bool
) -> torch.Tensor:
    half, out = rotary_dim // 2, x.clone()
    first = slice(0, rotary_dim, 2) if interleaved else slice(0, half)
    second = slice(1, rotary_dim, 2) if interleaved else slice(half, rotary_dim)
    a, b = x[..., first], x[..., second]
    out[..., first], out[..., second] = a * cos - b * sin, a * sin + b * cos
    return out


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: int,
    low: int,
    spec: AttentionSpec,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Queries [T, H * D] at positions from `start` on over keys [N, K, D] at positions from `low` on. → [T, H * D]"""
    heads = q.view(len(q), spec.num_kv_heads, -1, spec.head_dim)
    scores = torch.einsum("tkgd,nkd->kgtn", heads, k) * spec.scale
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    key = low + torch.arange(len(k), device=q.device)
    position = start + torch.arange(len(q), device=q.device)[:, None]
    seen = (key <= position) & (key > position - (spec.window or 1 << 30))
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:  # a column that takes its part of the softmax, and has no value
        scores = torch.cat([scores, sinks.view(*scores.shape[:2], 1, 1).expand(-1, -1, len(q), 1)], dim=-1)
    weights = scores.softmax(-1)[..., : len(k)]
    return torch.einsum("kgtn,nkd->tkgd", weights, v).reshape(len(q), -1)


def places(group: int, step: Step, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Block and slot of each of these tokens of the step."""
    at, width = step.meta[2 * group].to(torch.int64), step.meta[2 * group + 1].to(torch.int64)
    position = step.positions[tokens].to(torch.int64)
    entry = at + step.seqs[tokens].to(torch.int64) * width + position // BLOCK_SIZE
    return step.meta[entry].to(torch.int64), position % BLOCK_SIZE


def block_table(group: int, seq: int, step: Step) -> torch.Tensor:
    at, width = int(step.meta[2 * group]), int(step.meta[2 * group + 1])
    return step.meta[at + seq * width : at + (seq + 1) * width].to(torch.int64)


def encode(x: torch.Tensor, kind: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """x [..., D] as KV keeps it, and the scale of each [...]; see `kernels/quants.py`."""
    if kind == PLAIN:
        return x.to(dtype), None
    top, unit = (448.0, 256.0) if kind == E4M3 else (127.0, 1.0)
    most = x.abs().amax(-1)
    scaled = x * (top / most.clamp_min(1e-30))[..., None]
    if kind != E4M3:
        return torch.floor(scaled + 0.5).to(torch.int8), most / top
    bits = (scaled * 2.0**-8).to(torch.float16).view(torch.int16).to(torch.int32)
    size = bits & 0x7FFF
    size = (size + 0x3F + ((size >> 7) & 1)) >> 7
    return (((bits >> 8) & 0x80) | size).to(torch.uint8), most / top * unit


def decode(codes: torch.Tensor, scale: torch.Tensor | None, kind: int) -> torch.Tensor:
    """The inverse, in float32."""
    if kind == E4M3:
        bits = codes.to(torch.int32)
        half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(torch.int16).view(torch.float16)
        codes = half
    values = codes.to(torch.float32)
    return values if scale is None else values * scale[..., None]
