"""From a recorded forward pass to the nodes that a backend emits, one after the other. What is fused:

- linears that read one value become one node, if the backend reads the value alike for all of them;
- a norm or gated activation becomes part of the products that alone read it, where they quantize it on the way;
- what is only added to the residual stream adds into it as it is made; or the sum is normalized as it is made;
- norms of heads, rotation, storing of keys and values, and attention become one node; elsewhere heads are
  normalized and turned apart.

A sum takes the place of its first operand. What would write over a value that a folded norm or activation still waits
for makes that one first, so whoever emits the nodes in order needs to know nothing of this. What no node can say is
refused here, by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pagoda.backends.base import ForwardModel
from pagoda.backends.fused_nodes import (
    AddNorm,
    Attention,
    Call,
    Embed,
    FusedNode,
    Gated,
    HiddenStates,
    Linears,
    Logits,
    Norm,
    Product,
    Rowwise,
    Source,
)
from pagoda.backends.specs import AttentionSpec, RopeSpec
from pagoda.backends.trace import Node
from pagoda.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class Fusions:
    """What a backend does in one pass.

    reading: of a linear, how its product wants the value; linears of one value whose readings are equal are one node.
    reads_through: whether this op runs the norm or activation that it reads on the way.
    sums_with: products and norms add into the residual stream, or sums are normalized as they are made.
    """

    reading: Callable[[Node], Hashable]
    reads_through: Callable[[Node], bool]
    sums_with: Literal["products", "norms"]


def lower(nodes: list[Node], fusions: Fusions) -> Iterator[FusedNode]:
    """The forward pass `nodes` as fused nodes, in an order in which they can be computed.

    UnsupportedError names what no node can say.
    """
    return _Lowering(nodes, fusions).run()


class _Lowering:
    def __init__(self, nodes: list[Node], fusions: Fusions) -> None:
        self.nodes = nodes
        self.fusions = fusions
        self.readers = Counter({node: len(node.users) for node in nodes})  # that are still to come
        self.made: set[Node] = set()  # values that are there
        self.done: set[Node] = set()  # ops that an earlier node took along
        attentions = [node for node in nodes if node.op == "attention"]
        self.chains = {node: qk_chains(node) for node in attentions}
        self.folded = {op for chains in self.chains.values() for chain in chains for op in chain.ops}

    def run(self) -> Iterator[FusedNode]:
        rules: dict[str, Callable[[Node], list[FusedNode]]] = {
            "embed": self._embed,
            "rms_norm": self._norm_or_gated,
            "layer_norm": self._norm_or_gated,
            "gated": self._norm_or_gated,
            "add": self._add,
            "linear": self._linear,
            "head_norm": self._head_op,
            "rope": self._head_op,
            "attention": self._attention,
            "logits": self._logits,
            "hidden_states": self._hidden_states,
        }
        for node in self.nodes:
            if node not in self.done:
                yield from rules.get(node.op, self._call)(node)

    def _make(self, node: Node) -> None:
        self.made.add(node)
        self.done.add(node)

    def _read(self, node: Node, times: int = 1) -> None:
        """`times` of the value's readers have had it; the last one of a folded op has had what that reads."""
        self.readers[node] -= times
        if self.readers[node] == 0 and node not in self.made:
            self._read_all(node.inputs)

    def _read_all(self, values: Iterable[Node]) -> None:
        for value in values:
            self._read(value)

    def _call(self, node: Node) -> list[FusedNode]:
        self._make(node)
        self._read_all(node.inputs)
        return [Call(node, node.op, node.arguments)]

    def _embed(self, node: Node) -> list[FusedNode]:
        self._make(node)
        return [Embed(node, node["table"], node["scale"], node["by"], node["offset"])]

    # Norms, activations and sums

    def _norm_or_gated(self, node: Node) -> list[FusedNode]:
        return [] if self._is_folded(node) else [self._made_apart(node)]

    def _is_folded(self, node: Node) -> bool:
        """Whether all that read the value make it on the way: once for each token, or more often for a few of them."""
        if not node.users or not all(self.fusions.reads_through(user) for user in node.users):
            return False
        if all(user.op == "linear" for user in node.users):
            return len({self.fusions.reading(user) for user in node.users}) == 1
        return all(user.op in ("logits", "hidden_states") for user in node.users)  # of a few rows

    def _source(self, node: Node) -> Source:
        if node in self.made:
            return node
        if node.op == "rms_norm":
            return Norm(node["x"], node["weight"], node["eps"])
        if node.op == "layer_norm":
            return Norm(node["x"], node["weight"], node["eps"], node["bias"])
        return Gated(node["gate"], node["up"], node["activation"])

    def _made_apart(self, node: Node) -> Rowwise:
        source, add = self._source(node), self._sum_of(node)
        self._read_all(node.inputs)
        self._make(node)
        if add is None:
            return Rowwise(node, source, None)
        self._added(add)
        return Rowwise(add, source, add["x"])

    def _add(self, node: Node) -> list[FusedNode]:
        x, y = node["x"], node["y"]
        before: list[FusedNode] = [self._made_apart(waiting) for waiting in x.users if self._waits(waiting, node)]
        self._added(node)
        norm = self._norm_after(node) if self.fusions.sums_with == "norms" else None
        if norm is not None:
            self._make(norm)
            self._read(node)
            bias = norm["bias"] if norm.op == "layer_norm" else None
            return [*before, AddNorm(norm, node, x, y, norm["weight"], norm["eps"], bias)]
        return [*before, Rowwise(node, y, x)]

    def _norm_after(self, add: Node) -> Node | None:
        """The norm that comes next, if it is the sum's."""
        after = self.nodes[add.index + 1] if add.index + 1 < len(self.nodes) else None
        return after if after is not None and after.op in ("rms_norm", "layer_norm") and after["x"] is add else None

    def _waits(self, node: Node, before: Node) -> bool:
        """Whether the op was folded into a later node than `before`, so that its value is still to be made."""
        is_foldable = node.op in ("rms_norm", "layer_norm", "gated")
        return is_foldable and node not in self.made and self.readers[node] > 0 and node.index < before.index

    def _sum_of(self, node: Node) -> Node | None:
        """The sum that alone reads the value, if it can be made with it: nobody else still reads its first operand."""
        add = node.only_user
        if self.fusions.sums_with != "products" or add is None or add.op != "add" or add["y"] is not node:
            return None
        x = add["x"]
        return add if x in self.made and self.readers[x] == 1 else None

    def _added(self, add: Node) -> None:
        """The sum stands where its first operand was."""
        self._read(add["y"])
        self.readers[add["x"]] -= 1
        self.made.discard(add["x"])
        self._make(add)

    # Products

    def _linear(self, first: Node) -> list[FusedNode]:
        """The linear and all others that read the same value: a node for each way in which they read it."""
        x = first["x"]
        together = [node for node in x.users if node.op == "linear"]
        groups: dict[Hashable, list[Node]] = {}
        for node in together:
            groups.setdefault(self.fusions.reading(node), []).append(node)
        source = self._source(x)
        if x not in self.made:  # a source on the way is read before the products write
            self._read(x, len(together))
        fused: list[FusedNode] = [Linears(source, self._products(group)) for group in groups.values()]
        if x in self.made:
            self._read(x, len(together))
        return fused

    def _products(self, group: list[Node]) -> tuple[Product, ...]:
        """The products of a group. Where two would write to one place, the second is added later."""
        products: list[Product] = []
        written: set[Node] = set()
        for node in group:
            add = self._sum_of(node)
            if add is not None and add["x"] in written:
                add = None
            self._make(node)
            if add is not None:
                self._added(add)
            written.add(add or node)
            products.append(Product(add or node, node["weight"], node["bias"], add and add["x"]))
        return tuple(products)

    def _logits(self, node: Node) -> list[FusedNode]:
        source = self._source(node["x"])
        self._make(node)
        self._read(node["x"])
        return [Logits(node, source, node["weight"], node["scale"], node["softcap"])]

    def _hidden_states(self, node: Node) -> list[FusedNode]:
        source = self._source(node["x"])
        self._make(node)
        self._read(node["x"])
        return [HiddenStates(node, source)]

    # Attention

    def _attention(self, node: Node) -> list[FusedNode]:
        chains = self.chains[node]
        q, k = chains[0], chains[1] if len(chains) > 1 else None
        self._make(node)
        self._read_all(chain.projection for chain in chains)
        self._read_all([node["v"]] if node["v"] is not None else [])
        return [
            Attention(
                out=node,
                layer=node["layer"],
                spec=node["spec"],
                q=q.projection,
                k=None if k is None else k.projection,
                v=node["v"],
                q_norm=None if q.norm is None else q.norm["weight"],
                k_norm=None if k is None or k.norm is None else k.norm["weight"],
                eps=next((chain.norm["eps"] for chain in chains if chain.norm), 0.0),
                rope=q.rope,
                sinks=node["sinks"],
            )
        ]

    def _head_op(self, node: Node) -> list[FusedNode]:
        """A norm of heads, or a rotation: done on the way into attention where it can be."""
        return [] if node in self.folded else self._call(node)


