"""A mixture of experts without a word from the host: which experts a token wants is decided, and acted upon, here.

`_route` picks `used` experts for each token: P = T * used pairs of a token and an expert. A product's program works on
a tile: some pairs of one expert, whose rows of the stack [N * F, E] it multiplies with. There are two ways to cut
tiles. For a few pairs each is a tile: an expert that several tokens want is read for each of them, most likely from the
cache (`_single`, as `grouped._skinny`). For many, pairs are sorted by expert, and tiles laid out for as many as there
could be, of which some are empty.
`_combine` adds up the results of a token's experts, in the order of their numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from pagoda.backends.arithmetic import LEAST_TOTAL
from pagoda.backends.cuda.kernels.common import load_parts, power_of_two
from pagoda.backends.cuda.kernels.dense import sum_over_columns
from pagoda.backends.cuda.kernels.grouped import kinds, shares, sum_by_lanes, sum_over_runs, tensors
from pagoda.backends.cuda.planes import PlaneWeight, Weight
from pagoda.backends.specs import ExpertGroups, ExpertsSpec

FEWEST_ROWS, MOST_ROWS = 16, 64  # of a tile: what tensor cores take at least, and what shared memory has room for
COLUMNS = 1024  # of a program of `_combine`


@triton.jit
def _in_best_groups(
    score, n, N: tl.constexpr, GROUPS: tl.constexpr, USED_GROUPS: tl.constexpr, BEST: tl.constexpr, BLOCK: tl.constexpr
):
    """Which experts belong to the groups of the highest scores, of equals the first. score [BLOCK] → [BLOCK]"""
    low = float("-inf")
    of_group = tl.full([BLOCK], low, tl.float32)  # of each expert's group
    for g in tl.static_range(GROUPS):
        member = n // (N // GROUPS) == g
        own = tl.where(member, score, low)
        total = tl.max(own, axis=0)
        if BEST == 2:
            first = tl.min(tl.where(member & (own == total), n, BLOCK), axis=0)
            total += tl.max(tl.where(n == first, low, own), axis=0)
        of_group = tl.where(member, total, of_group)
    allowed = n < 0
    for _ in tl.static_range(USED_GROUPS):
        best = tl.max(tl.where(allowed, low, of_group), axis=0)
        first = tl.min(tl.where((n < N) & (allowed == 0) & (of_group == best), n, BLOCK), axis=0)
        allowed = allowed | ((n // (N // GROUPS) == first // (N // GROUPS)) & (first < N))
    return allowed


@triton.jit
def _route(
    scores_ptr, scales_ptr, corrections_ptr, experts_ptr, weights_ptr, part, row, factor,
    N: tl.constexpr, USED: tl.constexpr, PARTS: tl.constexpr, SIGMOID: tl.constexpr, NORMALIZE: tl.constexpr,
    SCALED: tl.constexpr, CORRECTED: tl.constexpr, GROUPS: tl.constexpr, USED_GROUPS: tl.constexpr,
    BEST: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """One token's experts in ascending order, and how much each counts. Where scores are no numbers fewer are picked;
    their places name expert 0, which then counts nothing."""
    token = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BLOCK)
    inside = n < N
    score = tl.where(inside, load_parts(scores_ptr + token * row + n, inside, part, PARTS), float("-inf"))
    if SIGMOID:
        weight = tl.sigmoid(score)
    else:
        weight = tl.exp(score - tl.max(score, axis=0))
        weight = weight / tl.sum(weight, axis=0)
    if CORRECTED:
        score = weight + tl.load(corrections_ptr + n, mask=inside, other=0.0)
        score = tl.where(inside, score, float("-inf"))
    if GROUPS > 1:
        by = score if CORRECTED else tl.where(inside, weight, float("-inf"))
        score = tl.where(_in_best_groups(by, n, N, GROUPS, USED_GROUPS, BEST, BLOCK), score, float("-inf"))
    picked = tl.zeros([BLOCK], tl.int32)
    for _ in tl.static_range(USED):
        best = tl.max(score, axis=0)
        first = tl.min(tl.where(inside & (picked == 0) & (score == best), n, BLOCK), axis=0)
        picked = tl.where(n == first, 1, picked)
        score = tl.where(n == first, float("-inf"), score)
    weight = tl.where(picked == 1, weight, 0.0)
    if NORMALIZE:
        weight = weight / (tl.sum(weight, axis=0) + LEAST)
    weight = weight * factor
    if SCALED:
        weight *= tl.load(scales_ptr + n, mask=inside, other=0.0)
    slot = tl.arange(0, SLOTS)
    here = ((tl.cumsum(picked, axis=0) - 1)[None, :] == slot[:, None]) & (picked == 1)[None, :]  # [SLOTS, BLOCK]
    at = token * USED + slot
    tl.store(experts_ptr + at, tl.sum(tl.where(here, n[None, :], 0), axis=1), mask=slot < USED)
    tl.store(weights_ptr + at, tl.sum(tl.where(here, weight[None, :], 0.0), axis=1), mask=slot < USED)


@triton.jit
def _tile(tiles_ptr, tile, SORTED: tl.constexpr):
    """→ the tile's expert, its first pair and how many"""
    if SORTED:
        return tl.load(tiles_ptr + 3 * tile), tl.load(tiles_ptr + 3 * tile + 1), tl.load(tiles_ptr + 3 * tile + 2)
    else:
        return tl.load(tiles_ptr + tile), tile, 1


