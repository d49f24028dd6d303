"""RMS norm or layer norm of the residual stream, with what is added to it before: one read and one write of each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pagoda.backends.cuda.kernels.common import load_parts, power_of_two, warps_for


@triton.jit
def _norm(
    x_ptr, y_ptr, weight_ptr, bias_ptr, out_ptr, eps, columns, y_part, y_row,
    HAS_X: tl.constexpr, PARTS: tl.constexpr, CENTERED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    x = tl.zeros([BLOCK], tl.float32)
    if HAS_X:
        x += tl.load(x_ptr + row * columns + column, mask=inside, other=0.0)
    if PARTS > 0:
        x += load_parts(y_ptr + row * y_row + column, inside, y_part, PARTS)
    if HAS_X and PARTS > 0:
        tl.store(x_ptr + row * columns + column, x, mask=inside)
    if CENTERED:
        x = tl.where(inside, x - tl.sum(x, axis=0) / columns, 0.0)
    mean_square = tl.sum(x * x, axis=0) / columns
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
    normed = x / tl.sqrt(mean_square + eps) * weight
    if CENTERED:
        normed += tl.load(bias_ptr + column, mask=inside, other=0.0)
    tl.store(out_ptr + row * columns + column, normed.to(out_ptr.dtype.element_ty), mask=inside)


def norm(
    x: torch.Tensor | None, y: torch.Tensor | None, weight: torch.Tensor, eps: float, bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """x [1, T, E] f32 becomes x + Σ y [S, T, E], of which this is the norm, a layer norm where there is a bias.
    → [1, T, E]"""
    like = x if x is not None else y
    assert like is not None
    tokens, columns = like.shape[1:]
    out = torch.empty((1, tokens, columns), dtype=dtype, device=like.device)
    block = power_of_two(columns)
    _norm[(tokens,)](
        like if x is None else x, like if y is None else y, weight, weight if bias is None else bias, out, eps, columns,
        0 if y is None else y.stride(0), 0 if y is None else y.stride(1),
        HAS_X=x is not None, PARTS=0 if y is None else y.shape[0], CENTERED=bias is not None, BLOCK=block,
        num_warps=warps_for(block),
    )  # fmt: skip
    return out
