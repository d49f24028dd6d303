"""Causal attention over paged KV. A program works on a tile of queries: consecutive tokens of one sequence, times the
query heads that share a KV head, so that keys are read once for all of them.

Short tiles (`_split`, `_combine`). The keys of a row are cut into chunks at fixed positions: multiples of a length
that the row's own position decides (256 tokens, doubled until 64 of them reach back as far as it sees). Any number of
programs shares the chunks; each leaves maximum, sum and weighted values, and they are merged in order. So a row's bits
depend on its own sequence alone, never on the batch, nor on how its prompt was cut.

Long tiles (`_long`). A program goes over all keys of its rows with a running maximum: FlashAttention (arXiv
2205.14135), for prompts. Scores are in units of log2, so that exp2 serves. A head's sink, if it has one, is one score
more, taken in after all keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from pagoda.backends.cuda.kernels.common import power_of_two, table_row
from pagoda.backends.cuda.kernels.quants import from_e4m3
from pagoda.backends.cuda.kv import PLAIN, KVLayer
from pagoda.backends.cuda.layer import AttentionLayer
from pagoda.backends.cuda.metadata import Step

CHUNK = 256  # keys of the shortest chunk
MOST = 64  # chunks that a row has, one more where a window starts within one


@triton.jit
def _chunk_length(position, window, CHUNK: tl.constexpr, MOST: tl.constexpr):
    """How many keys a chunk of the row at `position` has. → scalar"""
    span = tl.minimum(position + 1, window)
    length = CHUNK
    for _ in tl.static_range(16):
        length = tl.where(length * MOST < span, length * 2, length)
    return length


@triton.jit
def _scores(
    q, k_pool, k_scales, table, kv_head, start, end, column, row_position, lowest, scale, softcap,
    K: tl.constexpr, D: tl.constexpr, KIND: tl.constexpr, CAPPED: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Masked scores of keys [start, start + BLOCK_N), and where they lie. → [M, N], [N] slots, [N] valid"""
    key = start + tl.arange(0, BLOCK_N)
    valid = key < end
    block = tl.load(table + key // 16, mask=valid, other=0).to(tl.int64)
    valid = valid & (block >= 0)
    slot = (tl.maximum(block, 0) * K + kv_head) * 16 + key % 16
    k = tl.load(
        k_pool + slot[None, :] * D + column[:, None], mask=valid[None, :] & (column < D)[:, None], other=0
    )  # [D, N]
    if KIND == 1:
        k = k.to(q.dtype)
    elif KIND == 2:
        k = from_e4m3(k).to(q.dtype)
    scores = tl.dot(q, k, input_precision=PRECISION) * scale
    if KIND != 0:
        scores = scores * tl.load(k_scales + slot, mask=valid, other=0.0)[None, :]
    if CAPPED:
        scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)
    seen = valid[None, :] & (key[None, :] <= row_position[:, None]) & (key[None, :] >= lowest[:, None])
    return tl.where(seen, scores * 1.4426950408889634, float("-inf")), slot, valid


