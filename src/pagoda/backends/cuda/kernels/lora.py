"""What adapters add to products, for any mix of adapters in two launches: `_shrink` makes hidden = A x, `_expand` adds
B hidden to the product. A program has a tile of tokens of one adapter, whose numbers a table of addresses finds.

A token's sums are in one order whatever else is in its tile, so its bits never depend on the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pagoda.backends.cuda.adapters import FIELDS, TILE, TYPES, Site, StepAdapters
from pagoda.backends.cuda.kernels.common import power_of_two

BLOCK_R = 16  # ranks, the least that tensor cores take


@triton.jit
def _numbers(row, place: tl.constexpr, like_ptr):
    """What the table's row has there, as a pointer to numbers of like_ptr's type."""
    return tl.load(row + place).to(tl.pointer_type(like_ptr.dtype.element_ty))


@triton.jit
def _tile(tiles_ptr, tokens_ptr, TILE: tl.constexpr):
    """This program's adapter, its tokens, and which of them there are."""
    at = tiles_ptr + 3 * tl.program_id(0)
    m = tl.arange(0, TILE)
    live = m < tl.load(at + 2)
    token = tl.load(tokens_ptr + tl.load(at + 1) + m, mask=live, other=0).to(tl.int64)
    return tl.load(at), token, live


@triton.jit(do_not_specialize=["adapters", "hidden_site", "ranks"])
def _shrink(
    x_ptr, table_ptr, tiles_ptr, tokens_ptr, hidden_ptr, like_ptr, float_ptr,
    adapters, columns, x_row, hidden_site, ranks,
    EXACT: tl.constexpr, FIELDS: tl.constexpr, TILE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    site, first = tl.program_id(2), tl.program_id(1) * BLOCK_R
    adapter, token, live = _tile(tiles_ptr, tokens_ptr, TILE)
    row = table_ptr + (site * adapters + adapter) * FIELDS
    rank = tl.load(row + 6)
    if first >= rank:
        return
    r, k = first + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_K)
    x_at = x_ptr + token[:, None] * x_row + k[None, :]
    a_at = _numbers(row, 0, like_ptr) + r[None, :] * columns + k[:, None]
    acc = tl.zeros([TILE, BLOCK_R], tl.float32)
    for start in range(0, columns, BLOCK_K):
        inside = start + k < columns
        x = tl.load(x_at + start, mask=live[:, None] & inside[None, :], other=0.0)
        a = tl.load(a_at + start, mask=inside[:, None] & (r < rank)[None, :], other=0)
        if EXACT:
            acc = tl.dot(x.to(tl.float32), a.to(tl.float32), acc, input_precision="ieee")
        else:
            acc = tl.dot(x, a.to(x.dtype), acc)
    if like_ptr.dtype.element_ty == tl.int8:
        acc *= tl.load(_numbers(row, 2, float_ptr) + r, mask=r < rank, other=0.0)[None, :]
    at = hidden_ptr + site.to(tl.int64) * hidden_site + token[:, None] * ranks + r[None, :]
    tl.store(at, acc, mask=live[:, None] & (r < rank)[None, :])