@triton.jit
def _rows_of_x(tokens_ptr, first, count, used, SORTED: tl.constexpr, BY_TOKEN: tl.constexpr, BLOCK_M: tl.constexpr):
    """The places of a tile's pairs, which of them there are, and the rows of x that they read. → three of [M]"""
    m = tl.arange(0, BLOCK_M)
    pair = first + m
    there = m < count
    row = pair
    if BY_TOKEN:
        if SORTED:
            row = tl.load(tokens_ptr + pair, mask=there, other=0)
        row = row // used
    return pair.to(tl.int64), there, row.to(tl.int64)


@triton.jit
def _grouped(
    x_ptr, low_ptr, high_ptr, scales_ptr, offsets_ptr, supers_ptr, super_offsets_ptr, book_ptr, bias_ptr, out_ptr,
    tiles_ptr, order_ptr, used, rows, all_rows, columns, runs, x_row,
    SORTED: tl.constexpr, BY_TOKEN: tl.constexpr,
    LOW: tl.constexpr, HIGH: tl.constexpr, PART: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr,
    OFFSET: tl.constexpr, SUPERS: tl.constexpr, NIBBLES: tl.constexpr, BOOK: tl.constexpr, E2M1: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    expert, first, count = _tile(tiles_ptr, tl.program_id(1), SORTED)
    pair, there, row = _rows_of_x(order_ptr, first, count, used, SORTED, BY_TOKEN, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < rows
    own = n + expert * rows
    acc = sum_over_runs(
        x_ptr + row * x_row, there, own, inside, low_ptr, high_ptr, scales_ptr, offsets_ptr, supers_ptr,
        super_offsets_ptr, book_ptr, all_rows, columns, runs, 0, tl.where(count > 0, runs, 0),
        LOW, HIGH, PART, GROUP, ZERO, OFFSET, SUPERS, NIBBLES, BOOK, E2M1, BLOCK_M, BLOCK_N, PRECISION,
    )  # fmt: skip
    if HAS_BIAS:
        acc += tl.load(bias_ptr + own, mask=inside, other=0.0)[None, :]
    at = out_ptr + pair[:, None] * rows + n[None, :]
    tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=there[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["pairs"])
def _single(
    x_ptr, low_ptr, high_ptr, scales_ptr, offsets_ptr, supers_ptr, super_offsets_ptr, book_ptr, bias_ptr, out_ptr,
    experts_ptr, pairs, used, rows, all_rows, columns, runs, x_row, share, BY_TOKEN: tl.constexpr,
    LOW: tl.constexpr, HIGH: tl.constexpr, PART: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr,
    OFFSET: tl.constexpr, SUPERS: tl.constexpr, NIBBLES: tl.constexpr, BOOK: tl.constexpr, E2M1: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(2)
    part = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < rows
    own = n + tl.load(experts_ptr + pair) * rows
    x_at = x_ptr + (pair // used if BY_TOKEN else pair).to(tl.int64) * x_row
    total, _ = sum_by_lanes(
        x_at, x_at, own, inside, low_ptr, high_ptr, scales_ptr, offsets_ptr, supers_ptr, super_offsets_ptr, book_ptr,
        all_rows, columns, runs, part * share, tl.minimum((part + 1) * share, runs),
        LOW, HIGH, PART, GROUP, ZERO, OFFSET, SUPERS, NIBBLES, BOOK, E2M1, False, BLOCK_N, WIDTH, STAGES,
    )  # fmt: skip
    if HAS_BIAS:
        total += tl.where(part == 0, tl.load(bias_ptr + own, mask=inside, other=0.0), 0.0)
    at = out_ptr + (part * pairs + pair).to(tl.int64) * rows + n
    tl.store(at, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _dense(
    x_ptr, w_ptr, bias_ptr, out_ptr, tiles_ptr, order_ptr, used, rows, columns, x_row,
    SORTED: tl.constexpr, BY_TOKEN: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    expert, first, count = _tile(tiles_ptr, tl.program_id(1), SORTED)
    pair, there, row = _rows_of_x(order_ptr, first, count, used, SORTED, BY_TOKEN, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < rows
    own = n + expert * rows
    acc = sum_over_columns(
        x_ptr + row * x_row, there, w_ptr + own.to(tl.int64) * columns, inside, 0, tl.where(count > 0, columns, 0),
        BLOCK_M, BLOCK_N, BLOCK_K, PRECISION,
    )  # fmt: skip
    if HAS_BIAS:
        acc += tl.load(bias_ptr + own, mask=inside, other=0.0)[None, :]
    at = out_ptr + pair[:, None] * rows + n[None, :]
    tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=there[:, None] & inside[None, :])


@triton.jit
def _combine(
    y_ptr, places_ptr, weights_ptr, out_ptr, columns, y_part,
    USED: tl.constexpr, SORTED: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    total = tl.zeros([BLOCK], tl.float32)
    for i in tl.static_range(USED):
        place = token * USED + i
        weight = tl.load(weights_ptr + place)
        if SORTED:
            place = tl.load(places_ptr + place)
        total += weight * load_parts(y_ptr + place * columns + column, inside, y_part, PARTS)
    tl.store(out_ptr + token * columns + column, total.to(out_ptr.dtype.element_ty), mask=inside)


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """A step's pairs of a token and an expert, in tiles."""

    used: int  # experts of a token
    weights: torch.Tensor  # [T * used] float32, by token, then by expert
    tiles: torch.Tensor  # sorted: [tiles, 3] int32 of expert, first pair and count; else [T * used], the pair's expert
    order: torch.Tensor | None  # [T * used] int32: the sorted pairs; None: they are in the order of tokens
    places: torch.Tensor | None  # [T * used] int64: where each pair is among the sorted
    rows: int  # of a tile
    experts: int  # that there are
    invariant: bool  # whether a row's bits may depend on nothing but the row

    @property
    def count(self) -> int:
        return int(self.weights.shape[0])


def route(
    scores: torch.Tensor,
    spec: ExpertsSpec,
    scales: torch.Tensor | None,
    corrections: torch.Tensor | None = None,
    *,
    invariant: bool,
) -> Pairs:
    """scores [S, T, N], scales and corrections [N]. `invariant`: tiles of one shape, so that a row's bits do not depend
    on how many there are."""
    tokens, experts = scores.shape[1:]
    groups = spec.groups or ExpertGroups(1, 1, 1)
    count, used = tokens * spec.num_used, spec.num_used
    picked = torch.empty(count, dtype=torch.int32, device=scores.device)
    weights = torch.empty(count, dtype=torch.float32, device=scores.device)
    _route[(tokens,)](
        scores, weights if scales is None else scales, weights if corrections is None else corrections,
        picked, weights, scores.stride(0), scores.stride(1), spec.scale,
        N=experts, USED=used, PARTS=scores.shape[0], SIGMOID=spec.scoring == "sigmoid",
        NORMALIZE=spec.normalize, SCALED=scales is not None, CORRECTED=corrections is not None,
        GROUPS=groups.count, USED_GROUPS=groups.num_used, BEST=groups.best, LEAST=LEAST_TOTAL,
        BLOCK=power_of_two(experts), SLOTS=power_of_two(used), num_warps=1,
    )  # fmt: skip
    if count <= experts // 2:
        return Pairs(used, weights, picked, None, None, FEWEST_ROWS, experts, invariant)
    rows = FEWEST_ROWS if invariant else min(max(FEWEST_ROWS, power_of_two(count // experts)), MOST_ROWS)
    return _sorted(picked, weights, used, experts, rows, invariant=invariant)


def _sorted(
    picked: torch.Tensor, weights: torch.Tensor, used: int, experts: int, rows: int, *, invariant: bool
) -> Pairs:
    """All sizes are known beforehand, so nobody waits for the device."""
    count, device = picked.shape[0], picked.device
    experts_in_order, order = torch.sort(picked, stable=True)
    ends = torch.searchsorted(experts_in_order, torch.arange(experts, dtype=torch.int32, device=device), right=True)
    starts = torch.nn.functional.pad(ends[:-1], (1, 0))
    tiles = (ends - starts + rows - 1) // rows  # of each expert
    last = tiles.cumsum(0)
    tile = torch.arange(count // rows + min(experts, count), device=device)
    expert = torch.searchsorted(last, tile, right=True)
    there = expert < experts
    expert = expert.clamp_max(experts - 1)
    first = starts[expert] + (tile - last[expert] + tiles[expert]) * rows
    some = torch.where(there, (ends[expert] - first).clamp_max(rows), 0)
    table = torch.stack([expert, first, some], dim=1).to(torch.int32)
    places = torch.empty_like(order)
    places[order] = torch.arange(count, device=device)
    return Pairs(used, weights, table, order.to(torch.int32), places, rows, experts, invariant)


def product(
    x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, pairs: Pairs, dtype: torch.dtype, *, by_token: bool
) -> torch.Tensor:
    """x [1, T, C], a row a token, or [1, P, C], a row a pair; weight [N * F, C], bias [N, F].
    → [S, P, F], float32 where it comes in several parts"""
    rows = (weight.rows if isinstance(weight, PlaneWeight) else weight.shape[0]) // pairs.experts
    if isinstance(weight, PlaneWeight) and pairs.order is None and not pairs.invariant:
        return _products_of_pairs(x, weight, bias, rows, pairs, dtype, by_token=by_token)
    out = torch.empty((1, pairs.count, rows), dtype=dtype, device=x.device)
    tiles, order = pairs.tiles.shape[0], pairs.tiles if pairs.order is None else pairs.order
    ways = {"SORTED": pairs.order is not None, "BY_TOKEN": by_token, "HAS_BIAS": bias is not None, "PRECISION": "ieee"}
    if isinstance(weight, PlaneWeight):
        _grouped[(triton.cdiv(rows, 64), tiles)](
            x, *tensors(weight), weight.scales if bias is None else bias, out, pairs.tiles, order, pairs.used,
            rows, weight.rows, weight.columns, weight.runs, x.stride(1),
            **ways, **kinds(weight), BLOCK_M=pairs.rows, BLOCK_N=64,
            num_warps=4, num_stages=3 if weight.codebook is None else 1,
        )  # fmt: skip
        return out
    block_n, block_k = (64, 32) if x.dtype == torch.float32 else (128, 64)
    _dense[(triton.cdiv(rows, block_n), tiles)](
        x, weight, weight if bias is None else bias, out, pairs.tiles, order, pairs.used,
        rows, weight.shape[1], x.stride(1),
        **ways, BLOCK_M=pairs.rows, BLOCK_N=block_n, BLOCK_K=block_k,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return out


def _products_of_pairs(
    x: torch.Tensor, w: PlaneWeight, bias: torch.Tensor | None, rows: int, pairs: Pairs, dtype: torch.dtype,
    *, by_token: bool,
) -> torch.Tensor:  # fmt: skip
    """`product`, a pair a program."""
    parts, share = shares(w, triton.cdiv(rows, 64) * pairs.count, 528, 8)
    dtype = dtype if parts == 1 else torch.float32
    out = torch.empty((parts, pairs.count, rows), dtype=dtype, device=x.device)
    _single[(triton.cdiv(rows, 64), parts, pairs.count)](
        x, *tensors(w), w.scales if bias is None else bias, out, pairs.tiles, pairs.count, pairs.used,
        rows, w.rows, w.columns, w.runs, x.stride(1), share,
        BY_TOKEN=by_token, **kinds(w), HAS_BIAS=bias is not None, BLOCK_N=64,
        WIDTH=min(16 // w.planes[0].element_size(), w.scheme.part), STAGES=4 if w.codebook is None else 1, num_warps=4,
    )  # fmt: skip
    return out


def combine(y: torch.Tensor, pairs: Pairs, dtype: torch.dtype) -> torch.Tensor:
    """y [S, P, E]: of each token the sum over its experts, as they count. → [1, T, E]"""
    tokens, columns = pairs.count // pairs.used, y.shape[2]
    out = torch.empty((1, tokens, columns), dtype=dtype, device=y.device)
    _combine[(tokens, triton.cdiv(columns, COLUMNS))](
        y, pairs.tiles if pairs.places is None else pairs.places, pairs.weights, out, columns, y.stride(0),
        USED=pairs.used, SORTED=pairs.places is not None, PARTS=y.shape[0], BLOCK=COLUMNS, num_warps=4,
    )  # fmt: skip
    return out
