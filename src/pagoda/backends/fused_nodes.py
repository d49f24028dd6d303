"""The nodes that a lowered forward pass is made of; see `lowering.py`.

Values are named by the ops that make them. `out` is the value that a node makes; where it has a `residual`, `out` is
the sum of that and what the node computes, and takes the residual's place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeAlias

from pagoda.backends.specs import Activation, AttentionSpec, EmbedBy, RopeSpec
from pagoda.backends.trace import Node
from pagoda.types import RawTensor


@dataclass(frozen=True, slots=True)
class Norm:
    """rms_norm of x; layer_norm where there is a bias."""

    x: Node
    weight: RawTensor
    eps: float
    bias: RawTensor | None = None


@dataclass(frozen=True, slots=True)
class Gated:
    """activation(gate) * up; activation(gate) where there is no up."""

    gate: Node
    up: Node | None
    activation: Activation


Source: TypeAlias = "Node | Norm | Gated"  # a value that is there, or what makes it on the way


@dataclass(frozen=True, slots=True)
class Embed:
    out: Node
    table: RawTensor
    scale: float
    by: EmbedBy
    offset: int


@dataclass(frozen=True, slots=True)
class Rowwise:
    """Computes each token's row of `out` from its rows of the source."""

    out: Node
    source: Source
    residual: Node | None


@dataclass(frozen=True, slots=True)
class AddNorm:
    """x becomes x + y, which is the value `sum`; `out` is its norm, a layer norm where there is a bias."""

    out: Node
    sum: Node
    x: Node
    y: Node
    weight: RawTensor
    eps: float
    bias: RawTensor | None = None


@dataclass(frozen=True, slots=True)
class Product:
    """One weight of `Linears`: out = source @ weight.T + bias, or added to the residual."""

    out: Node
    weight: RawTensor
    bias: RawTensor | None
    residual: Node | None


@dataclass(frozen=True, slots=True)
class Linears:
    """Products of one value. No two of them write to one place, so they may be computed side by side."""

    source: Source
    products: tuple[Product, ...]


@dataclass(frozen=True, slots=True)
class Attention:
    """Normalize and rotate the heads of q and k, in place if the backend likes; store k and v, if any; attend."""

    out: Node
    layer: int
    spec: AttentionSpec
    q: Node
    k: Node | None
    v: Node | None
    q_norm: RawTensor | None
    k_norm: RawTensor | None
    eps: float  # of both norms
    rope: RopeSpec | None
    sinks: RawTensor | None


@dataclass(frozen=True, slots=True)
class Logits:
    """The logits of the wanted rows of the source."""

    out: Node
    source: Source
    weight: RawTensor
    scale: float
    softcap: float | None


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """The wanted rows of the source."""

    out: Node
    source: Source


@dataclass(frozen=True, slots=True)
class Call:
    """An op that is fused with nothing, as it was recorded."""

    out: Node
    op: str
    arguments: Mapping[str, Any]


FusedNode: TypeAlias = Embed | Rowwise | AddNorm | Linears | Attention | Logits | HiddenStates | Call


def values_read(part: object) -> Iterator[Node]:
    """The values that a fused node reads, each as often as it names it."""
    if isinstance(part, Node):
        yield part
    elif isinstance(part, (tuple, Mapping)):
        for inner in part.values() if isinstance(part, Mapping) else part:
            yield from values_read(inner)
    elif is_dataclass(part):
        for field in fields(part):
            if field.name not in ("out", "sum"):
                yield from values_read(getattr(part, field.name))
