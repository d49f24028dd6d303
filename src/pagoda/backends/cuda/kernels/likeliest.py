"""The blocks of 64 logits that hold a row's likeliest tokens, so that not whole rows travel to the host.

Tokens rank by logit, equals by id, the lower first; blocks rank by their maxima, equals by their place. The n likeliest
tokens lie in the n blocks that rank highest: whoever's block ranks lower has n tokens before it, one in each of those.

Sums of weights are those of the sampler on the host (`csrc/sampler_passes.inl`), operation by operation, so that
logprobs have the same bits: products are not contracted, and lanes are added in its order.

Bytes: logits once for the maxima, once more for the sums where logprobs are wanted; 4 R V together, out of an L2 cache
that holds them up to 64 rows or so. What leaves is 260 bytes a block instead of 4 V a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pagoda.backends.base import LOGIT_BLOCK
from pagoda.backends.cuda.kernels.common import power_of_two

GROUP = 32  # blocks of one program: 8 KB


@triton.jit
def _maxima(logits_ptr, out_ptr, columns, blocks, stride, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    column = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = tl.load(logits_ptr + row * stride + column, mask=column < columns, other=float("-inf"))
    odd = tl.max((x != x).to(tl.int32), axis=1)
    most = tl.max(tl.where(x != x, float("-inf"), x), axis=1)
    tl.store(out_ptr + row * blocks + block, tl.where(odd != 0, float("nan"), most), mask=block < blocks)


@triton.jit(do_not_specialize=["count"])
def _rank(maxima_ptr, chosen_ptr, blocks, count, BLOCKS: tl.constexpr):
    """The `count` blocks of one row that rank highest, in their own order. The last place is found by halving."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    inside = block < blocks
    most = tl.load(maxima_ptr + row * blocks + block, mask=inside, other=0.0)
    bits = tl.where(most == 0.0, 0.0, most).to(tl.int32, bitcast=True)  # zeros are equal, whatever their sign
    key = tl.where(inside, bits ^ ((bits >> 31) & 0x7FFFFFFF), -2147483648)  # orders as the numbers do, NaN on top
    low = tl.full([], -2147483648, tl.int64)  # so many are at least `low`, too few at least `high`
    high = tl.full([], 2147483648, tl.int64)
    for _ in range(32):
        middle = (low + high) >> 1
        enough = tl.sum((key >= middle.to(tl.int32)).to(tl.int32), axis=0) >= count
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    last = low.to(tl.int32)
    above = (key > last) & inside
    equal = (key == last) & inside
    room = count - tl.sum(above.to(tl.int32), axis=0)
    keep = above | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= room))
    place = tl.cumsum(keep.to(tl.int32), axis=0) - 1
    tl.store(chosen_ptr + row * count + place, block, mask=keep)


@triton.jit(do_not_specialize=["count"])
def _gather(
    logits_ptr, chosen_ptr, out_ptr, columns, count, stride,
    GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    block = tl.load(chosen_ptr + row * count + i, mask=i < count, other=0)
    j = tl.arange(0, BLOCK)[None, :]
    column = block[:, None] * BLOCK + j
    x = tl.load(logits_ptr + row * stride + column, mask=column < columns, other=float("-inf"))
    tl.store(out_ptr + (row * count + i[:, None]) * BLOCK + j, x, mask=(i < count)[:, None])


@triton.jit
def _weigh(x, most):
    """e^(x - most), as `weigh` of the sampler with the slope log2(e)."""
    t = tl.maximum((x - most) * 1.44269504, -127.0)
    shifted = t + 12582912.0
    r = t - (shifted - 12582912.0)
    r2 = r * r
    high = (0.24022242 + 0.055507336 * r) + r2 * (0.009671513 + 0.0013264727 * r)
    y = (1.0 + 0.693147 * r) + r2 * high
    return (y.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)).to(tl.float32, bitcast=True)


@triton.jit
def _fold(x, GROUP: tl.constexpr, HALF: tl.constexpr):
    """Lane j of [GROUP, 2 HALF] takes lane j + HALF. → [GROUP, HALF]"""
    a, b = tl.split(tl.permute(tl.reshape(x, [GROUP, 2, HALF]), [0, 2, 1]))
    return a + b


@triton.jit
def _sums(
    logits_ptr, maxima_ptr, out_ptr, blocks, stride, GROUP: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr
):
    """What the tokens of each block weigh beside the row's likeliest one."""
    row = tl.program_id(0).to(tl.int64)
    every = tl.arange(0, BLOCKS)
    most = tl.max(tl.load(maxima_ptr + row * blocks + every, mask=every < blocks, other=float("-inf")), axis=0)
    block = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    inside = (block < blocks)[:, None]
    at = logits_ptr + row * stride + block[:, None] * BLOCK + tl.arange(0, 16)[None, :]
    lanes = tl.zeros([GROUP, 16], tl.float32)
    for i in tl.static_range(BLOCK // 16):
        lanes += _weigh(tl.load(at + 16 * i, mask=inside, other=float("-inf")), most)
    half = _fold(_fold(_fold(lanes, GROUP, 8), GROUP, 4), GROUP, 2)
    a, b = tl.split(half)
    tl.store(out_ptr + row * blocks + block, a + b, mask=block < blocks)


def likeliest(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """logits [R, V] → blocks [R, count] int32, ascending; theirs [R, count, 64]; maxima of all [R, ceil(V / 64)]"""
    rows, columns = logits.shape
    blocks = triton.cdiv(columns, LOGIT_BLOCK)
    device = logits.device
    maxima = torch.empty((rows, blocks), dtype=torch.float32, device=device)
    chosen = torch.empty((rows, count), dtype=torch.int32, device=device)
    values = torch.empty((rows, count, LOGIT_BLOCK), dtype=torch.float32, device=device)
    stride = logits.stride(0)
    _maxima[(rows, triton.cdiv(blocks, GROUP))](
        logits, maxima, columns, blocks, stride, GROUP=GROUP, BLOCK=LOGIT_BLOCK, num_warps=4
    )
    _rank[(rows,)](maxima, chosen, blocks, count, BLOCKS=power_of_two(blocks), num_warps=8)
    _gather[(rows, triton.cdiv(count, 16))](
        logits, chosen, values, columns, count, stride, GROUP=16, BLOCK=LOGIT_BLOCK, num_warps=2
    )
    return chosen, values, maxima


def weights(logits: torch.Tensor, maxima: torch.Tensor) -> torch.Tensor:
    """Weights e^(x - maximum of the row) of each block, summed. logits [R, V], V in whole blocks. → [R, V / 64]"""
    rows, blocks = maxima.shape
    out = torch.empty_like(maxima)
    _sums[(rows, triton.cdiv(blocks, GROUP))](
        logits, maxima, out, blocks, logits.stride(0),
        GROUP=GROUP, BLOCK=LOGIT_BLOCK, BLOCKS=power_of_two(blocks), num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return out
