"""Queries and keys are normed and rotated, keys and values stored in their KV blocks: one pass over what the product
of the attention's first matrices left. Without keys and values, heads are normed or rotated alone."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pagoda.backends.cuda.kernels.common import load_parts, power_of_two, table_row
from pagoda.backends.cuda.kernels.quants import to_e4m3, to_int8
from pagoda.backends.cuda.kv import E4M3, KVLayer
from pagoda.backends.cuda.layer import AttentionLayer, Rotation
from pagoda.backends.cuda.metadata import Angles, Step

HEADS = 8  # of one program


@triton.jit
def _rotated(
    x, row, head, ok, part, cos_ptr, sin_ptr, norm_ptr, eps, token,
    D: tl.constexpr, ROT: tl.constexpr, INTERLEAVED: tl.constexpr, NORM: tl.constexpr, PARTS: tl.constexpr,
    PAIRS: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Heads `head` of one token's row: both sides of the rotated pairs [HEADS, PAIRS], the rest [HEADS, REST], and
    where they belong: columns, and masks."""
    HALF: tl.constexpr = ROT // 2
    pair = tl.arange(0, PAIRS)
    rest = tl.arange(0, REST) + ROT
    first = 2 * pair if INTERLEAVED else pair
    second = 2 * pair + 1 if INTERLEAVED else pair + HALF
    in_pair = ok[:, None] & (pair < HALF)[None, :]
    in_rest = ok[:, None] & (rest < D)[None, :]
    base = x + row + (head * D)[:, None]
    a = load_parts(base + first[None, :], in_pair, part, PARTS)
    b = load_parts(base + second[None, :], in_pair, part, PARTS)
    c = load_parts(base + rest[None, :], in_rest, part, PARTS)
    if NORM:
        mean_square = (tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1) + tl.sum(c * c, axis=1)) / D
        inverse = (1.0 / tl.sqrt(mean_square + eps))[:, None]
        a = a * inverse * tl.load(norm_ptr + first, mask=pair < HALF, other=0.0)[None, :]
        b = b * inverse * tl.load(norm_ptr + second, mask=pair < HALF, other=0.0)[None, :]
        c = c * inverse * tl.load(norm_ptr + rest, mask=rest < D, other=0.0)[None, :]
    cos = tl.load(cos_ptr + token * HALF + pair, mask=pair < HALF, other=0.0)[None, :]
    sin = tl.load(sin_ptr + token * HALF + pair, mask=pair < HALF, other=0.0)[None, :]
    return a * cos - b * sin, a * sin + b * cos, c, first, second, rest, in_pair, in_rest


@triton.jit
def _encoded(x, inverse, KIND: tl.constexpr):
    if KIND == 1:
        return to_int8(x * inverse)
    else:
        return to_e4m3(x * inverse)


