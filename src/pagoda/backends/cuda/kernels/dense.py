"""x @ W.T for 16- and 32-bit weights: what a library does, where Pagoda needs it its own way.

`_skinny` is for one to four tokens: bound by how fast W is read, every weight used once and summed in registers.
`_tiled` is for `--batch-invariant`: one shape of tiles, and columns cut into shares by the shape of W alone, so that a
row's bits are the same in any batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pagoda.backends.cuda.kernels.common import power_of_two


@triton.jit(do_not_specialize=["tokens"])
def _skinny(
    x_ptr, w_ptr, bias_ptr, out_ptr, tokens, rows, columns, x_row,
    HAS_BIAS: tl.constexpr, M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, M)
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros([M, BLOCK_N, BLOCK_K], tl.float32)
    w_at = w_ptr + n.to(tl.int64)[:, None] * columns + k[None, :]
    x_at = x_ptr + m[:, None] * x_row + k[None, :]
    for start in tl.range(0, columns, BLOCK_K, num_stages=4):
        inside = start + k < columns
        w = tl.load(w_at + start, mask=(n < rows)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        x = tl.load(x_at + start, mask=(m < tokens)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        acc += x[:, None, :] * w[None, :, :]
    out = tl.sum(acc, axis=2)
    if HAS_BIAS:
        out += tl.load(bias_ptr + n, mask=n < rows, other=0.0)[None, :]
    at = out_ptr + m.to(tl.int64)[:, None] * rows + n[None, :]
    tl.store(at, out.to(out_ptr.dtype.element_ty), mask=(m < tokens)[:, None] & (n < rows)[None, :])


@triton.jit
def sum_over_columns(
    x_at, there, w_at, inside, start, stop,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows of x, which begin at x_at [M], times rows of w, which begin at w_at [N], over columns [start, stop).
    → [M, N] float32"""
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for at in range(start, stop, BLOCK_K):
        some = at + k < stop
        x = tl.load(x_at[:, None] + (at + k)[None, :], mask=there[:, None] & some[None, :], other=0.0)
        w = tl.load(w_at[None, :] + (at + k)[:, None], mask=some[:, None] & inside[None, :], other=0.0)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=["tokens"])
def _tiled(
    x_ptr, w_ptr, bias_ptr, out_ptr, tokens, rows, columns, x_row, share,
    HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(2)
    acc = sum_over_columns(
        x_ptr + m.to(tl.int64) * x_row, m < tokens, w_ptr + n.to(tl.int64) * columns, n < rows,
        part * share, tl.minimum((part + 1) * share, columns), BLOCK_M, BLOCK_N, BLOCK_K, PRECISION,
    )  # fmt: skip
    if HAS_BIAS:
        bias = tl.load(bias_ptr + n, mask=n < rows, other=0.0)
        acc += tl.where(part == 0, bias, 0.0)[None, :]
    at = out_ptr + (part.to(tl.int64) * tokens + m)[:, None] * rows + n[None, :]
    tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=(m < tokens)[:, None] & (n < rows)[None, :])


def skinny(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """x [1, T ≤ 4, C] → [1, T, N]"""
    tokens, columns = x.shape[1:]
    rows = weight.shape[0]
    out = torch.empty((1, tokens, rows), dtype=dtype, device=x.device)
    padded = power_of_two(tokens)
    block_n = 8 if padded == 1 else 4
    block_k = min(512, power_of_two(columns))
    _skinny[(triton.cdiv(rows, block_n),)](
        x, weight, weight if bias is None else bias, out, tokens, rows, columns, x.stride(1),
        HAS_BIAS=bias is not None, M=padded, BLOCK_N=block_n, BLOCK_K=block_k, num_warps=4,
    )  # fmt: skip
    return out


def fixed_shares(rows: int, columns: int) -> int:
    """Into how many shares columns are cut, by the weight's shape alone: few rows would leave a GPU idle."""
    tiles = triton.cdiv(rows, 128)
    return max(1, min(8, 256 // power_of_two(tiles), columns // 512))


def tiled(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """x [1, T, C] → [S, T, N], float32 where it comes in several parts"""
    tokens, columns = x.shape[1:]
    rows = weight.shape[0]
    parts = fixed_shares(rows, columns)
    share = triton.cdiv(triton.cdiv(columns, parts), 64) * 64
    parts = triton.cdiv(columns, share)
    out = torch.empty((parts, tokens, rows), dtype=dtype if parts == 1 else torch.float32, device=x.device)
    wide = x.dtype == torch.float32  # twice the bytes a tile
    block_n, block_k = (64, 32) if wide else (128, 64)
    _tiled[(triton.cdiv(rows, block_n), triton.cdiv(tokens, 64), parts)](
        x, weight, weight if bias is None else bias, out, tokens, rows, columns, x.stride(1), share,
        HAS_BIAS=bias is not None, BLOCK_M=64, BLOCK_N=block_n, BLOCK_K=block_k, PRECISION="ieee",
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return out