@dataclass(frozen=True, slots=True)
class QkChain:
    """What queries or keys come from: projection → head norm → rope, the latter two if attention does them itself."""

    projection: Node
    norm: Node | None = None
    rope: RopeSpec | None = None
    ops: tuple[Node, ...] = ()  # those two


def qk_chains(attention: Node) -> list[QkChain]:
    """The chain of the queries and, where there are any, of the keys. Attention treats both alike, or neither."""
    ends = [attention[x] for x in ("q", "k") if attention[x] is not None]
    chains = [_chain_of(end) for end in ends]
    return chains if _alike(chains) else [QkChain(end) for end in ends]


def _chain_of(node: Node) -> QkChain:
    """Attention changes the projection in place: nothing else may read it, nor what lies between."""
    ops: list[Node] = []
    rope, norm = None, None
    if node.op == "rope" and node.only_user and node["x"].only_user:
        rope = node["spec"]
        ops.append(node)
        node = node["x"]
    if node.op == "head_norm" and node.only_user and node["x"].only_user and _is_plain(node):
        norm = node
        ops.append(node)
        node = node["x"]
    return QkChain(node, norm, rope, tuple(ops))


def _is_plain(head_norm: Node) -> bool:
    """Whether all heads are normalized alike, by their root mean square."""
    return not head_norm["centered"] and head_norm["weight"].shape[0] * head_norm["num_heads"] == head_norm.columns


def _alike(chains: list[QkChain]) -> bool:
    ropes = {None if chain.rope is None else chain.rope.key for chain in chains}
    return len(ropes) == 1 and len({chain.norm["eps"] for chain in chains if chain.norm}) <= 1


def kv_layers(model: ForwardModel, nodes: Iterable[Node]) -> dict[int, tuple[int, AttentionSpec]]:
    """→ (KV group, attention) of each layer in a KV group. UnsupportedError if not just one stores what it keeps."""
    groups = {layer: g for g, group in enumerate(model.kv_groups) for layer in group.layers}
    attentions = [node for node in nodes if node.op == "attention" and node["k"] is not None]
    causal = [node["layer"] for node in attentions if node["spec"].causal]
    others = {node["layer"] for node in attentions if not node["spec"].causal}
    if sorted([*causal, *others]) != sorted(groups):
        raise UnsupportedError("there must be one attention in each layer that has keys and values")
    specs = {node["layer"]: node["spec"] for node in attentions}
    return {layer: (groups[layer], specs[layer]) for layer in sorted(groups)}
