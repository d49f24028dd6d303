"""How quantized layers lie in a checkpoint: the parts of one, and what they hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pagoda.errors import FormatError
from pagoda.formats.packed import Arrays, GroupedWeight
from pagoda.formats.quantized import QuantizedTensor
from pagoda.types import RawTensor

Parts = Mapping[str, RawTensor]
Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """What a layer is: its weight's shape, a name for its type, and how its parts unpack."""

    shape: tuple[int, ...]
    type: str
    unpacker: Callable[[Arrays], GroupedWeight]


@dataclass(frozen=True, slots=True)
class Layout:
    """Parts of a layer by what follows its name. A layer is one where the part `mark` is."""

    mark: str
    needed: tuple[str, ...]  # without the mark
    optional: tuple[str, ...]
    codes: str
    read: Callable[[str, Parts], Stored]
    groups: str | None = None
    unused: tuple[str, ...] = ()  # may be there and changes nothing
    weight: str = ".weight"  # what the whole is called after the layer
    tensor: type[QuantizedTensor] = QuantizedTensor


def matrix_shape(layer: str, suffix: str, parts: Parts) -> tuple[int, int]:
    shape = parts[suffix].shape
    if len(shape) != 2 or not all(shape):
        raise FormatError(f"layer {layer!r} has a {suffix[1:]} of shape {shape}, must be a matrix")
    return shape[0], shape[1]
