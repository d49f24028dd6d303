"""Rows of quantized weights written out: for embeddings, and for long prompts, where one pass over the weights costs
little beside a library's product."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pagoda.backends.cuda.kernels.common import power_of_two
from pagoda.backends.cuda.kernels.grouped import group_scales, kinds, lane_pointers, numbers, super_scales, tensors
from pagoda.backends.cuda.planes import PlaneWeight


@triton.jit
def _decode(
    chosen_ptr, low_ptr, high_ptr, scales_ptr, offsets_ptr, supers_ptr, super_offsets_ptr, book_ptr, order_ptr, out_ptr,
    factor, rows, columns, runs,
    LOW: tl.constexpr, HIGH: tl.constexpr, PART: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr,
    OFFSET: tl.constexpr, SUPERS: tl.constexpr, NIBBLES: tl.constexpr, BOOK: tl.constexpr, E2M1: tl.constexpr,
    CHOSEN: tl.constexpr, ORDER: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """A row and BLOCK_R runs a program."""
    to = tl.program_id(0).to(tl.int64)
    n = tl.program_id(0)
    if CHOSEN:
        n = tl.load(chosen_ptr + to)
    run = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    j = tl.arange(0, PART)
    some = run < runs
    low = tl.load(lane_pointers(low_ptr, n, runs, run[:, None], j[None, :], LOW, PART), mask=some[:, None], other=0)
    high = low
    if HIGH != 0:
        high = tl.load(
            lane_pointers(high_ptr, n, runs, run[:, None], j[None, :], HIGH, PART), mask=some[:, None], other=0
        )
    over, over_offset = super_scales(supers_ptr, super_offsets_ptr, run, n, rows, some, PART, OFFSET, SUPERS)
    for i in tl.static_range(4):
        scale, offset = group_scales(
            scales_ptr, offsets_ptr, over, over_offset, (run * 4 + i) // (GROUP // PART), n, rows, some,
            OFFSET, NIBBLES, E2M1,
        )  # fmt: skip
        w = numbers(low, high, i, run[:, None], book_ptr, LOW, HIGH, ZERO, BOOK, E2M1) * scale[:, None]
        if OFFSET:
            w -= offset[:, None]
        column = (run * 4 + i) * PART
        place = column[:, None] + j[None, :]
        inside = some[:, None] & (place < columns)
        if ORDER:
            place = tl.load(order_ptr + place, mask=inside, other=0)
        tl.store(out_ptr + to * columns + place, (w * factor).to(out_ptr.dtype.element_ty), mask=inside)


def decode(w: PlaneWeight, rows: torch.Tensor | None, dtype: torch.dtype, *, factor: float = 1.0) -> torch.Tensor:
    """All rows, or those asked for, times factor. → [n, C]"""
    count = w.rows if rows is None else rows.shape[0]
    out = torch.empty((count, w.columns), dtype=dtype, device=w.device)
    block_r = min(8, power_of_two(w.runs))
    none = w.planes[0]
    _decode[(count, triton.cdiv(w.runs, block_r))](
        none if rows is None else rows, *tensors(w), none if w.order is None else w.order, out,
        factor, w.rows, w.columns, w.runs,
        **kinds(w), CHOSEN=rows is not None, ORDER=w.order is not None, BLOCK_R=block_r, num_warps=2,
    )  # fmt: skip
    return out
