"""From fused nodes to the native program's stages (`csrc/stages.h`).

Activations that meet block-quantized weights are quantized by a rowwise stage before the products, which runs the norm
or activation that they come from on the way; weights whose columns are sorted by group (act-order) get them in that
order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np

from pagoda import _native
from pagoda.backends import fused_nodes as fused
from pagoda.backends import lowering as low
from pagoda.backends.buffers import Buffers
from pagoda.backends.packed_weights import FLOAT_TYPES, PackedWeights
from pagoda.backends.specs import ExpertBiases, ExpertGroups, ExpertsSpec, RopeSpec
from pagoda.backends.states import stage_arguments
from pagoda.backends.trace import Node
from pagoda.errors import UnsupportedError
from pagoda.types import FloatArray, RawTensor


class StageKind(str, Enum):
    """Kinds of native stages, by the names that the structs of `csrc/stages.h` give themselves."""

    EMBED = "embed"
    ROWWISE = "rowwise"
    LINEAR = "linear"
    LORA_SHRINK = "lora_shrink"
    ROUTE = "route"
    COMBINE = "combine"
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

    def reads_through(node: Node) -> bool:
        if node.op not in ("linear", "logits", "hidden_states"):
            return False
        return node.op == "hidden_states" or node["weight"].type not in FLOAT_TYPES

    return low.Fusions(reading, reads_through, sums_with="products")


class Compiler:
    """Emits one forward pass into `program`. Use once: `compile()`."""

    def __init__(
        self,
        program: _native.Program,
        weights: PackedWeights,
        nodes: Iterable[fused.FusedNode],
        kv_layers: Mapping[int, int],
    ) -> None:
        """kv_layers: of each layer with attention, its place among those of `program`."""
        self.program = program
        self.kv_layers = kv_layers
        self.weights = weights
        self.nodes = list(nodes)
        self.buffers = Buffers(program, self.nodes)
        self.ropes: dict[tuple[str, float, bytes], int] = {}
        self.hidden_states: int | None = None  # the buffer that has them
        self.given: int | None = None  # the buffer that a step's `Batch.given` is to be put into
        self.lora_sites: dict[str, tuple[int, ...]] = {}  # of a weight, the linears that an adapter of it adds to

    def compile(self) -> None:
        for node in self.nodes:
            match node:
                case fused.Embed():
                    self._embed(node)
                case fused.Rowwise():
                    self._rowwise(node)
                case fused.Linears():
                    self._linears(node)
                case fused.Attention():
                    self._attention(node)
                case fused.Logits():
                    self._logits(node)
                case fused.HiddenStates():
                    self._hidden_states(node)
                case fused.Call():
                    self._call(node)
                case fused.AddNorm():
                    raise AssertionError("sums go with products here")

    def _add(self, kind: str, **fields: Any) -> None:
        self.program.add(kind, **fields)

    # Nodes

    def _embed(self, node: fused.Embed) -> None:
        table = self.weights.table(node.table)
        rows, columns = node.table.shape
        out = self.buffers.allocate(node.out)
        shape = {"type": node.table.type, "rows": rows, "columns": columns}
        self._add(StageKind.EMBED, out=out, table=table, **shape, scale=node.scale, by=node.by, offset=node.offset)

    def _source(self, source: fused.Source) -> dict[str, Any]:
        """The fields of a rowwise stage that say what it computes."""
        match source:
            case fused.Norm():
                norm, bias = (w if w is None else self.weights.vector(w) for w in (source.weight, source.bias))
                return {"x": self.buffers[source.x], "norm": norm, "norm_bias": bias, "eps": source.eps}
            case fused.Gated(up=None):
                return {"x": self.buffers[source.gate], "activation": source.activation}
            case fused.Gated():
                assert source.up is not None
                gate, up = self.buffers[source.gate], self.buffers[source.up]
                return {"x": up, "gate": gate, "activation": source.activation}
            case _:
                return {"x": self.buffers[source]}

    def _rowwise(self, node: fused.Rowwise) -> None:
        fields = self._source(node.source)
        out = self.buffers.allocate(node.out, node.residual)
        self._add(StageKind.ROWWISE, **fields, out=out, accumulate=node.residual is not None)
        self.buffers.read(node.source)

    def _quantize(self, source: fused.Source, weight: RawTensor, rows: str = "tokens", kept: int | None = None) -> int:
        """The source's rows in the codes that products with `weight` read; those with adapters also in `kept`."""
        to = self.buffers.quantized(weight.shape[1])
        order = self.weights.order(weight)
        self._add(StageKind.ROWWISE, **self._source(source), quantized=to, order=order, rows=rows, kept=kept)
        return to

    def _linears(self, node: fused.Linears) -> None:
        """The products, which add what adapters make of their input; before them the stage that makes it.

        Both may run at once, so the products' outputs get buffers before the input's is free.
        """
        weight, source = node.products[0].weight, node.source
        if weight.type in FLOAT_TYPES:
            assert isinstance(source, Node)  # float weights read through nothing
            self._products(node, self.buffers[source], x=self.buffers[source])
        elif isinstance(source, Node):
            self._products(node, self.buffers[source], quantized=self._quantize(source, weight))
        else:
            kept = self.buffers.take(weight.shape[1])
            self._products(node, kept, quantized=self._quantize(source, weight, kept=kept))
            self.buffers.give_back(kept, weight.shape[1])
        self.buffers.read(source)

    def _products(self, node: fused.Linears, floats: int, **fields: int) -> None:
        sites = [self._lora_site(product.weight) for product in node.products]
        parts = self._parts(node.products, sites)
        residuals = [-1 if p.residual is None else self.buffers[p.out] for p in node.products]
        self._add(
            StageKind.LORA_SHRINK, x=floats, sites=np.array(sites, np.int32), residuals=np.array(residuals, np.int32)
        )
        self._add(StageKind.LINEAR, parts=parts, **fields)

    def _lora_site(self, weight: RawTensor) -> int:
        site = self.program.add_lora_site(*weight.shape)
        self.lora_sites[weight.name] = (*self.lora_sites.get(weight.name, ()), site)
        return site

    def _parts(self, products: Sequence[fused.Product], sites: Sequence[int]) -> list[_native.LinearPart]:
        return [
            _native.LinearPart(
                [self.weights[product.weight]],
                self.buffers.allocate(product.out, product.residual),
                None if product.bias is None else self.weights.vector(product.bias),
                accumulate=product.residual is not None,
                site=site,
            )
            for product, site in zip(products, sites, strict=True)
        ]

    def _logits(self, node: fused.Logits) -> None:
        part = _native.LinearPart([self.weights[node.weight]], None, scale=node.scale)
        softcap = node.softcap or 0.0
        if node.weight.type not in FLOAT_TYPES:
            quantized = self._quantize(node.source, node.weight, "logits")
            self.buffers.read(node.source)
            self._add(StageKind.LINEAR, quantized=quantized, parts=[part], rows="logits", softcap=softcap)
            return
        assert isinstance(node.source, Node)
        gathered = self.buffers.take(node.source.columns)
        self._add(StageKind.ROWWISE, x=self.buffers[node.source], out=gathered, rows="logits")
        self.buffers.read(node.source)
        self._add(StageKind.LINEAR, x=gathered, parts=[part], rows="logits", softcap=softcap)
        self.buffers.give_back(gathered, node.source.columns)

    def _hidden_states(self, node: fused.HiddenStates) -> None:
        fields = self._source(node.source)
        self.hidden_states = self.buffers.allocate(node.out)
        self._add(StageKind.ROWWISE, **fields, out=self.hidden_states, rows="hidden")
        self.buffers.read(node.source)

    def _attention(self, node: fused.Attention) -> None:
        spec, q, layer = node.spec, self.buffers[node.q], self.kv_layers[node.layer]
        self._add(
            StageKind.ROPE_AND_STORE_KV,
            q=q,
            k=None if node.k is None else self.buffers[node.k],
            v=None if node.v is None else self.buffers[node.v],
            layer=layer,
            heads=spec.num_heads,
            rope=None if node.rope is None else self._rope(node.rope),
            q_norm=None if node.q_norm is None else self.weights.vector(node.q_norm),
            k_norm=None if node.k_norm is None else self.weights.vector(node.k_norm),
            eps=node.eps,
            growth=spec.growth.beta if spec.growth else 0.0,
            growth_length=spec.growth.length if spec.growth else 1,
        )
        for value in (node.k, node.v):  # which lie in KV blocks now
            if value is not None:
                self.buffers.read(value)
        self._add(
            StageKind.ATTEND,
            q=q,
            out=self.buffers.allocate(node.out),
            layer=layer,
            heads=spec.num_heads,
            scale=spec.scale,
            softcap=spec.softcap or 0.0,
            window=spec.window or 0,
            causal=spec.causal,
            sinks=None if node.sinks is None else self.weights.vector(node.sinks),
        )
        self.buffers.read(node.q)

    # Ops that are fused with nothing

    def _call(self, node: fused.Call) -> None:
        """The stage of the op's name, its values as buffers and its weights packed; or the stages it is composed of."""
        if node.op == "experts":
            self._experts(node, **node.arguments)
            return
        if node.op == "head_linear":
            self._head_linear(node, **node.arguments)
            return
        if node.op == "given":  # into a buffer that no stage has written before
            self.given = self.buffers.add(node.out)
            return
        fields = {name: self._field(value) for name, value in stage_arguments(node.op, node.arguments).items()}
        self._add(node.op, **fields, out=self.buffers.allocate(node.out))
        for value in fused.values_read(node):
            self.buffers.read(value)

    def _field(self, argument: object) -> object:
        if isinstance(argument, Node):
            return self.buffers[argument]
        if isinstance(argument, RopeSpec):
            return self._rope(argument)
        if isinstance(argument, RawTensor):
            return self.weights.vector(argument) if len(argument.shape) == 1 else self.weights[argument]
        return argument

    def _head_linear(self, node: fused.Call, x: Node, weight: RawTensor, kept: int) -> None:
        weights = self.weights.all([weight.matrix(head) for head in range(weight.shape[0])])
        part = _native.LinearPart(weights, self.buffers.allocate(node.out))
        self._add(node.op, x=self.buffers[x], part=part, kept=kept)
        self.buffers.read(x)

    def _experts(
        self,
        node: fused.Call,
        x: Node,
        router: Node,
        gate: Sequence[RawTensor],
        up: Sequence[RawTensor],
        down: Sequence[RawTensor],
        spec: ExpertsSpec,
        scales: RawTensor | None,
        biases: ExpertBiases | None,
        corrections: RawTensor | None,
    ) -> None:
        """A token gets a row for each of its experts. Rows of one expert stand together: a step reads its weights
        once."""
        used, (ffn, hidden) = spec.num_used, gate[0].shape
        groups = spec.groups or ExpertGroups(1, 1, 1)
        self._add(
            StageKind.ROUTE,
            scores=self.buffers[router],
            num_experts=len(gate),
            top_k=used,
            normalize=spec.normalize,
            sigmoid=spec.scoring == "sigmoid",
            groups=groups.count,
            used_groups=groups.num_used,
            best=groups.best,
            scale=spec.scale,
            scales=None if scales is None else self.weights.vector(scales),
            corrections=None if corrections is None else self.weights.vector(corrections),
        )
        self.buffers.read(router)
        gates, ups, downs = self.buffers.take(ffn, used), self.buffers.take(ffn, used), self.buffers.take(hidden, used)
        of_gate, of_up, of_down = (self.weights.vector(bias) for bias in biases) if biases else (None, None, None)
        both = [(gate, gates, of_gate), (up, ups, of_up)]
        self._routed_products({"x": self.buffers[x]}, "to_routed", both, used)
        self.buffers.read(x)
        gated = {"x": ups, "gate": gates, "activation": spec.activation}
        self._routed_products(gated, "routed", [(down, downs, of_down)], used)
        self._add(StageKind.COMBINE, x=downs, out=self.buffers.allocate(node.out))
        for buffer, columns in ((gates, ffn), (ups, ffn), (downs, hidden)):
            self.buffers.give_back(buffer, columns, used)

    def _routed_products(
        self,
        source: dict[str, Any],
        rows: str,
        weights: list[tuple[Sequence[RawTensor], int, FloatArray | None]],
        used: int,
    ) -> None:
        """Products of what a rowwise stage makes with `weights` of the experts, each into its buffer, biases added."""
        tensors = [tensor for experts, _, _ in weights for tensor in experts]
        columns, is_float = tensors[0].shape[1], tensors[0].type in FLOAT_TYPES
        if any((t.type in FLOAT_TYPES) != is_float or self.weights.order(t) is not None for t in tensors):
            raise UnsupportedError(f"experts that read their input in ways of their own, as {tensors[0].name!r} does")
        parts = [_native.LinearPart(self.weights.all(experts), out, bias) for experts, out, bias in weights]
        if is_float:
            made = self.buffers.take(columns, used)
            self._add(StageKind.ROWWISE, **source, out=made, rows=rows)
            self._add(StageKind.LINEAR, x=made, parts=parts, rows="routed")
            self.buffers.give_back(made, columns, used)
        else:
            quantized = self.buffers.quantized(columns, used)
            self._add(StageKind.ROWWISE, **source, quantized=quantized, rows=rows)
            self._add(StageKind.LINEAR, quantized=quantized, parts=parts, rows="routed")

    def _rope(self, spec: RopeSpec) -> int:
        if spec.key not in self.ropes:
            inv_freq = np.ascontiguousarray(spec.inv_freq, np.float32)
            self.ropes[spec.key] = self.program.add_rope(inv_freq, spec.scale, spec.style == "neox")
        return self.ropes[spec.key]
