"""MXFP4 stacks of Hugging Face checkpoints: the matrices of all experts as blocks of 32 codes, and a scale a block.

    NAME_blocks  uint8 [N, R, C / 32, 16]   byte j: elements 2j (low nibble) and 2j + 1
    NAME_scales  uint8 [N, R, C / 32]       the exponent, of 2^(e - 127)

GGUF has the exponent before its 16 bytes, and element j beside element j + 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pagoda.errors import FormatError
from pagoda.formats.block_parts import Bytes
from pagoda.formats.blocks import E2M1_VALUES, powers_of_two
from pagoda.formats.packed import GroupedWeight, even_groups
from pagoda.formats.quantized import QuantizedTensor
from pagoda.types import RawTensor

BLOCKS, SCALES = "_blocks", "_scales"
BLOCK = 32


@dataclass(frozen=True, slots=True)
class Mxfp4Tensor(QuantizedTensor):
    """A stack [N, R, C] or a matrix of it [R, C]. Its cuts are views, which nothing is copied for."""

    def matrix(self, i: int) -> Mxfp4Tensor:
        parts = {suffix: part.matrix(i) for suffix, part in self.parts.items()}
        return self._of(parts, f"{self.name}[{i}]", self.shape[1:])

    def every_second_row(self, first: int) -> Mxfp4Tensor:
        """Rows first, first + 2 … of a matrix."""
        parts = {suffix: _every_second(part, first) for suffix, part in self.parts.items()}
        return self._of(parts, f"{self.name}[{first}::2]", (parts[SCALES].shape[0], self.shape[1]))

    def _of(self, parts: Mapping[str, RawTensor], name: str, shape: tuple[int, ...]) -> Mxfp4Tensor:
        part_of = self.part_of or self.name
        return replace(self, name=name, shape=shape, data=parts[BLOCKS].data, parts=parts, part_of=part_of)

    def file_blocks(self) -> Bytes:
        """A matrix in GGUF's blocks. → [R * C / 32, 17]"""
        codes, scales = (np.ascontiguousarray(self.parts[part].data) for part in (BLOCKS, SCALES))
        first, second = codes.reshape(-1, 2, 8).transpose(1, 0, 2)  # elements 0 to 15, and 16 to 31
        out = np.empty((len(first), 17), np.uint8)
        out[:, 0] = scales.reshape(-1)
        out[:, 1::2] = first & 15 | second << 4
        out[:, 2::2] = first >> 4 | second & 0xF0
        return out


def _every_second(part: RawTensor, first: int) -> RawTensor:
    rows = part.data.reshape(part.shape[0], -1)[first::2]
    return replace(part, shape=(len(rows), *part.shape[1:]), data=rows)


def stack_shape(layer: str, parts: Mapping[str, RawTensor]) -> tuple[int, ...]:
    """What a stack's parts hold. FormatError where they do not fit each other."""
    blocks, scales = parts[BLOCKS], parts[SCALES]
    fits = len(blocks.shape) == 4 and blocks.shape == (*scales.shape, BLOCK // 2) and all(blocks.shape)
    if not fits or (blocks.type, scales.type) != ("U8", "U8"):
        raise FormatError(
            f"stack {layer!r} has blocks of shape {blocks.shape} ({blocks.type}) and scales of {scales.shape} "
            f"({scales.type}), must be bytes, 16 to a scale"
        )
    return (*scales.shape[:-1], scales.shape[-1] * BLOCK)


def unpack_matrix(parts: Mapping[str, npt.NDArray[Any]]) -> GroupedWeight:
    """One matrix, from its blocks [R, G, 16] and scales [R, G]."""
    blocks, exponents = parts[BLOCKS], parts[SCALES]
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(len(blocks), -1)
    scales = powers_of_two(exponents)
    zeros = np.zeros(scales.shape, np.int32)
    groups = even_groups(codes.shape[1], BLOCK)
    return GroupedWeight(4, codes, scales, zeros, groups, codebook=E2M1_VALUES.astype(np.float32))