@triton.jit
def _gather(
    scores, most, total, acc, v_pool, v_scales, slot, valid, column,
    D: tl.constexpr, KIND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take the values of the keys whose scores these are in: the running softmax. → most, total, acc"""
    new = tl.maximum(most, tl.max(scores, axis=1))
    base = tl.where(new == float("-inf"), 0.0, new)  # a row that has seen nothing yet
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(most - base)
    v = tl.load(
        v_pool + slot[:, None] * D + column[None, :], mask=valid[:, None] & (column < D)[None, :], other=0
    )  # [N, D]
    total = total * shrink + tl.sum(weights, axis=1)
    if KIND == 0:
        weights = weights.to(v.dtype)
    else:
        weights = (weights * tl.load(v_scales + slot, mask=valid, other=0.0)[None, :]).to(tl.float16)
        if KIND == 1:
            v = v.to(tl.float16)
        else:
            v = from_e4m3(v)
    acc = acc * shrink[:, None] + tl.dot(weights, v, input_precision=PRECISION)
    return new, total, acc


@triton.jit
def _with_sink(sink, most, total):
    """One score more, which no value belongs to. `most` may be -inf, where nothing was seen.
    → the sum of weights, and what the values gathered so far are multiplied with"""
    sink = sink * 1.4426950408889634
    new = tl.maximum(most, sink)
    shrink = tl.exp2(most - new)
    return total * shrink + tl.exp2(sink - new), shrink


@triton.jit
def _queries(
    q_ptr, k_pool, first, count, kv_head,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, KIND: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The queries of a tile: a row for each token and each head that shares the KV head.
    → q [M, D] as tensor cores take it with these keys; where it lies, and what of it is there [M, D]; token of the
    tile and head [M]"""
    row = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_D)
    token = row // (H // K)
    head = kv_head * (H // K) + row % (H // K)
    offset = (first + token).to(tl.int64)[:, None] * (H * D) + (head * D)[:, None] + column[None, :]
    inside = (token < count)[:, None] & (column < D)[None, :]
    q = tl.load(q_ptr + offset, mask=inside, other=0.0)
    if KIND == 0:
        q = q.to(k_pool.dtype.element_ty)
    else:
        q = q.to(tl.float16)
    return q, offset, inside, token, head


@triton.jit
def _over_keys(
    q, k_pool, v_pool, k_scales, v_scales, table, kv_head, start, stop, row_position, window, scale, softcap,
    K: tl.constexpr, D: tl.constexpr, KIND: tl.constexpr, CAPPED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The softmax of keys [start, stop) and their values. → greatest score [M], sum of weights [M], values [M, D]"""
    column = tl.arange(0, BLOCK_D)
    most = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for at in range(start, stop, BLOCK_N):
        scores, slot, valid = _scores(
            q, k_pool, k_scales, table, kv_head, at, stop, column, row_position, row_position + 1 - window, scale,
            softcap, K, D, KIND, CAPPED, BLOCK_N, PRECISION,
        )  # fmt: skip
        most, total, acc = _gather(scores, most, total, acc, v_pool, v_scales, slot, valid, column, D, KIND, PRECISION)
    return most, total, acc


@triton.jit(do_not_specialize=["longest"])
def _split(
    q_ptr, acc_ptr, stats_ptr, k_pool, v_pool, k_scales, v_scales, meta_ptr, positions_ptr, seqs_ptr, tiles_ptr,
    group, window, scale, softcap, longest,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, KIND: tl.constexpr, CAPPED: tl.constexpr,
    SLOTS: tl.constexpr, CHUNK: tl.constexpr, MOST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    share = tl.program_id(2)
    num_shares = tl.num_programs(2)
    first = tl.load(tiles_ptr + 2 * tile)
    count = tl.load(tiles_ptr + 2 * tile + 1)
    position = tl.load(positions_ptr + first)
    end = tl.where((count > 0) & (position >= 0), position + count, 0)
    q, _, inside, token, head = _queries(q_ptr, k_pool, first, count, kv_head, H, K, D, KIND, BLOCK_M, BLOCK_D)
    table = table_row(meta_ptr, group, tl.load(seqs_ptr + first))
    length = _chunk_length(position, window, CHUNK, MOST)
    begin = tl.maximum(position + 1 - window, 0)
    for chunk in range(begin // length + share, tl.cdiv(end, length), num_shares):
        start = tl.maximum(chunk * length, begin // BLOCK_N * BLOCK_N)
        stop = tl.minimum(chunk * length + length, end)
        most, total, acc = _over_keys(
            q, k_pool, v_pool, k_scales, v_scales, table, kv_head, start, stop, position + token, window, scale,
            softcap, K, D, KIND, CAPPED, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
        to = ((tile * longest + token).to(tl.int64) * H + head) * SLOTS + chunk % SLOTS
        tl.store(stats_ptr + 2 * to, most, mask=token < count)
        tl.store(stats_ptr + 2 * to + 1, total, mask=token < count)
        tl.store(acc_ptr + to[:, None] * D + tl.arange(0, BLOCK_D)[None, :], acc, mask=inside)


@triton.jit(do_not_specialize=["longest"])
def _combine(
    acc_ptr, stats_ptr, out_ptr, sinks_ptr, positions_ptr, tiles_ptr, window, longest,
    H: tl.constexpr, D: tl.constexpr, SLOTS: tl.constexpr, CHUNK: tl.constexpr, MOST: tl.constexpr,
    BLOCK_D: tl.constexpr, STEP: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Merge the chunks of one token and head, in an order that its position fixes."""
    tile = tl.program_id(0) // longest
    at = tl.program_id(0) % longest
    head = tl.program_id(1)
    token = tl.load(tiles_ptr + 2 * tile) + at
    if at < tl.load(tiles_ptr + 2 * tile + 1):
        position = tl.load(positions_ptr + token)
        length = _chunk_length(position, window, CHUNK, MOST)
        begin = tl.maximum(position + 1 - window, 0) // length
        end = tl.cdiv(position + 1, length)
        column = tl.arange(0, BLOCK_D)
        inside = column < D
        most = float("-inf")
        total = 0.0
        acc = tl.zeros([BLOCK_D], tl.float32)
        base = (tl.program_id(0).to(tl.int64) * H + head) * SLOTS
        for start in range(begin, end, STEP):  # so many at once, whose reads need not wait for each other
            chunk = start + tl.arange(0, STEP)
            there = chunk < end
            slot = base + chunk % SLOTS
            chunk_most = tl.load(stats_ptr + 2 * slot, mask=there, other=float("-inf"))
            new = tl.maximum(most, tl.max(chunk_most, axis=0))
            shrink = tl.exp2(most - new)
            grow = tl.exp2(chunk_most - new)
            chunk_total = tl.load(stats_ptr + 2 * slot + 1, mask=there, other=0.0)
            total = total * shrink + tl.sum(chunk_total * grow, axis=0)
            values = tl.load(
                acc_ptr + slot[:, None] * D + column[None, :], mask=there[:, None] & inside[None, :], other=0.0
            )
            acc = acc * shrink + tl.sum(values * grow[:, None], axis=0)
            most = new
        if SINKS:
            total, shrink = _with_sink(tl.load(sinks_ptr + head), most, total)
            acc = acc * shrink
        out = acc / tl.maximum(total, 1e-30)  # a padding token has seen nothing
        tl.store(out_ptr + (token.to(tl.int64) * H + head) * D + column, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _long(
    q_ptr, out_ptr, k_pool, v_pool, k_scales, v_scales, sinks_ptr, meta_ptr, positions_ptr, seqs_ptr, tiles_ptr,
    group, window, scale, softcap,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, KIND: tl.constexpr, CAPPED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
    SINKS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(1)
    kv_head = tl.program_id(0)
    first = tl.load(tiles_ptr + 2 * tile)
    count = tl.load(tiles_ptr + 2 * tile + 1)
    position = tl.load(positions_ptr + first)
    q, offset, inside, token, head = _queries(q_ptr, k_pool, first, count, kv_head, H, K, D, KIND, BLOCK_M, BLOCK_D)
    table = table_row(meta_ptr, group, tl.load(seqs_ptr + first))
    begin = tl.maximum(position + 1 - window, 0) // BLOCK_N * BLOCK_N
    most, total, acc = _over_keys(
        q, k_pool, v_pool, k_scales, v_scales, table, kv_head, begin, position + count, position + token, window, scale,
        softcap, K, D, KIND, CAPPED, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION,
    )  # fmt: skip
    if SINKS:
        total, shrink = _with_sink(tl.load(sinks_ptr + head, mask=head < H, other=0.0), most, total)
        acc = acc * shrink[:, None]
    out = acc / tl.maximum(total, 1e-30)[:, None]
    tl.store(out_ptr + offset, out.to(out_ptr.dtype.element_ty), mask=inside)


# Sizes


@dataclass(frozen=True, slots=True)
class TileShape:
    """Rows of queries and keys of a program's tiles, and the launch options that go with them."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


def short_shape(queries_per_kv_head: int, head_dim: int, bits: int) -> TileShape:
    """`bits` of a number in the KV cache."""
    rows = max(16, power_of_two(queries_per_kv_head))
    if head_dim > 256:
        return TileShape(rows, 16, 4, 2 if bits <= 16 else 1)
    return TileShape(rows, 64 if head_dim <= 128 and bits <= 16 else 32, 4, 3)


def long_shape(queries_per_kv_head: int, head_dim: int, bits: int) -> TileShape:
    group = power_of_two(queries_per_kv_head)
    if bits > 16:  # without tensor cores: what a thread multiplies must fit in its registers
        return TileShape(max(32, group), 16, 8, 2 if head_dim <= 256 else 1)
    if head_dim > 256:
        return TileShape(max(32, group), 16, 8, 2)
    rows = max(64 if head_dim > 128 else 128, group)
    return TileShape(rows, 32 if head_dim > 128 else 64, 8 if rows >= 128 else 4, 3 if head_dim <= 64 else 2)


def num_slots(max_context: int, window: int | None) -> int:
    """Chunks of one row that must be kept apart: a window starts and a tile ends within one."""
    span = max_context if window is None else min(max_context, window)
    return min(-(-span // CHUNK), MOST) + (0 if window is None else 2)


def num_shares(tiles: int, kv_heads: int, slots: int) -> int:
    """Programs that share a row's chunks: enough to fill a large GPU, and no more."""
    return min(power_of_two(slots), max(1, 2048 // power_of_two(tiles * kv_heads)))


def attend_short(
    q: torch.Tensor, out: torch.Tensor, tiles: torch.Tensor, layer: AttentionLayer, kv: KVLayer, step: Step,
    scratch: torch.Tensor, slots: int,
) -> None:  # fmt: skip
    """Attend the queries of short tiles [n, 2]; `scratch` f32 holds the chunks of n * step.short_len tokens."""
    spec = layer.spec
    heads, kv_heads, size = spec.num_heads, spec.num_kv_heads, spec.head_dim
    shape = short_shape(heads // kv_heads, size, 8 * kv.k.element_size())
    window = 1 << 30 if spec.window is None else spec.window
    per = heads * slots  # chunks a token
    tokens = scratch.numel() // (per * (size + 2))
    acc, stats = scratch[: tokens * per * size], scratch[tokens * per * size :]
    none = acc
    _split[(tiles.shape[0], kv_heads, num_shares(tiles.shape[0], kv_heads, slots))](
        q, acc, stats, kv.k, kv.v, none if kv.k_scale is None else kv.k_scale,
        none if kv.v_scale is None else kv.v_scale, step.meta, step.positions, step.seqs, tiles,
        layer.group, window, spec.scale, spec.softcap or 1.0, step.short_len,
        H=heads, K=kv_heads, D=size, KIND=kv.kind, CAPPED=spec.softcap is not None, SLOTS=slots, CHUNK=CHUNK, MOST=MOST,
        BLOCK_M=shape.rows, BLOCK_N=shape.keys, BLOCK_D=max(16, power_of_two(size)), PRECISION="ieee",
        num_warps=shape.num_warps, num_stages=shape.num_stages,
    )  # fmt: skip
    _combine[(tiles.shape[0] * step.short_len, heads)](
        acc, stats, out, none if layer.sinks is None else layer.sinks, step.positions, tiles, window, step.short_len,
        H=heads, D=size, SLOTS=slots, CHUNK=CHUNK, MOST=MOST, BLOCK_D=power_of_two(size),
        STEP=min(16, power_of_two(slots)), SINKS=layer.sinks is not None, num_warps=2,
    )  # fmt: skip


def attend_long(q: torch.Tensor, out: torch.Tensor, layer: AttentionLayer, kv: KVLayer, step: Step) -> None:
    """Attend the queries of the step's long tiles."""
    spec = layer.spec
    heads, kv_heads, size = spec.num_heads, spec.num_kv_heads, spec.head_dim
    shape = long_shape(heads // kv_heads, size, 8 * kv.k.element_size())
    none = q
    _long[(kv_heads, step.long.shape[0])](
        q, out, kv.k, kv.v, none if kv.k_scale is None else kv.k_scale, none if kv.v_scale is None else kv.v_scale,
        none if layer.sinks is None else layer.sinks, step.meta, step.positions, step.seqs, step.long,
        layer.group, 1 << 30 if spec.window is None else spec.window, spec.scale, spec.softcap or 1.0,
        H=heads, K=kv_heads, D=size, KIND=kv.kind, CAPPED=spec.softcap is not None,
        BLOCK_M=shape.rows, BLOCK_N=shape.keys, BLOCK_D=max(16, power_of_two(size)), PRECISION="ieee",
        SINKS=layer.sinks is not None, num_warps=shape.num_warps, num_stages=shape.num_stages,
    )  # fmt: skip


assert PLAIN == 0
