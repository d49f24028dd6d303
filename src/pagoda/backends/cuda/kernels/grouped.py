"""x @ W.T for quantized weights in planes (`planes.py`).

`_skinny` is for one token or two, `_tiled` for more: codes become numbers in registers, go to tensor cores as they are
needed, and memory sees only the codes.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from pagoda.backends.cuda.kernels.common import power_of_two
from pagoda.backends.cuda.planes import PlaneWeight


@triton.jit
def lane_pointers(plane_ptr, n, runs, run, j, BITS: tl.constexpr, PART: tl.constexpr):
    """Where the lanes of run `run` lie for rows n. A matrix has less than 2^31 lanes: 2^33 weights (`tensors`)."""
    if BITS == 1:
        return plane_ptr + (n * (runs // 2) + run // 2) * PART + j
    else:
        return plane_ptr + (n * runs + run) * PART + j


@triton.jit
def _field(lanes, i: tl.constexpr, run, BITS: tl.constexpr):
    """Part i of the codes in lanes. → int32"""
    if BITS == 1:
        return (lanes.to(tl.int32) >> ((run % 2) * 4 + i)) & 1
    else:
        return (lanes.to(tl.int32) >> (i * BITS)) & ((1 << BITS) - 1)


@triton.jit
def super_scales(
    supers_ptr, super_offsets_ptr, run, n, rows, inside,
    PART: tl.constexpr, OFFSET: tl.constexpr, SUPERS: tl.constexpr,
):  # fmt: skip
    """What scales and offsets of rows n in a run are multiples of: 1 where there are no super-blocks."""
    scale = (n * 0).to(tl.float32) + 1.0
    offset = scale
    if SUPERS:
        at = run // (64 // PART) * rows + n
        scale = tl.load(supers_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if OFFSET:
            offset = tl.load(super_offsets_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return scale, offset


@triton.jit
def group_scales(
    scales_ptr, offsets_ptr, over, over_offset, group, n, rows, inside,
    OFFSET: tl.constexpr, NIBBLES: tl.constexpr, E2M1: tl.constexpr,
):  # fmt: skip
    """Scale and offset of rows n in a group. → two of float32, the second 0 without OFFSET"""
    at = group * rows + n
    scale = tl.load(scales_ptr + at, mask=inside, other=0)
    if E2M1:
        scale = _power_of_two(scale)
    if NIBBLES:
        offset = (scale.to(tl.int32) >> 4).to(tl.float32) * over_offset
        scale = (scale.to(tl.int32) & 15).to(tl.float32)
    elif OFFSET:
        offset = tl.load(offsets_ptr + at, mask=inside, other=0).to(tl.float32) * over_offset
    else:
        offset = over * 0.0
    return scale.to(tl.float32) * over, offset


@triton.jit
def _power_of_two(e):
    """2^(e - 128) of a byte, by the bits of a float32, which below 2^-126 has another form. → float32"""
    e = e.to(tl.int32)
    return tl.where(e < 2, (e + 1) << 21, (e - 1) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _e2m1(code):
    """Twice a number of a sign, two bits of exponent and one of mantissa, which are put where a float32 has them: 2^127
    makes up for its exponent. → float32"""
    return (((code & 7) << 22) | ((code & 8) << 28)).to(tl.float32, bitcast=True) * 1.7014118346046923e38


@triton.jit
def _float(bits):
    """Integers below 2^23 as float32, plus 2^23: one `or` instead of a conversion, which takes several issue slots."""
    return (bits | 0x4B000000).to(tl.float32, bitcast=True)


@triton.jit
def numbers(
    low, high, i: tl.constexpr, run, book_ptr,
    LOW: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, BOOK: tl.constexpr, E2M1: tl.constexpr,
):  # fmt: skip
    """What part i of the codes stands for, before scale and offset: code - zero, the codebook's, or a number of 4 bits.
    → float32"""
    code = _field(low, i, run, LOW)
    if HIGH != 0:
        code |= _field(high, i, run, HIGH) << LOW
    if BOOK:
        return tl.load(book_ptr + code)
    elif E2M1:
        return _e2m1(code)
    else:
        return _float(code) - (8388608.0 + ZERO)


@triton.jit
def _numbers_in_place(lanes, i: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr):
    """`_numbers` times 2^(i BITS), of one plane of up to 4 bits that has the exponent of 2^23 above it: one `and`, one
    subtraction. → float32"""
    shift: tl.constexpr = i * BITS
    mask: tl.constexpr = 0x4B000000 | (((1 << BITS) - 1) << shift)
    return (lanes & mask).to(tl.float32, bitcast=True) - (8388608.0 + (ZERO << shift))


@triton.jit
def _lane_sums(x, ROWS: tl.constexpr, PART: tl.constexpr, WIDTH: tl.constexpr):
    """Sums over WIDTH neighbours, which one thread holds. [ROWS, PART] → [ROWS, PART / WIDTH]"""
    return tl.sum(tl.reshape(x, [ROWS, PART // WIDTH, WIDTH]), axis=2)


@triton.jit
def sum_by_lanes(
    x_at, second_at, n, inside, low_ptr, high_ptr, scales_ptr, offsets_ptr, supers_ptr, super_offsets_ptr, book_ptr,
    rows, columns, runs, start, stop,
    LOW: tl.constexpr, HIGH: tl.constexpr, PART: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr,
    OFFSET: tl.constexpr, SUPERS: tl.constexpr, NIBBLES: tl.constexpr, BOOK: tl.constexpr, E2M1: tl.constexpr,
    TWO: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A row of x, which begins at x_at, and if TWO a second one, times rows n [N] of the weight, over the columns of
    runs [start, stop). → two of [N] float32"""
    IN_PLACE: tl.constexpr = HIGH == 0 and LOW <= 4 and not BOOK and not E2M1
    LANES: tl.constexpr = (1 << 4 * LOW) - 1
    j = tl.arange(0, PART)
    acc = tl.zeros([BLOCK_N, PART // WIDTH], tl.float32)
    acc1 = acc
    for run in tl.range(start, stop, num_stages=STAGES):
        low = tl.load(
            lane_pointers(low_ptr, n[:, None], runs, run, j[None, :], LOW, PART), mask=inside[:, None], other=0
        )
        high = low
        if HIGH != 0:
            high = tl.load(
                lane_pointers(high_ptr, n[:, None], runs, run, j[None, :], HIGH, PART), mask=inside[:, None], other=0
            )
        if IN_PLACE:
            low = (low.to(tl.int32) & LANES) | 0x4B000000
        over, over_offset = super_scales(supers_ptr, super_offsets_ptr, run, n, rows, inside, PART, OFFSET, SUPERS)
        if GROUP % (4 * PART) == 0:
            scale, offset = group_scales(
                scales_ptr, offsets_ptr, over, over_offset, run // (GROUP // (4 * PART)), n, rows, inside,
                OFFSET, NIBBLES, E2M1,
            )  # fmt: skip
        for i in tl.static_range(4):
            if GROUP % (4 * PART) != 0:
                scale, offset = group_scales(
                    scales_ptr, offsets_ptr, over, over_offset, (run * 4 + i) // (GROUP // PART), n, rows, inside,
                    OFFSET, NIBBLES, E2M1,
                )  # fmt: skip
            if IN_PLACE:
                w = _numbers_in_place(low, i, LOW, ZERO)
                factor = scale * (1.0 / (1 << (i * LOW)))
            else:
                w = numbers(low, high, i, run, book_ptr, LOW, HIGH, ZERO, BOOK, E2M1)
                factor = scale
            column = (run * 4 + i) * PART + j
            x = tl.load(x_at + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
            acc += _lane_sums(w * x, BLOCK_N, PART, WIDTH) * factor[:, None]
            if OFFSET:
                acc -= _lane_sums(x, 1, PART, WIDTH) * offset[:, None]
            if TWO:
                x = tl.load(second_at + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
                acc1 += _lane_sums(w * x, BLOCK_N, PART, WIDTH) * factor[:, None]
                if OFFSET:
                    acc1 -= _lane_sums(x, 1, PART, WIDTH) * offset[:, None]
    return tl.sum(acc, axis=1), tl.sum(acc1, axis=1)


@triton.jit(do_not_specialize=["tokens"])
def _skinny(
    x_ptr, low_ptr, high_ptr, scales_ptr, offsets_ptr, supers_ptr, super_offsets_ptr, book_ptr, bias_ptr, out_ptr,
    tokens, rows, columns, runs, x_row, share,
    LOW: tl.constexpr, HIGH: tl.constexpr, PART: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr,
    OFFSET: tl.constexpr, SUPERS: tl.constexpr, NIBBLES: tl.constexpr, BOOK: tl.constexpr, E2M1: tl.constexpr,
    HAS_BIAS: tl.constexpr, TWO: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < rows
    part = tl.program_id(1)
    first, second = sum_by_lanes(
        x_ptr, x_ptr + x_row, n, inside, low_ptr, high_ptr, scales_ptr, offsets_ptr, supers_ptr, super_offsets_ptr,
        book_ptr, rows, columns, runs, part * share, tl.minimum((part + 1) * share, runs),
        LOW, HIGH, PART, GROUP, ZERO, OFFSET, SUPERS, NIBBLES, BOOK, E2M1, TWO, BLOCK_N, WIDTH, STAGES,
    )  # fmt: skip
    bias = tl.zeros([BLOCK_N], tl.float32)
    if HAS_BIAS:
        bias = tl.where(part == 0, tl.load(bias_ptr + n, mask=inside, other=0.0), 0.0)
    at = out_ptr + part.to(tl.int64) * tokens * rows + n
    tl.store(at, (first + bias).to(out_ptr.dtype.element_ty), mask=inside)
    if TWO:
        tl.store(at + rows, (second + bias).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def sum_over_runs(
    x_at, there, n, inside, low_ptr, high_ptr, scales_ptr, offsets_ptr, supers_ptr, super_offsets_ptr, book_ptr,
    rows, columns, runs, start, stop,
    LOW: tl.constexpr, HIGH: tl.constexpr, PART: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr,
    OFFSET: tl.constexpr, SUPERS: tl.constexpr, NIBBLES: tl.constexpr, BOOK: tl.constexpr, E2M1: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows of x, which begin at x_at [M], times rows n [N] of the weight, over the columns of runs [start, stop).
    → [M, N] float32"""
    j = tl.arange(0, PART)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    x_at = x_at[:, None] + j[None, :]
    for run in range(start, stop):
        low = tl.load(
            lane_pointers(low_ptr, n[None, :], runs, run, j[:, None], LOW, PART), mask=inside[None, :], other=0
        )
        high = low
        if HIGH != 0:
            high = tl.load(
                lane_pointers(high_ptr, n[None, :], runs, run, j[:, None], HIGH, PART), mask=inside[None, :], other=0
            )
        over, over_offset = super_scales(supers_ptr, super_offsets_ptr, run, n, rows, inside, PART, OFFSET, SUPERS)
        for i in tl.static_range(4):
            scale, offset = group_scales(
                scales_ptr, offsets_ptr, over, over_offset, (run * 4 + i) // (GROUP // PART), n, rows, inside,
                OFFSET, NIBBLES, E2M1,
            )  # fmt: skip
            w = numbers(low, high, i, run, book_ptr, LOW, HIGH, ZERO, BOOK, E2M1) * scale[None, :]  # [PART, N]
            if OFFSET:
                w -= offset[None, :]
            column = (run * 4 + i) * PART
            x = tl.load(x_at + column, mask=there[:, None] & (column + j < columns)[None, :], other=0.0)
            acc = tl.dot(x, w.to(x.dtype), acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=["tokens"])
def _tiled(
    x_ptr, low_ptr, high_ptr, scales_ptr, offsets_ptr, supers_ptr, super_offsets_ptr, book_ptr, bias_ptr, out_ptr,
    tokens, rows, columns, runs, x_row, share,
    LOW: tl.constexpr, HIGH: tl.constexpr, PART: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr,
    OFFSET: tl.constexpr, SUPERS: tl.constexpr, NIBBLES: tl.constexpr, BOOK: tl.constexpr, E2M1: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(2)
    inside = n < rows
    acc = sum_over_runs(
        x_ptr + m.to(tl.int64) * x_row, m < tokens, n, inside, low_ptr, high_ptr, scales_ptr, offsets_ptr, supers_ptr,
        super_offsets_ptr, book_ptr, rows, columns, runs, part * share, tl.minimum((part + 1) * share, runs),
        LOW, HIGH, PART, GROUP, ZERO, OFFSET, SUPERS, NIBBLES, BOOK, E2M1, BLOCK_M, BLOCK_N, PRECISION,
    )  # fmt: skip
    if HAS_BIAS:
        acc += tl.where(part == 0, tl.load(bias_ptr + n, mask=inside, other=0.0), 0.0)[None, :]
    at = out_ptr + (part.to(tl.int64) * tokens + m)[:, None] * rows + n[None, :]
    tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=(m < tokens)[:, None] & inside[None, :])


def tensors(w: PlaneWeight) -> tuple[torch.Tensor, ...]:
    """What a kernel reads; the first plane stands for what there is none of."""
    none = w.planes[0]
    assert none.numel() < 1 << 31, "offsets of lanes are int32"
    high = w.planes[1] if len(w.planes) == 2 else none
    rest = (w.offsets, w.super_scales, w.super_offsets, w.codebook)
    return (none, high, w.scales, *(none if t is None else t for t in rest))


def kinds(w: PlaneWeight) -> dict[str, Any]:
    """What kernels are compiled for."""
    return {
        "LOW": w.scheme.planes[0],
        "HIGH": w.scheme.planes[1] if len(w.planes) == 2 else 0,
        "PART": w.scheme.part,
        "GROUP": w.scheme.group,
        "ZERO": w.scheme.zero,
        "OFFSET": w.offsets is not None or w.scheme.nibbles,
        "SUPERS": w.super_scales is not None,
        "NIBBLES": w.scheme.nibbles,
        "BOOK": w.codebook is not None,
        "E2M1": w.scheme.e2m1,
    }


def skinny(x: torch.Tensor, w: PlaneWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """x [1, T ≤ 2, C] → [S, T, N], float32 where it comes in several parts"""
    tokens = x.shape[1]
    block_n = 64  # two rows a thread share its part of x; with more, scales would be exchanged through shared memory
    parts, share = shares(w, triton.cdiv(w.rows, block_n), 528, 8)
    out = torch.empty((parts, tokens, w.rows), dtype=dtype if parts == 1 else torch.float32, device=x.device)
    _skinny[(triton.cdiv(w.rows, block_n), parts)](
        x, *tensors(w), w.scales if bias is None else bias, out, tokens, w.rows, w.columns, w.runs, x.stride(1), share,
        **kinds(w), HAS_BIAS=bias is not None, TWO=tokens == 2, BLOCK_N=block_n,
        WIDTH=min(16 // w.planes[0].element_size(), w.scheme.part),
        STAGES=4 if w.codebook is None else 1, num_warps=4,  # a codebook's reads must not be staged
    )  # fmt: skip
    return out


def tiled(
    x: torch.Tensor, w: PlaneWeight, bias: torch.Tensor | None, dtype: torch.dtype, *, invariant: bool
) -> torch.Tensor:
    """x [1, T, C] → [S, T, N]. `invariant`: tiles and shares by the weight's shape alone."""
    tokens = x.shape[1]
    block_m = 64 if invariant else min(max(16, power_of_two(tokens)), 128)
    block_n = 64
    row_tiles = 1 if invariant else triton.cdiv(tokens, block_m)
    parts, share = shares(w, triton.cdiv(w.rows, block_n) * row_tiles, 256, 8)
    out = torch.empty((parts, tokens, w.rows), dtype=dtype if parts == 1 else torch.float32, device=x.device)
    _tiled[(triton.cdiv(w.rows, block_n), triton.cdiv(tokens, block_m), parts)](
        x, *tensors(w), w.scales if bias is None else bias, out, tokens, w.rows, w.columns, w.runs, x.stride(1), share,
        **kinds(w), HAS_BIAS=bias is not None, BLOCK_M=block_m, BLOCK_N=block_n, PRECISION="ieee",
        num_warps=4 if block_m <= 64 else 8, num_stages=3 if w.codebook is None else 1,
    )  # fmt: skip
    return out


def shares(w: PlaneWeight, tiles: int, wanted: int, most: int) -> tuple[int, int]:
    """Parts of the columns so that about `wanted` programs run, and how many runs each takes. → parts, share"""
    parts = max(1, min(most, wanted // tiles, w.runs // 4))
    share = triton.cdiv(w.runs, parts)
    return triton.cdiv(w.runs, share), share
