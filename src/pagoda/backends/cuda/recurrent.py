"""Ops with a state in plain torch, token by token: what their kernels are tested against (`backends/arithmetic.py`)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pagoda.backends.cuda import elementwise
from pagoda.backends.cuda.metadata import Step
from pagoda.backends.specs import DeltaSpec, ScanSpec


def sequences(pool: torch.Tensor, step: Step) -> Iterator[tuple[slice, torch.Tensor, list[tuple[int, int]]]]:
    """For each sequence of the step its tokens, a copy of the state that it begins at, and in which places of the pool
    its state is saved, by token from its first."""
    bounds, starts, saves = (values.tolist() for values in (step.seq_starts, step.state_starts, step.state_saves))
    for start, begin, end in zip(starts, bounds[:-1], bounds[1:], strict=True):
        state = torch.zeros_like(pool[0]) if start < 0 else pool[start].clone()
        yield slice(begin, end), state, [(t, save) for t, save in enumerate(saves[begin:end]) if save >= 0]


def short_conv(
    x: torch.Tensor, taps: torch.Tensor, bias: torch.Tensor | None, pool: torch.Tensor, step: Step, *, silu: bool
) -> torch.Tensor:
    """x [T, C] float32, taps [C, N], pool [states, N - 1, C]. → [T, C]"""
    out = torch.zeros_like(x) if bias is None else bias.expand_as(x).clone()
    for tokens, state, saves in sequences(pool, step):
        count = tokens.stop - tokens.start
        rows = torch.cat([state, x[tokens]])
        for i in range(taps.shape[1]):
            out[tokens] += rows[i : i + count] * taps[:, i]
        for t, save in saves:
            pool[save] = rows[t + 1 : t + 1 + len(state)]
    return elementwise.silu(out) if silu else out


def delta_rule(
    qkv: torch.Tensor,
    left: torch.Tensor,
    betas: torch.Tensor,
    pool: torch.Tensor,
    spec: DeltaSpec,
    step: Step,
) -> torch.Tensor:
    """qkv [T, C] float32; left, what remains of a state, and betas [T, H]; pool [states, H, v_dim, k_dim].
    → [T, H * v_dim]"""
    q, k, v = delta_heads(qkv, spec)
    out = torch.empty_like(v)
    for tokens, state, saves in sequences(pool, step):
        slots = dict(saves)
        for t in range(tokens.start, tokens.stop):
            state *= left[t, :, None, None]
            missing = betas[t, :, None] * (v[t] - (state * k[t, :, None]).sum(-1))
            state += missing[:, :, None] * k[t, :, None]
            out[t] = (state * q[t, :, None]).sum(-1)
            if t - tokens.start in slots:
                pool[slots[t - tokens.start]] = state
    return out.flatten(1)


def selective_scan(
    xbc: torch.Tensor,
    left: torch.Tensor,
    steps: torch.Tensor,
    skip: torch.Tensor,
    pool: torch.Tensor,
    spec: ScanSpec,
    step: Step,
) -> torch.Tensor:
    """xbc [T, C] float32; left, what remains of a state, and the steps' lengths [T, H]; skip [H]; pool [states, H,
    head_dim, state_dim]. → [T, H * head_dim]"""
    shared = spec.num_groups * spec.state_dim
    x, *of_groups = xbc.split([spec.inner_size, shared, shared], 1)
    x = x.unflatten(1, (spec.num_heads, -1))
    b, c = (
        part.unflatten(1, (spec.num_groups, -1)).repeat_interleave(spec.num_heads // spec.num_groups, 1)
        for part in of_groups
    )
    out = torch.empty_like(x)
    for tokens, state, saves in sequences(pool, step):
        slots = dict(saves)
        for t in range(tokens.start, tokens.stop):
            state *= left[t, :, None, None]
            state += (steps[t, :, None] * x[t])[:, :, None] * b[t, :, None]
            out[t] = (state * c[t, :, None]).sum(-1) + skip[:, None] * x[t]
            if t - tokens.start in slots:
                pool[slots[t - tokens.start]] = state
    return out.flatten(1)


def delta_heads(qkv: torch.Tensor, spec: DeltaSpec) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q and k of length 1, q over sqrt(k_dim), a key head for each value head; and v. → [T, H, dim] each"""
    keys = spec.num_k_heads * spec.k_dim
    q, k, v = (part.unflatten(1, (-1, size)) for part, size in zip(
        qkv.split([keys, keys, spec.num_v_heads * spec.v_dim], 1), (spec.k_dim, spec.k_dim, spec.v_dim), strict=True
    ))  # fmt: skip
    heads = [spec.k_head(j) for j in range(spec.num_v_heads)]
    q, k = (x[:, heads] / torch.sqrt(x[:, heads].square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    return q * spec.k_dim**-0.5, k, v
