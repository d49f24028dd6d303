"""From fused nodes to the native program's stages (`csrc/stages.h`), and the buffers that values live in.

Activations that meet block-quantized weights are quantized by a rowwise stage before the products, which runs the norm
or activation that they come from on the way; weights whose columns are sorted by group (act-order) get them in that
order. Buffers are reused once their last reader has run.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from enum import Enum
from typing import Any

import numpy as np

from pagoda import _native
from pagoda.backends import lowering as low
from pagoda.backends.base import RopeSpec
from pagoda.backends.packed_weights import FLOAT_TYPES, PackedWeights
from pagoda.backends.trace import Node
from pagoda.types import RawTensor


class StageKind(str, Enum):
    """Kinds of native stages, by the names that the structs of `csrc/stages.h` give themselves."""

    EMBED = "embed"
    ROWWISE = "rowwise"
    LINEAR = "linear"
    ROPE_AND_STORE_KV = "rope_and_store_kv"
    ATTEND = "attend"


def fusions(weights: PackedWeights) -> low.Fusions:
    """What the native stages do in one pass."""

    def reading(node: Node) -> bytes | None:
        """As floats (None), or quantized in an order of columns (empty: as it is)."""
        if node["weight"].type in FLOAT_TYPES:
            return None
        order = weights.order(node["weight"])
        return b"" if order is None else order.tobytes()

    def quantizes(node: Node) -> bool:
        return node.op in ("linear", "logits") and node["weight"].type not in FLOAT_TYPES

    return low.Fusions(reading, quantizes, sums_with="products")


class Compiler:
    """Emits one forward pass into `program`. Use once: `compile()`."""

    def __init__(self, program: _native.Program, weights: PackedWeights, nodes: Iterable[low.FusedNode]) -> None:
        self.program = program
        self.weights = weights
        self.nodes = list(nodes)
        self.buffers: dict[Node, int] = {}
        self.readers = Counter(value for node in self.nodes for value in low.values_read(node))  # still to come
        self.free_buffers: defaultdict[int, list[int]] = defaultdict(list)  # by columns
        self.quantized_buffers: dict[int, int] = {}
        self.ropes: dict[tuple[str, float, bytes], int] = {}

    def compile(self) -> None:
        for node in self.nodes:
            match node:
                case low.Embed():
                    self._embed(node)
                case low.Rowwise():
                    self._rowwise(node)
                case low.Linears():
                    self._linears(node)
                case low.Attention():
                    self._attention(node)
                case low.Logits():
                    self._logits(node)
                case low.Call():
                    self._call(node)
                case low.AddNorm():
                    raise AssertionError("sums go with products here")

    def _add(self, kind: str, **fields: Any) -> None:
        self.program.add(kind, **fields)

    # Buffers

    def _take(self, columns: int) -> int:
        free = self.free_buffers[columns]
        return free.pop() if free else self.program.add_buffer(columns)

    def _allocate(self, out: Node, residual: Node | None = None) -> int:
        """A buffer for the value: the residual's, where it is added to that."""
        if residual is None:
            self.buffers[out] = self._take(out.columns)
        else:
            self.readers[residual] -= 1
            self.buffers[out] = self.buffers.pop(residual)
        return self.buffers[out]

    def _read(self, source: low.Source) -> None:
        """A reader of what the source is made of has run; after the last one its buffer is free."""
        for value in low.values_read(source):
            self.readers[value] -= 1
            if self.readers[value] == 0 and value in self.buffers:  # else a sum stands in it
                self.free_buffers[value.columns].append(self.buffers.pop(value))

    def _quantized(self, columns: int) -> int:
        if columns not in self.quantized_buffers:
            self.quantized_buffers[columns] = self.program.add_quantized(columns)
        return self.quantized_buffers[columns]

    # Nodes

    def _embed(self, node: low.Embed) -> None:
        table = self.weights.table(node.table)
        rows, columns = node.table.shape
        out = self._allocate(node.out)
        self._add(
            StageKind.EMBED, out=out, table=table, type=node.table.type, rows=rows, columns=columns, scale=node.scale
        )

    def _source(self, source: low.Source) -> dict[str, Any]:
        """The fields of a rowwise stage that say what it computes."""
        match source:
            case low.Norm():
                return {"x": self.buffers[source.x], "norm": self.weights.vector(source.weight), "eps": source.eps}
            case low.Gated():
                gate, up = self.buffers[source.gate], self.buffers[source.up]
                return {"x": up, "gate": gate, "activation": source.activation}
            case _:
                return {"x": self.buffers[source]}

    def _rowwise(self, node: low.Rowwise) -> None:
        fields = self._source(node.source)
        out = self._allocate(node.out, node.residual)
        self._add(StageKind.ROWWISE, **fields, out=out, accumulate=node.residual is not None)
        self._read(node.source)

    def _quantize(self, source: low.Source, weight: RawTensor, rows: str = "tokens") -> int:
        """The source's rows in the codes that products with `weight` read."""
        to = self._quantized(weight.shape[1])
        order = self.weights.order(weight)
        self._add(StageKind.ROWWISE, **self._source(source), quantized=to, order=order, rows=rows)
        self._read(source)
        return to

    def _linears(self, node: low.Linears) -> None:
        weight = node.products[0].weight
        if weight.type not in FLOAT_TYPES:
            quantized = self._quantize(node.source, weight)
            self._add(StageKind.LINEAR, quantized=quantized, parts=self._parts(node.products))
        else:
            assert isinstance(node.source, Node)  # float weights read through nothing
            self._add(StageKind.LINEAR, parts=self._parts(node.products), x=self.buffers[node.source])
            self._read(node.source)

    def _parts(self, products: Iterable[low.Product]) -> list[_native.LinearPart]:
        return [
            _native.LinearPart(
                self.weights[product.weight],
                self._allocate(product.out, product.residual),
                None if product.bias is None else self.weights.vector(product.bias),
                accumulate=product.residual is not None,
            )
            for product in products
        ]

    def _logits(self, node: low.Logits) -> None:
        part = _native.LinearPart(self.weights[node.weight], None, None, scale=node.scale)
        softcap = node.softcap or 0.0
        if node.weight.type not in FLOAT_TYPES:
            quantized = self._quantize(node.source, node.weight, "logits")
            self._add(StageKind.LINEAR, quantized=quantized, parts=[part], rows="logits", softcap=softcap)
            return
        assert isinstance(node.source, Node)
        gathered = self._take(node.source.columns)
        self._add(StageKind.ROWWISE, x=self.buffers[node.source], out=gathered, rows="logits")
        self._read(node.source)
        self._add(StageKind.LINEAR, x=gathered, parts=[part], rows="logits", softcap=softcap)
        self.free_buffers[node.source.columns].append(gathered)

    def _attention(self, node: low.Attention) -> None:
        spec, q = node.spec, self.buffers[node.q]
        self._add(
            StageKind.ROPE_AND_STORE_KV,
            q=q,
            k=self.buffers[node.k],
            v=self.buffers[node.v],
            layer=node.layer,
            heads=spec.num_heads,
            rope=None if node.rope is None else self._rope(node.rope),
            q_norm=None if node.q_norm is None else self.weights.vector(node.q_norm),
            k_norm=None if node.k_norm is None else self.weights.vector(node.k_norm),
            eps=node.eps,
        )
        for value in (node.k, node.v):  # which lie in KV blocks now
            self._read(value)
        self._add(
            StageKind.ATTEND,
            q=q,
            out=self._allocate(node.out),
            layer=node.layer,
            heads=spec.num_heads,
            scale=spec.scale,
            softcap=spec.softcap or 0.0,
            window=spec.window or 0,
        )
        self._read(node.q)

    def _call(self, node: low.Call) -> None:
        """An op that is fused with nothing is the stage of its name; its values are buffers, its weights packed."""
        fields = {name: self._field(value) for name, value in node.arguments.items()}
        self._add(node.op, **fields, out=self._allocate(node.out))
        for value in low.values_read(node):
            self._read(value)

    def _field(self, argument: object) -> object:
        if isinstance(argument, Node):
            return self.buffers[argument]
        if isinstance(argument, RawTensor):
            return self.weights.vector(argument) if len(argument.shape) == 1 else self.weights[argument]
        return argument

    def _rope(self, spec: RopeSpec) -> int:
        if spec.key not in self.ropes:
            inv_freq = np.ascontiguousarray(spec.inv_freq, np.float32)
            self.ropes[spec.key] = self.program.add_rope(inv_freq, spec.scale, spec.style == "neox")
        return self.ropes[spec.key]
