"""Quantized layers whose codes are floats: FP8 (E4M3), and FP4 (E2M1) in blocks with scales of their own.

    FP8     weight        F8_E4M3 [R, C]        a scale for all, for each row, or for each block of (usually) 128 x 128
            weight_scale or weight_scale_inv    w = code * scale, for all that the second is called so
    NVFP4   codes         uint8 [R, C / 2]      byte j: elements 2j (low nibble) and 2j + 1
            weight_scale  F8_E4M3 [R, C / 16]
            and a factor for all, by which compressed-tensors divides (weight_global_scale) and ModelOpt multiplies
            (weight_scale_2)
    MXFP4   see `mxfp4.py`

Activations are computed with as they are: scales for them, and for KV caches, change nothing here.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from pagoda.errors import FormatError, UnsupportedError
from pagoda.formats.block_parts import Bytes
from pagoda.formats.blocks import E2M1_VALUES
from pagoda.formats.mxfp4 import BLOCKS, SCALES, Mxfp4Tensor, stack_shape, unpack_matrix
from pagoda.formats.packed import Arrays, GroupedWeight, Ints, even_groups
from pagoda.formats.quant_layout import Config, Layout, Parts, Stored, matrix_shape
from pagoda.types import FloatArray

FP8 = "F8_E4M3"
SCALE, SCALE_INV = ".weight_scale", ".weight_scale_inv"
UNUSED = (".input_scale", ".input_global_scale", ".q_scale", ".k_scale", ".v_scale", ".output_scale")
FP4_GROUP = 16
Block = tuple[int, int]


def _e4m3_values() -> FloatArray:
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    size = np.where(exponent, np.ldexp(8.0 + mantissa, exponent - 10), np.ldexp(mantissa.astype(float), -9))
    size[codes & 127 == 127] = np.nan
    return np.asarray(np.where(codes < 128, size, -size), np.float32)


E4M3_VALUES = _e4m3_values()  # what each byte stands for


# FP8


def fp8(config: Config) -> list[Layout]:
    """quant_method "fp8": DeepSeek's and Qwen's blocks, or a scale a tensor as vLLM writes it."""
    block = block_size(config.get("weight_block_size"))
    return [fp8_layout(SCALE_INV, block), fp8_layout(SCALE, block)]


def fp8_layout(scale: str, block: Block | None) -> Layout:
    return Layout(scale, (".weight",), (), ".weight", partial(_read_fp8, scale, block), unused=UNUSED)


def block_size(stated: object) -> Block | None:
    """FormatError where it is neither None nor two sizes."""
    if stated is None:
        return None
    if not isinstance(stated, list) or len(stated) != 2 or not all(type(n) is int and 0 < n <= 1 << 20 for n in stated):
        raise FormatError(f"the block of FP8 weights is {stated!r}, must be two sizes")
    return stated[0], stated[1]


def _read_fp8(scale: str, block: Block | None, layer: str, parts: Parts) -> Stored:
    rows, columns = matrix_shape(layer, ".weight", parts)
    if parts[".weight"].type != FP8:
        raise UnsupportedError(f"layer {layer!r} has a weight of type {parts['.weight'].type} with scales, not {FP8}")
    shape = parts[scale].shape
    blocks = (1, 1) if block is None else (-(-rows // block[0]), -(-columns // block[1]))
    if shape not in ((), (1,), (1, 1), (rows,), (rows, 1)) and (block is None or shape != blocks):
        of = "one scale, or one a row" if block is None else f"blocks of {block[0]} x {block[1]}"
        raise FormatError(f"layer {layer!r} ({rows} x {columns}) has scales of shape {shape}, not of {of}")
    by_block = block if block is not None and shape == blocks else None
    return Stored((rows, columns), FP8, partial(_unpack_fp8, scale, by_block))


def _unpack_fp8(scale: str, block: Block | None, parts: Arrays) -> GroupedWeight:
    codes, scales = parts[".weight"], np.asarray(parts[scale], np.float32)
    rows, columns = codes.shape
    if block is None:
        scales, groups = np.broadcast_to(scales.reshape(-1, 1), (rows, 1)), even_groups(columns, -1)
    else:
        scales, groups = np.repeat(scales, block[0], axis=0)[:rows], even_groups(columns, block[1])
    return _of_codebook(8, codes, scales, groups, E4M3_VALUES)


def _of_codebook(bits: int, codes: Bytes, scales: FloatArray, groups: Ints, book: FloatArray) -> GroupedWeight:
    return GroupedWeight(bits, codes, scales, np.zeros(scales.shape, np.int32), groups, codebook=book)


# NVFP4


def nvfp4_layout(codes: str, factor: str, *, divided: bool) -> Layout:
    """`factor`: the part that holds it, by which scales are multiplied or `divided`."""
    needed = tuple({codes, SCALE, factor} - {factor})
    read = partial(_read_nvfp4, codes, factor, divided)
    return Layout(factor, needed, (), codes, read, unused=(*UNUSED, ".weight_shape"))


def _read_nvfp4(codes: str, factor: str, divided: bool, layer: str, parts: Parts) -> Stored:
    rows, half = matrix_shape(layer, codes, parts)
    columns, scales = 2 * half, parts[SCALE]
    if parts[codes].type != "U8" or scales.type != FP8 or scales.shape != (rows, columns // FP4_GROUP):
        raise FormatError(
            f"layer {layer!r} has {rows} x {half} codes of type {parts[codes].type}, and scales of shape "
            f"{scales.shape} ({scales.type}), must be bytes and an {FP8} for each {FP4_GROUP} columns"
        )
    if parts[factor].shape not in ((), (1,)) or columns % FP4_GROUP:
        raise FormatError(f"layer {layer!r} has a {factor[1:]} of shape {parts[factor].shape}, must be one number")
    return Stored((rows, columns), "NVFP4", partial(_unpack_nvfp4, codes, factor, divided))


def _unpack_nvfp4(codes: str, factor: str, divided: bool, parts: Arrays) -> GroupedWeight:
    packed, scales = parts[codes], E4M3_VALUES[parts[SCALE]]
    by = np.asarray(parts[factor], np.float32).reshape(())
    unpacked = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
    scales = (scales / by if divided else scales * by) / np.float32(2)  # the codebook is doubled
    return _of_codebook(4, unpacked, scales, even_groups(unpacked.shape[1], FP4_GROUP), E2M1_VALUES.astype(np.float32))


def modelopt(config: Config) -> list[Layout]:
    """NVIDIA's ModelOpt. UnsupportedError for what it quantizes otherwise."""
    algorithm = str(config.get("quant_algo"))
    if not any(name in algorithm for name in ("FP8", "NVFP4", "MIXED_PRECISION")):
        raise UnsupportedError(f"ModelOpt's {algorithm} is not supported; FP8 and NVFP4 are")
    return [nvfp4_layout(".weight", ".weight_scale_2", divided=False), fp8_layout(SCALE, None)]


# MXFP4


def mxfp4(config: Config) -> list[Layout]:
    """Stacks of gpt-oss's experts."""
    return [Layout(BLOCKS, (SCALES,), (), BLOCKS, _read_mxfp4, weight="", tensor=Mxfp4Tensor)]


def _read_mxfp4(layer: str, parts: Parts) -> Stored:
    return Stored(stack_shape(layer, parts), "MXFP4", unpack_matrix)
