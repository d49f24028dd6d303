"""NVFP4 of GGUF files: blocks of 64 weights, and a factor that lies apart, as one quantized tensor each.

    NAME.weight       blocks of 36 bytes: 4 scales, then the codes of 4 runs of 16 weights, 8 bytes each
    NAME.scale        F32 [1], of a stack of experts [N]: what all is multiplied with; may be missing
    NAME.input_scale  for activations, which are computed with as they are here

A scale is E4M3 without a sign. Byte j of a run holds weights j (low nibble) and j + 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from pagoda.errors import FormatError
from pagoda.formats.block_parts import nibbles
from pagoda.formats.blocks import E2M1_VALUES, NVFP4
from pagoda.formats.packed import Arrays, GroupedWeight, even_groups
from pagoda.formats.quant_floats import E4M3_VALUES, FP4_GROUP
from pagoda.formats.quantized import QuantizedTensor
from pagoda.types import RawTensor

TYPE = "NVFP4"
BLOCKS, FACTOR, UNUSED = ".weight", ".scale", ".input_scale"


@dataclass(frozen=True, slots=True)
class Nvfp4Blocks(QuantizedTensor):
    """A matrix [R, C], or a stack of them [N, R, C]."""

    def matrix(self, i: int) -> Nvfp4Blocks:
        blocks = self.parts[BLOCKS].matrix(i)
        parts = {BLOCKS: blocks}
        if FACTOR in self.parts:
            factors = self.parts[FACTOR]
            parts[FACTOR] = replace(factors, shape=(1,), data=factors.data[4 * i : 4 * i + 4])
        part_of = self.part_of or self.name
        return replace(self, name=blocks.name, shape=blocks.shape, data=blocks.data, parts=parts, part_of=part_of)


def fold(tensors: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    """The tensors of a GGUF file with those of NVFP4 as one each. FormatError for factors of another shape."""
    folded = dict(tensors)
    for name, blocks in tensors.items():
        if blocks.type != TYPE:
            continue
        stem = name.removesuffix(BLOCKS)
        parts = {BLOCKS: replace(blocks, type="U8", shape=(*blocks.shape[:-1], _bytes_of(blocks.shape[-1])))}
        factor = folded.pop(stem + FACTOR, None)
        folded.pop(stem + UNUSED, None)
        if factor is not None:
            _check(name, blocks, factor)
            parts[FACTOR] = factor
        folded[name] = Nvfp4Blocks(name, TYPE, blocks.shape, blocks.data, parts=parts, unpacker=unpack)
    return folded


def _bytes_of(columns: int) -> int:
    return columns // NVFP4.elements * NVFP4.bytes


def _check(name: str, blocks: RawTensor, factor: RawTensor) -> None:
    count = blocks.shape[0] if len(blocks.shape) == 3 else 1
    if factor.type != "F32" or factor.shape != (count,):
        raise FormatError(
            f"tensor {name!r} has factors of shape {factor.shape} ({factor.type}), must be F32 ({count},)"
        )


def unpack(parts: Arrays) -> GroupedWeight:
    """One matrix, from its blocks [R, bytes] and its factor, if any."""
    rows = len(parts[BLOCKS])
    blocks = np.ascontiguousarray(parts[BLOCKS]).reshape(-1, NVFP4.bytes)
    codes = nibbles(blocks[:, 4:].reshape(-1, 4, 8)).reshape(rows, -1)
    known = np.where(blocks[:, :4] % 128 == 127, 0, blocks[:, :4] % 128)  # what stands for no number counts as 0
    scales = E4M3_VALUES[known].reshape(rows, -1) / np.float32(2)  # the codebook is doubled
    if FACTOR in parts:
        scales = scales * parts[FACTOR]
    zeros, groups = np.zeros(scales.shape, np.int32), even_groups(codes.shape[1], FP4_GROUP)
    return GroupedWeight(4, codes, scales, zeros, groups, codebook=E2M1_VALUES.astype(np.float32))
