"""A forward pass as data: running a model with `Trace` records its ops, a value each, instead of computing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pagoda.backends.base import Activation, AttentionSpec, ExpertsSpec, RopeSpec
from pagoda.errors import UnsupportedError
from pagoda.types import RawTensor


@dataclass(eq=False, slots=True)
class Node:
    """One op and the value it makes, `columns` wide. `users` are the later ops that read it."""

    inputs: tuple[Node, ...] = field(repr=False)  # a node's repr would else be its whole past, many times over
    columns: int
    users: list[Node] = field(default_factory=list, repr=False)
    index: int = -1

    def __post_init__(self) -> None:
        for node in self.inputs:
            node.users.append(self)

    @property
    def only_user(self) -> Node | None:
        return self.users[0] if len(self.users) == 1 else None


@dataclass(eq=False, slots=True)
class Embed(Node):
    table: RawTensor = field(kw_only=True)
    scale: float = field(kw_only=True)


@dataclass(eq=False, slots=True)
class Norm(Node):
    """Of the whole row, or of each of `num_heads` heads."""

    weight: RawTensor = field(kw_only=True)
    eps: float = field(kw_only=True)
    num_heads: int | None = field(kw_only=True, default=None)


@dataclass(eq=False, slots=True)
class Linear(Node):
    weight: RawTensor = field(kw_only=True)
    bias: RawTensor | None = field(kw_only=True)


@dataclass(eq=False, slots=True)
class Rope(Node):
    num_heads: int = field(kw_only=True)
    spec: RopeSpec = field(kw_only=True)


@dataclass(eq=False, slots=True)
class Attention(Node):
    layer: int = field(kw_only=True)
    spec: AttentionSpec = field(kw_only=True)


@dataclass(eq=False, slots=True)
class Gated(Node):
    """inputs: gate, up."""

    activation: Activation = field(kw_only=True)


@dataclass(eq=False, slots=True)
class Add(Node):
    """inputs: x, which is not used afterwards, and y."""


@dataclass(eq=False, slots=True)
class Logits(Node):
    weight: RawTensor = field(kw_only=True)
    scale: float = field(kw_only=True)
    softcap: float | None = field(kw_only=True)


class Trace:
    """An `Ops` that records. `nodes` are in the order in which the model stated them."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def _record(self, node: Node) -> Node:
        node.index = len(self.nodes)
        self.nodes.append(node)
        return node

    def embed(self, table: RawTensor, scale: float = 1.0) -> Node:
        return self._record(Embed((), table.shape[1], table=table, scale=scale))

    def rms_norm(self, x: Node, weight: RawTensor, eps: float) -> Node:
        return self._record(Norm((x,), x.columns, weight=weight, eps=eps))

    def head_norm(self, x: Node, weight: RawTensor, eps: float, num_heads: int) -> Node:
        return self._record(Norm((x,), x.columns, weight=weight, eps=eps, num_heads=num_heads))

    def linear(self, x: Node, weight: RawTensor, bias: RawTensor | None = None) -> Node:
        return self._record(Linear((x,), weight.shape[0], weight=weight, bias=bias))

    def rope(self, x: Node, num_heads: int, spec: RopeSpec) -> Node:
        return self._record(Rope((x,), x.columns, num_heads=num_heads, spec=spec))

    def attention(self, layer: int, q: Node, k: Node, v: Node, spec: AttentionSpec) -> Node:
        return self._record(Attention((q, k, v), q.columns, layer=layer, spec=spec))

    def gated(self, gate: Node, up: Node, activation: Activation) -> Node:
        return self._record(Gated((gate, up), up.columns, activation=activation))

    def experts(
        self,
        x: Node,
        router: Node,
        gate: Sequence[RawTensor],
        up: Sequence[RawTensor],
        down: Sequence[RawTensor],
        spec: ExpertsSpec,
    ) -> Node:
        raise UnsupportedError("mixtures of experts run on --device reference alone")

    def add(self, x: Node, y: Node) -> Node:
        return self._record(Add((x, y), x.columns))

    def logits(self, x: Node, weight: RawTensor, scale: float = 1.0, softcap: float | None = None) -> Node:
        return self._record(Logits((x,), weight.shape[0], weight=weight, scale=scale, softcap=softcap))
