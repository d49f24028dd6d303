"""Ops with a state. What is kept of a sequence lies in slots of a pool; a step begins at one and saves in others, maybe
in the one that it began at.

`_short_conv`: a token and some columns a program. Programs of one sequence run in any order, so where it has several
tokens the states that the step begins at are copied first. A thread has one column, and loads a row of its state before
it stores what comes in its place.

`_delta_rule` and `_selective_scan`: a sequence and some columns of one head's state a program, which keeps them in
registers and goes through the tokens one after the other: so no bit depends on how a prompt was cut, nor on the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pagoda.backends.cuda.kernels.common import load_parts, power_of_two
from pagoda.backends.cuda.metadata import Step
from pagoda.backends.specs import DeltaSpec, ScanSpec

COLUMNS = 128  # of a program: a thread each
STATE = 2048  # numbers of a head's state that a program keeps


@triton.jit
def _short_conv(
    x_ptr, before_ptr, pool_ptr, taps_ptr, bias_ptr, out_ptr, seqs_ptr, seq_starts_ptr, state_starts_ptr, saves_ptr,
    columns, x_part, x_row,
    TAPS: tl.constexpr, PARTS: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr, COPIED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    seq = tl.load(seqs_ptr + token)
    begin = tl.load(seq_starts_ptr + seq)
    slot = tl.load(state_starts_ptr + seq)
    save = tl.load(saves_ptr + token).to(tl.int64)
    kept = inside & (slot >= 0)
    if COPIED:
        slot = seq
    before = before_ptr + slot.to(tl.int64) * (TAPS - 1) * columns + column
    to = pool_ptr + save * (TAPS - 1) * columns + column
    total = tl.zeros([BLOCK], tl.float32)
    if BIAS:
        total = tl.load(bias_ptr + column, mask=inside, other=0.0)
    for i in tl.static_range(TAPS):
        row = token - (TAPS - 1) + i
        here = inside & (row >= begin)
        value = load_parts(x_ptr + row.to(tl.int64) * x_row + column, here, x_part, PARTS)
        value += tl.load(before + (row - begin + TAPS - 1) * columns, mask=kept & (row < begin), other=0.0)
        total += value * tl.load(taps_ptr + column * TAPS + i, mask=inside, other=0.0)
        if i > 0:
            tl.store(to + (i - 1) * columns, value, mask=inside & (save >= 0))
    if SILU:
        total = total * tl.sigmoid(total)
    tl.store(out_ptr + token.to(tl.int64) * columns + column, total, mask=inside)


def short_conv(
    x: torch.Tensor, taps: torch.Tensor, bias: torch.Tensor | None, pool: torch.Tensor, step: Step, *, silu: bool
) -> torch.Tensor:
    """x [S, T, C], taps [C, N], bias [C], pool [states, N - 1, C] float32. → [1, T, C] float32"""
    tokens, columns = x.shape[1:]
    out = torch.empty((1, tokens, columns), dtype=torch.float32, device=x.device)
    copied = step.longest > 1
    before = pool.index_select(0, step.state_starts.clamp_min(0)) if copied else pool
    _short_conv[(tokens, triton.cdiv(columns, COLUMNS))](
        x, before, pool, taps, taps if bias is None else bias, out,
        step.seqs, step.seq_starts, step.state_starts, step.state_saves, columns, x.stride(0), x.stride(1),
        TAPS=taps.shape[1], PARTS=x.shape[0], BIAS=bias is not None, SILU=silu, COPIED=copied,
        BLOCK=COLUMNS, num_warps=COLUMNS // 32,
    )  # fmt: skip
    return out


@triton.jit
def _softplus(x):
    """log(1 + e^x)"""
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _unit(x):
    """x over its length."""
    return x / tl.sqrt(tl.sum(x * x, axis=0) + 1e-6)


@triton.jit
def _delta_rule(
    qkv_ptr, alpha_ptr, beta_ptr, decay_ptr, dt_bias_ptr, pool_ptr, out_ptr, seq_starts_ptr, state_starts_ptr,
    saves_ptr, qkv_part, qkv_row, alpha_part, alpha_row, beta_part, beta_row, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, TILED: tl.constexpr,
    QKV_PARTS: tl.constexpr, ALPHA_PARTS: tl.constexpr, BETA_PARTS: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    seq = tl.program_id(2)
    head = tl.program_id(1)
    i = tl.arange(0, BLOCK_K)
    j = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    group = head % G if TILED else head // (H // G)
    begin = tl.load(seq_starts_ptr + seq).to(tl.int64)
    end = tl.load(seq_starts_ptr + seq + 1).to(tl.int64)
    slot = tl.load(state_starts_ptr + seq).to(tl.int64)
    decay = tl.load(decay_ptr + head)
    dt_bias = tl.load(dt_bias_ptr + head)
    inside = (j < V)[:, None] & (i < K)[None, :]
    place = pool_ptr + (head * V + j)[:, None] * K + i[None, :]
    state = tl.load(place + slot * (H * V * K), mask=inside & (slot >= 0), other=0.0)  # [BLOCK_V, BLOCK_K]
    for token in range(0, end - begin):
        t = begin + token
        row = qkv_ptr + t * qkv_row
        q = load_parts(row + group * K + i, i < K, qkv_part, QKV_PARTS)
        k = load_parts(row + (G + group) * K + i, i < K, qkv_part, QKV_PARTS)
        v = load_parts(row + 2 * G * K + head * V + j, j < V, qkv_part, QKV_PARTS)
        dt = load_parts(alpha_ptr + t * alpha_row + head, t < end, alpha_part, ALPHA_PARTS) + dt_bias
        beta = tl.sigmoid(load_parts(beta_ptr + t * beta_row + head, t < end, beta_part, BETA_PARTS))
        q = _unit(q) * scale
        k = _unit(k)
        state = state * tl.exp(decay * _softplus(dt))
        missing = beta * (v - tl.sum(state * k[None, :], axis=1))
        state += missing[:, None] * k[None, :]
        tl.store(out_ptr + (t * H + head) * V + j, tl.sum(state * q[None, :], axis=1), mask=j < V)
        save = tl.load(saves_ptr + t).to(tl.int64)
        if save >= 0:
            tl.store(place + save * (H * V * K), state, mask=inside)


def delta_rule(
    qkv: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor, decay: torch.Tensor, dt_bias: torch.Tensor,
    pool: torch.Tensor, spec: DeltaSpec, step: Step,
) -> torch.Tensor:  # fmt: skip
    """qkv [S, T, C], alpha and beta [S, T, H], decay and dt_bias [H], pool [states, H, v_dim, k_dim] float32.
    → [1, T, H * v_dim] float32"""
    heads, size, block_k = spec.num_v_heads, spec.v_dim, power_of_two(spec.k_dim)
    block_v = max(1, min(power_of_two(size), STATE // block_k))
    out = torch.empty((1, qkv.shape[1], heads * size), dtype=torch.float32, device=qkv.device)
    _delta_rule[(triton.cdiv(size, block_v), heads, step.state_starts.shape[0])](
        qkv, alpha, beta, decay, dt_bias, pool, out, step.seq_starts, step.state_starts, step.state_saves,
        qkv.stride(0), qkv.stride(1), alpha.stride(0), alpha.stride(1), beta.stride(0), beta.stride(1),
        spec.k_dim**-0.5,
        H=heads, G=spec.num_k_heads, K=spec.k_dim, V=size, TILED=spec.tiled,
        QKV_PARTS=qkv.shape[0], ALPHA_PARTS=alpha.shape[0], BETA_PARTS=beta.shape[0],
        BLOCK_K=block_k, BLOCK_V=block_v, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _selective_scan(
    xbc_ptr, dt_ptr, decay_ptr, dt_bias_ptr, skip_ptr, pool_ptr, out_ptr, seq_starts_ptr, state_starts_ptr, saves_ptr,
    xbc_part, xbc_row, dt_part, dt_row,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr, XBC_PARTS: tl.constexpr, DT_PARTS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    seq = tl.program_id(2)
    head = tl.program_id(1)
    i = tl.arange(0, BLOCK_N)
    j = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    group = head // (H // G)
    begin = tl.load(seq_starts_ptr + seq).to(tl.int64)
    end = tl.load(seq_starts_ptr + seq + 1).to(tl.int64)
    slot = tl.load(state_starts_ptr + seq).to(tl.int64)
    decay = tl.load(decay_ptr + head)
    dt_bias = tl.load(dt_bias_ptr + head)
    skip = tl.load(skip_ptr + head)
    inside = (j < P)[:, None] & (i < N)[None, :]
    place = pool_ptr + (head * P + j)[:, None] * N + i[None, :]
    state = tl.load(place + slot * (H * P * N), mask=inside & (slot >= 0), other=0.0)  # [BLOCK_P, BLOCK_N]
    for token in range(0, end - begin):
        t = begin + token
        row = xbc_ptr + t * xbc_row
        x = load_parts(row + head * P + j, j < P, xbc_part, XBC_PARTS)
        b = load_parts(row + H * P + group * N + i, i < N, xbc_part, XBC_PARTS)
        c = load_parts(row + H * P + (G + group) * N + i, i < N, xbc_part, XBC_PARTS)
        length = _softplus(load_parts(dt_ptr + t * dt_row + head, t < end, dt_part, DT_PARTS) + dt_bias)
        state = state * tl.exp(decay * length)
        state += (length * x)[:, None] * b[None, :]
        tl.store(out_ptr + (t * H + head) * P + j, tl.sum(state * c[None, :], axis=1) + skip * x, mask=j < P)
        save = tl.load(saves_ptr + t).to(tl.int64)
        if save >= 0:
            tl.store(place + save * (H * P * N), state, mask=inside)


def selective_scan(
    xbc: torch.Tensor, dt: torch.Tensor, decay: torch.Tensor, dt_bias: torch.Tensor, skip: torch.Tensor,
    pool: torch.Tensor, spec: ScanSpec, step: Step,
) -> torch.Tensor:  # fmt: skip
    """xbc [S, T, C], dt [S, T, H], decay, dt_bias and skip [H], pool [states, H, head_dim, state_dim] float32.
    → [1, T, H * head_dim] float32"""
    heads, size, block_n = spec.num_heads, spec.head_dim, power_of_two(spec.state_dim)
    block_p = max(1, min(power_of_two(size), STATE // block_n))
    out = torch.empty((1, xbc.shape[1], heads * size), dtype=torch.float32, device=xbc.device)
    _selective_scan[(triton.cdiv(size, block_p), heads, step.state_starts.shape[0])](
        xbc, dt, decay, dt_bias, skip, pool, out, step.seq_starts, step.state_starts, step.state_saves,
        xbc.stride(0), xbc.stride(1), dt.stride(0), dt.stride(1),
        H=heads, G=spec.num_groups, P=size, N=spec.state_dim, XBC_PARTS=xbc.shape[0], DT_PARTS=dt.shape[0],
        BLOCK_P=block_p, BLOCK_N=block_n, num_warps=4,
    )  # fmt: skip
    return out