@triton.jit
def _put(
    pool, scales, slot, ok, a, b, c, first, second, rest, in_pair, in_rest,
    D: tl.constexpr, KIND: tl.constexpr, TOP: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Store heads at `slot` [HEADS], as they are or as 8 bits with a scale."""
    at = pool + (slot * D)[:, None]
    if KIND == 0:
        kind = pool.dtype.element_ty
        tl.store(at + first[None, :], a.to(kind), mask=in_pair)
        tl.store(at + second[None, :], b.to(kind), mask=in_pair)
        tl.store(at + rest[None, :], c.to(kind), mask=in_rest)
    else:
        most = tl.maximum(tl.max(tl.abs(a), axis=1), tl.max(tl.abs(b), axis=1))
        most = tl.maximum(most, tl.max(tl.abs(c), axis=1))
        inverse = (TOP / tl.maximum(most, 1e-30))[:, None]
        tl.store(scales + slot, most / TOP * UNIT, mask=ok)
        tl.store(at + first[None, :], _encoded(a, inverse, KIND), mask=in_pair)
        tl.store(at + second[None, :], _encoded(b, inverse, KIND), mask=in_pair)
        tl.store(at + rest[None, :], _encoded(c, inverse, KIND), mask=in_rest)


@triton.jit
def _slots(meta_ptr, seqs_ptr, token, position, group, head, K: tl.constexpr):
    """Where the token's KV heads lie in the pool, in units of D. → [HEADS]"""
    row = table_row(meta_ptr, group, tl.load(seqs_ptr + token))
    block = tl.load(row + position // 16, mask=position >= 0, other=0).to(tl.int64)
    return (block * K + head) * 16 + position % 16


@triton.jit
def _queries(
    q_ptr, out_ptr, cos_ptr, sin_ptr, norm_ptr, eps, token, head, part, row,
    H: tl.constexpr, D: tl.constexpr, ROT: tl.constexpr, INTERLEAVED: tl.constexpr, NORM: tl.constexpr,
    PARTS: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    ok = head < H
    a, b, c, first, second, rest, in_pair, in_rest = _rotated(
        q_ptr, token * row, head, ok, part, cos_ptr, sin_ptr, norm_ptr, eps, token,
        D, ROT, INTERLEAVED, NORM, PARTS, PAIRS, REST,
    )  # fmt: skip
    slot = token * H + head
    _put(out_ptr, out_ptr, slot, ok, a, b, c, first, second, rest, in_pair, in_rest, D, 0, 1.0, 1.0)


@triton.jit
def _keys(
    k_ptr, pool, scales, cos_ptr, sin_ptr, norm_ptr, meta_ptr, seqs_ptr, position, group, eps, token, head, part, row,
    K: tl.constexpr, D: tl.constexpr, ROT: tl.constexpr, INTERLEAVED: tl.constexpr, NORM: tl.constexpr,
    PARTS: tl.constexpr, KIND: tl.constexpr, TOP: tl.constexpr, UNIT: tl.constexpr,
    PAIRS: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    ok = head < tl.where(position >= 0, K, 0)  # a padding token stores nothing
    a, b, c, first, second, rest, in_pair, in_rest = _rotated(
        k_ptr, token * row, head, ok, part, cos_ptr, sin_ptr, norm_ptr, eps, token,
        D, ROT, INTERLEAVED, NORM, PARTS, PAIRS, REST,
    )  # fmt: skip
    slot = _slots(meta_ptr, seqs_ptr, token, position, group, head, K)
    _put(pool, scales, slot, ok, a, b, c, first, second, rest, in_pair, in_rest, D, KIND, TOP, UNIT)


@triton.jit
def _values(
    v_ptr, pool, scales, meta_ptr, seqs_ptr, position, group, token, head, part, row,
    K: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr, KIND: tl.constexpr, TOP: tl.constexpr,
    UNIT: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    ok = head < tl.where(position >= 0, K, 0)
    column = tl.arange(0, BLOCK_D)
    inside = ok[:, None] & (column < D)[None, :]
    x = load_parts(v_ptr + token * row + (head * D)[:, None] + column[None, :], inside, part, PARTS)
    slot = _slots(meta_ptr, seqs_ptr, token, position, group, head, K)
    at = pool + (slot * D)[:, None] + column[None, :]
    if KIND == 0:
        tl.store(at, x.to(pool.dtype.element_ty), mask=inside)
    else:
        most = tl.max(tl.abs(x), axis=1)
        tl.store(scales + slot, most / TOP * UNIT, mask=ok)
        tl.store(at, _encoded(x, (TOP / tl.maximum(most, 1e-30))[:, None], KIND), mask=inside)


@triton.jit
def _rope_and_store_kv(
    q_ptr, k_ptr, v_ptr, out_ptr, k_pool, v_pool, k_scales, v_scales, cos_ptr, sin_ptr, q_norm, k_norm,
    meta_ptr, positions_ptr, seqs_ptr, eps, group, q_part, q_row, k_part, k_row, v_part, v_row,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, ROT: tl.constexpr, INTERLEAVED: tl.constexpr,
    Q_NORM: tl.constexpr, K_NORM: tl.constexpr, Q_PARTS: tl.constexpr, K_PARTS: tl.constexpr, V_PARTS: tl.constexpr,
    KIND: tl.constexpr, TOP: tl.constexpr, UNIT: tl.constexpr,
    HEADS: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A token and some heads of one of the three a program."""
    Q_TILES: tl.constexpr = (H + HEADS - 1) // HEADS
    K_TILES: tl.constexpr = (K + HEADS - 1) // HEADS
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    position = tl.load(positions_ptr + token)
    head = tl.arange(0, HEADS)
    if tile < Q_TILES:
        _queries(
            q_ptr, out_ptr, cos_ptr, sin_ptr, q_norm, eps, token, tile * HEADS + head, q_part, q_row,
            H, D, ROT, INTERLEAVED, Q_NORM, Q_PARTS, PAIRS, REST,
        )  # fmt: skip
    elif tile < Q_TILES + K_TILES:
        _keys(
            k_ptr, k_pool, k_scales, cos_ptr, sin_ptr, k_norm, meta_ptr, seqs_ptr, position, group, eps,
            token, (tile - Q_TILES) * HEADS + head, k_part, k_row,
            K, D, ROT, INTERLEAVED, K_NORM, K_PARTS, KIND, TOP, UNIT, PAIRS, REST,
        )  # fmt: skip
    else:
        _values(
            v_ptr, v_pool, v_scales, meta_ptr, seqs_ptr, position, group,
            token, (tile - Q_TILES - K_TILES) * HEADS + head, v_part, v_row,
            K, D, V_PARTS, KIND, TOP, UNIT, BLOCK_D,
        )  # fmt: skip


@triton.jit
def _turned(
    x_ptr, out_ptr, cos_ptr, sin_ptr, norm_ptr, eps, part, row,
    H: tl.constexpr, D: tl.constexpr, ROT: tl.constexpr, INTERLEAVED: tl.constexpr, NORM: tl.constexpr,
    PARTS: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """A token and some heads a program."""
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    _queries(
        x_ptr, out_ptr, cos_ptr, sin_ptr, norm_ptr, eps, tl.program_id(0).to(tl.int64), head, part, row,
        H, D, ROT, INTERLEAVED, NORM, PARTS, PAIRS, REST,
    )  # fmt: skip


def turned(
    x: torch.Tensor, heads: int, norm: torch.Tensor | None, eps: float, rotation: Rotation, angles: Angles | None,
    dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """Heads of x [S, T, H * D], normed if there is a norm [D], then rotated. → [T, H * D]"""
    tokens, columns = x.shape[1:]
    size, per = columns // heads, min(HEADS, power_of_two(heads))
    out = torch.empty((tokens, columns), dtype=dtype, device=x.device)
    cos, sin = (norm, norm) if angles is None else angles
    _turned[(tokens, triton.cdiv(heads, per))](
        x, out, cos, sin, cos if norm is None else norm, eps, x.stride(0), x.stride(1),
        H=heads, D=size, ROT=rotation.dim, INTERLEAVED=rotation.interleaved, NORM=norm is not None,
        PARTS=x.shape[0], HEADS=per, PAIRS=power_of_two(max(rotation.dim // 2, 1)),
        REST=power_of_two(max(size - rotation.dim, 1)), num_warps=4,
    )  # fmt: skip
    return out


def rope_and_store_kv(
    q: torch.Tensor, k: torch.Tensor | None, v: torch.Tensor | None, layer: AttentionLayer, kv: KVLayer, step: Step,
    dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """q [S, T, H * D], k and v [S, T, K * D] → queries ready to attend, [T, H * D]"""
    spec, tokens, rotation = layer.spec, q.shape[1], layer.rotation
    if k is None or v is None:
        return turned(q, spec.num_heads, layer.q_norm, layer.eps, rotation, step.angles[rotation.index], dtype)
    heads, kv_heads, size = spec.num_heads, spec.num_kv_heads, spec.head_dim
    cos, sin = step.angles[rotation.index]
    out = torch.empty((tokens, heads * size), dtype=dtype, device=q.device)
    per = min(HEADS, power_of_two(heads))
    tiles = triton.cdiv(heads, per) + 2 * triton.cdiv(kv_heads, per)
    none = cos
    _rope_and_store_kv[(tokens, tiles)](
        q, k, v, out, kv.k, kv.v,
        none if kv.k_scale is None else kv.k_scale, none if kv.v_scale is None else kv.v_scale,
        cos, sin, none if layer.q_norm is None else layer.q_norm, none if layer.k_norm is None else layer.k_norm,
        step.meta, step.positions, step.seqs, layer.eps, layer.group,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        H=heads, K=kv_heads, D=size, ROT=rotation.dim, INTERLEAVED=rotation.interleaved,
        Q_NORM=layer.q_norm is not None, K_NORM=layer.k_norm is not None,
        Q_PARTS=q.shape[0], K_PARTS=k.shape[0], V_PARTS=v.shape[0], KIND=kv.kind,
        TOP=448.0 if kv.kind == E4M3 else 127.0, UNIT=256.0 if kv.kind == E4M3 else 1.0, HEADS=per,
        PAIRS=power_of_two(max(rotation.dim // 2, 1)), REST=power_of_two(max(size - rotation.dim, 1)),
        BLOCK_D=power_of_two(size), num_warps=4,
    )  # fmt: skip
    return out