@triton.jit(do_not_specialize=["adapters", "hidden_site", "ranks"])
def _expand(
    hidden_ptr, table_ptr, tiles_ptr, tokens_ptr, places_ptr, out_ptr, x_ptr, like_ptr, float_ptr,
    adapters, hidden_site, ranks, out_part, out_row,
    PARTS: tl.constexpr, SCALES: tl.constexpr, EXACT: tl.constexpr, FIELDS: tl.constexpr,
    TILE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    site, first = tl.program_id(2), tl.program_id(1) * BLOCK_N
    start, rows = tl.load(places_ptr + 2 * site), tl.load(places_ptr + 2 * site + 1)
    if first >= rows:
        return
    adapter, token, live = _tile(tiles_ptr, tokens_ptr, TILE)
    row = table_ptr + (site * adapters + adapter) * FIELDS
    rank = tl.load(row + 6)
    n, j = first + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_R)
    there = n < rows
    hidden_at = hidden_ptr + site.to(tl.int64) * hidden_site + token[:, None] * ranks + j[None, :]
    b_at = _numbers(row, 1, like_ptr) + n[None, :].to(tl.int64) * rank + j[:, None]
    acc = tl.zeros([TILE, BLOCK_N], tl.float32)
    for start_rank in range(0, rank, BLOCK_R):
        inside = start_rank + j < rank
        hidden = tl.load(hidden_at + start_rank, mask=live[:, None] & inside[None, :], other=0.0)
        b = tl.load(b_at + start_rank, mask=there[None, :] & inside[:, None], other=0)
        if EXACT:
            acc = tl.dot(hidden, b.to(tl.float32), acc, input_precision="ieee")
        else:
            acc = tl.dot(hidden.to(x_ptr.dtype.element_ty), b.to(x_ptr.dtype.element_ty), acc)
    if like_ptr.dtype.element_ty == tl.int8:
        acc *= tl.load(_numbers(row, 3, float_ptr) + n, mask=there & (rank > 0), other=0.0)[None, :]
    bias_ptr, scale_ptr = _numbers(row, 4, float_ptr), _numbers(row, 5, float_ptr)
    acc += tl.load(bias_ptr + n, mask=there & (tl.load(row + 4) != 0), other=0.0)[None, :]
    at = out_ptr + token[:, None] * out_row + start + n[None, :]
    mask = live[:, None] & there[None, :]
    if SCALES:
        scale = tl.load(scale_ptr + n, mask=there & (tl.load(row + 5) != 0), other=1.0)[None, :]
        for part in tl.static_range(1, PARTS):
            other = tl.load(at + part * out_part, mask=mask, other=0.0).to(tl.float32)
            tl.store(at + part * out_part, (other * scale).to(out_ptr.dtype.element_ty), mask=mask)
        acc += tl.load(at, mask=mask, other=0.0).to(tl.float32) * scale
    else:
        acc += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=mask)


def add(x: torch.Tensor, out: torch.Tensor, sites: tuple[Site, ...], places: torch.Tensor, step: StepAdapters) -> None:
    """out [S, T, N] of the product of x [1, T, C] gets what the step's adapters add at `sites`.

    places [sites, 2] int32: the first of a site's columns, and how many.
    """
    tables, tiles = step.tables, len(step.tiles)
    table, ranks = tables.table(tuple(site.name for site in sites)), max(tables.rank, 1)
    type = TYPES[tables.adapters[0].type]
    like = torch.empty(0, dtype=type, device=x.device)
    hidden = torch.empty((len(sites), x.shape[1], ranks), dtype=torch.float32, device=x.device)
    columns, most_rows = x.shape[2], max(site.end - site.start for site in sites)
    exact = x.dtype == torch.float32 or type not in (x.dtype, torch.int8)  # in x's own type nothing would be lost
    shared = {"EXACT": exact, "FIELDS": FIELDS, "TILE": TILE, "BLOCK_R": BLOCK_R, "num_warps": 4}
    _shrink[(tiles, triton.cdiv(ranks, BLOCK_R), len(sites))](
        x, table, step.tiles, step.tokens, hidden, like, hidden, len(tables.adapters), columns, x.stride(1),
        hidden.stride(0), ranks, BLOCK_K=min(128, max(16, power_of_two(columns))), **shared,
    )  # fmt: skip
    _expand[(tiles, triton.cdiv(most_rows, 128), len(sites))](
        hidden, table, step.tiles, step.tokens, places, out, x, like, hidden, len(tables.adapters), hidden.stride(0),
        ranks, out.stride(0), out.stride(1), PARTS=out.shape[0], SCALES=tables.scales_rows, BLOCK_N=128, **shared,
    )  # fmt: skip
