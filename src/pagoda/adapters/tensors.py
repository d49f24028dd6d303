"""Tensors of an adapter's file as float32, and the digest of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pagoda.errors import FormatError, UnsupportedError
from pagoda.formats.blocks import BLOCK_TYPES, dequantize
from pagoda.formats.mapped import MappedFile, TensorInfo
from pagoda.types import FloatArray

PIECE = 1 << 22


def floats(file: MappedFile, info: TensorInfo) -> FloatArray:
    """The tensor in float32. UnsupportedError where its type is none of numbers that are trained."""
    if info.type not in BLOCK_TYPES:
        raise UnsupportedError(f"{file.path}: tensor {info.name!r} has type {info.type}, which adapters do not have")
    values = dequantize(file.view(info.offset, info.num_bytes), info.type, info.shape)
    return np.array(values, np.float32)  # a copy: the file may change or go


def digest_of(paths: Iterable[Path]) -> str:
    """SHA-256 over the files' contents. FormatError for one that cannot be read."""
    hasher = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                hasher.update(path.stat().st_size.to_bytes(8, "little"))
                while piece := file.read(PIECE):
                    hasher.update(piece)
        except OSError as error:
            raise FormatError(f"cannot be read: {error.strerror or error}", path=str(path)) from error
    return hasher.hexdigest()
