"""From a recorded forward pass to the native program's stages, with what saves bytes or barriers fused.

- norm and gated activation run where their result is quantized, and leave no float copy behind;
- linears that read the same value become one stage; so do rope, head norms and the KV store of a layer;
- a linear or norm whose result is only added to the residual adds into it;
- weights whose columns are sorted by group (act-order) get their activations in that order as these are quantized.

Values live in buffers that are reused once their last reader has run. What would write over a value that a folded
norm or activation still waits for runs that one first.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from pagoda import _native
from pagoda.backends import grouped
from pagoda.backends.base import ForwardModel, RopeSpec
from pagoda.backends.trace import Add, Attention, Embed, Gated, Linear, Logits, Node, Norm, Rope, Trace
from pagoda.errors import UnsupportedError
from pagoda.formats.blocks import BLOCK_TYPES, dequantize
from pagoda.formats.packed import Ints
from pagoda.formats.quantized import QuantizedTensor
from pagoda.types import FloatArray, RawTensor

NONE = -1
FLOAT_TYPES = ("F32", "F16", "BF16")


def check_blocks(tensor: RawTensor) -> None:
    """UnsupportedError that names the tensor, where no kernel takes its type, or its rows are not whole blocks."""
    if tensor.type not in BLOCK_TYPES:
        known = ", ".join(BLOCK_TYPES)
        raise UnsupportedError(f"tensor {tensor.name!r} has type {tensor.type!r}; supported: {known}")
    columns, elements = tensor.shape[-1], BLOCK_TYPES[tensor.type].elements
    if columns % elements:
        raise UnsupportedError(
            f"tensor {tensor.name!r} has {columns} columns, which {tensor.type} cannot pack in blocks of {elements}"
        )


def as_floats(tensor: RawTensor) -> FloatArray:
    check_blocks(tensor)
    return np.ascontiguousarray(dequantize(tensor.data, tensor.type, tensor.shape).reshape(-1), np.float32)


class Weights:
    """Packed weights by name: a weight that is used twice is packed once."""

    def __init__(self, runtime: _native.Runtime) -> None:
        self.runtime = runtime
        self.packed: dict[str, _native.Weight] = {}
        self.orders: dict[str, Ints | None] = {}

    def __getitem__(self, tensor: RawTensor) -> _native.Weight:
        if tensor.name in self.packed:
            return self.packed[tensor.name]
        if isinstance(tensor, QuantizedTensor):
            self.packed[tensor.name] = grouped.pack(self.runtime, tensor)
        else:
            check_blocks(tensor)
            rows, columns = tensor.shape
            data = np.ascontiguousarray(tensor.data.reshape(-1))
            self.packed[tensor.name] = self.runtime.pack(data, tensor.type, rows, columns)
        return self.packed[tensor.name]

    def order(self, tensor: RawTensor) -> Ints | None:
        """The order of columns that the packed weight wants its activations in; None: as they are."""
        if not isinstance(tensor, QuantizedTensor):
            return None
        if tensor.name not in self.orders:
            self.orders[tensor.name] = tensor.column_order()
        return self.orders[tensor.name]

    @property
    def num_bytes(self) -> int:
        return sum(weight.bytes for weight in self.packed.values())


class Compiler:
    """Emits one forward pass into `program`. Use once: `compile()`."""

    def __init__(self, program: _native.Program, weights: Weights, trace: Trace) -> None:
        self.program = program
        self.weights = weights
        self.nodes = trace.nodes
        self.buffers: dict[Node, int] = {}
        self.readers: Counter[Node] = Counter({node: len(node.users) for node in trace.nodes})
        self.free_buffers: dict[int, list[int]] = {}
        self.quantized_buffers: dict[int, int] = {}
        self.ropes: dict[tuple[str, float, bytes], int] = {}
        self.emitted: set[Node] = set()

    def compile(self) -> None:
        for node in self.nodes:
            if node not in self.emitted:
                self._emit(node)

    def _emit(self, node: Node) -> None:
        match node:
            case Embed():
                self._embed(node)
            case Norm():
                if node.num_heads is not None:
                    self._check_head_norm(node)
                elif not self._is_folded(node):
                    self._norm(node)
            case Gated():
                if not self._is_folded(node):
                    self._gated(node)
            case Linear():
                self._linears(node)
            case Attention():
                self._attention(node)
            case Add():
                self._add(node)
            case Logits():
                self._logits(node)
            case Rope():
                self._check_prepared(node)

    # Buffers -----------------------------------------------------------------------------------------------

    def _allocate(self, node: Node) -> int:
        free = self.free_buffers.setdefault(node.columns, [])
        self.buffers[node] = free.pop() if free else self.program.add_buffer(node.columns)
        return self.buffers[node]

    def _read(self, node: Node, times: int = 1) -> None:
        """`times` of the node's readers have run; after the last one its buffer is free."""
        self.readers[node] -= times
        if self.readers[node] == 0 and node in self.buffers:
            self.free_buffers[node.columns].append(self.buffers.pop(node))

    def _quantized(self, columns: int) -> int:
        if columns not in self.quantized_buffers:
            self.quantized_buffers[columns] = self.program.add_quantized(columns)
        return self.quantized_buffers[columns]

    # Ops ---------------------------------------------------------------------------------------------------

    def _embed(self, node: Embed) -> None:
        table = node.table
        check_blocks(table)
        rows, columns = table.shape
        data = np.ascontiguousarray(table.data.reshape(-1))
        self.program.embed(self._allocate(node), data, table.type, rows, columns, node.scale)

    def _is_folded(self, node: Node) -> bool:
        """Whether one stage alone reads the node, and quantizes it, so that it need not exist as floats."""
        users = node.users
        quantizes = all(isinstance(u, (Linear, Logits)) and u.weight.type not in FLOAT_TYPES for u in users)
        one_stage = len(users) == 1 or all(isinstance(u, Linear) for u in users)
        return bool(users) and quantizes and one_stage and len({self._source(u) for u in users}) == 1

    def _source(self, node: Node) -> bytes | None:
        """What a product reads its input as: floats (None), or quantized in an order of columns (empty: as it is)."""
        assert isinstance(node, (Linear, Logits))
        if node.weight.type in FLOAT_TYPES:
            return None
        order = self.weights.order(node.weight)
        return b"" if order is None else order.tobytes()

    def _unfold_readers(self, x: Node, before: Node) -> None:
        """Run what waits for x, folded into a later stage, now: `before` writes over x."""
        for node in x.users:
            waits = self.readers[node] > 0 and node not in self.buffers and node.index < before.index
            if waits and isinstance(node, Norm):
                self._norm(node)
            elif waits and isinstance(node, Gated):
                self._gated(node)

    def _norm(self, node: Norm) -> None:
        (x,) = node.inputs
        add = self._residual(node)
        out = self.buffers[add.inputs[0]] if add else self._allocate(node)
        weight = as_floats(node.weight)
        self.program.rows(self.buffers[x], norm=weight, eps=node.eps, out=out, accumulate=add is not None)
        self._read(x)
        if add:
            self._added(add)

    def _gated(self, node: Gated) -> None:
        gate, up = node.inputs
        self.program.rows(
            self.buffers[up], gate=self.buffers[gate], activation=node.activation, out=self._allocate(node)
        )
        self._read(gate)
        self._read(up)

    def _add(self, node: Add) -> None:
        x, y = node.inputs
        self._unfold_readers(x, node)
        self.program.rows(self.buffers[y], out=self.buffers[x], accumulate=True)
        self._added(node)

    def _added(self, add: Add) -> None:
        """The sum stands in the first operand's buffer."""
        x, y = add.inputs
        self._read(y)
        self.readers[x] -= 1
        self.buffers[add] = self.buffers.pop(x)
        self.emitted.add(add)

    def _residual(self, node: Node) -> Add | None:
        """The sum that alone reads the node and whose other operand nobody else still reads."""
        add = node.only_user
        if not isinstance(add, Add) or add.inputs[1] is not node:
            return None
        x = add.inputs[0]
        return add if x in self.buffers and self.readers[x] == 1 else None

    def _quantize(self, node: Node, order: Ints | None, *, gather: bool) -> int:
        """Quantize the node's rows, running the norm or activation that makes it on the way."""
        to = self._quantized(node.columns)
        if node in self.buffers:
            self.program.rows(self.buffers[node], quantized=to, gather=gather, order=order)
        elif isinstance(node, Norm):
            x = self.buffers[node.inputs[0]]
            norm = as_floats(node.weight)
            self.program.rows(x, norm=norm, eps=node.eps, quantized=to, gather=gather, order=order)
        else:
            assert isinstance(node, Gated)
            gate, up = (self.buffers[value] for value in node.inputs)
            activation = node.activation
            self.program.rows(up, gate=gate, activation=activation, quantized=to, gather=gather, order=order)
        if node not in self.buffers:
            for value in node.inputs:
                self._read(value)
        return to

    def _linears(self, first: Linear) -> None:
        """The linear and all others that read the same value: one stage for each way in which they read it."""
        (x,) = first.inputs
        together = [node for node in x.users if isinstance(node, Linear)]
        groups: dict[bytes | None, list[Linear]] = {}
        for node in together:
            groups.setdefault(self._source(node), []).append(node)
        for way in sorted(groups, key=lambda way: (way is None, way or b"")):
            group = groups[way]
            quantized = NONE if way is None else self._quantize(x, self.weights.order(group[0].weight), gather=False)
            self.program.linear(self.buffers[x] if way is None else NONE, quantized, self._parts(group))
        self.emitted.update(together)
        self._read(x, len(together))

    def _parts(self, group: list[Linear]) -> list[_native.LinearPart]:
        """Parts run side by side, so no two may write to one buffer: of two such the second is added later."""
        parts: list[_native.LinearPart] = []
        written: set[int] = set()
        for node in group:
            add = self._residual(node)
            if add and self.buffers[add.inputs[0]] in written:
                add = None
            out = self.buffers[add.inputs[0]] if add else self._allocate(node)
            written.add(out)
            bias = as_floats(node.bias) if node.bias is not None else None
            if add:
                self._added(add)
            parts.append(_native.LinearPart(self.weights[node.weight], out, bias, accumulate=add is not None))
        return parts

    def _logits(self, node: Logits) -> None:
        (x,) = node.inputs
        weight = self.weights[node.weight]
        part = _native.LinearPart(weight, NONE, None, scale=node.scale)
        softcap = node.softcap or 0.0
        if weight.is_float:
            gathered = self.program.add_buffer(x.columns)
            self.program.rows(self.buffers[x], out=gathered, gather=True)
            self.program.linear(gathered, NONE, [part], logits=True, softcap=softcap)
        else:
            quantized = self._quantize(x, self.weights.order(node.weight), gather=True)
            self.program.linear(NONE, quantized, [part], logits=True, softcap=softcap)
        self._read(x)

    # Attention ---------------------------------------------------------------------------------------------

    def _attention(self, node: Attention) -> None:
        q, k, v = node.inputs
        q_source, q_norm, q_rope = self._turns(q)
        k_source, k_norm, k_rope = self._turns(k)
        if q_rope != k_rope or (q_norm and k_norm and q_norm.eps != k_norm.eps):
            raise UnsupportedError("queries and keys of one layer must be rotated and normalized alike")
        norm = q_norm or k_norm
        self.program.prepare(
            self.buffers[q_source],
            self.buffers[k_source],
            self.buffers[v],
            node.layer,
            q_rope,
            as_floats(q_norm.weight) if q_norm else None,
            as_floats(k_norm.weight) if k_norm else None,
            norm.eps if norm else 0.0,
        )
        spec = node.spec
        self.program.attend(
            self.buffers[q_source],
            self._allocate(node),
            node.layer,
            spec.num_heads,
            spec.scale,
            spec.softcap or 0.0,
            spec.window or 0,
        )
        for source in (q_source, k_source, v):
            self._read(source)

    def _turns(self, node: Node) -> tuple[Node, Norm | None, int]:
        """What lies between a projection and attention, which happens in place: → (projection, head norm, rope)."""
        rope, norm = NONE, None
        if isinstance(node, Rope):
            rope = self._rope(node.spec)
            node = node.inputs[0]
        if isinstance(node, Norm) and node.num_heads is not None:
            norm = node
            node = node.inputs[0]
        if len(node.users) > 1 and (norm or rope != NONE):
            raise UnsupportedError("the CPU backend needs queries and keys that nothing else reads before their rope")
        return node, norm, rope

    def _rope(self, spec: RopeSpec) -> int:
        key = (spec.style, spec.scale, spec.inv_freq.tobytes())
        if key not in self.ropes:
            inv_freq = np.ascontiguousarray(spec.inv_freq, np.float32)
            self.ropes[key] = self.program.add_rope(inv_freq, spec.scale, spec.style == "neox")
        return self.ropes[key]

    def _check_prepared(self, node: Rope) -> None:
        if not isinstance(node.only_user, Attention):
            raise UnsupportedError("the CPU backend rotates queries and keys of attention only")

    def _check_head_norm(self, node: Norm) -> None:
        if not isinstance(node.only_user, (Rope, Attention)):
            raise UnsupportedError("the CPU backend normalizes heads of queries and keys of attention only")


def kv_layers(model: ForwardModel, attentions: list[Attention]) -> list[tuple[int, int, int]]:
    """→ (KV group, KV heads, head size) a layer."""
    specs = {node.layer: node.spec for node in attentions}
    if sorted(node.layer for node in attentions) != list(range(model.num_layers)):
        raise UnsupportedError("the CPU backend needs one attention in each layer")
    groups = {layer: g for g, group in enumerate(model.kv_groups) for layer in group.layers}
    return [(groups[layer], specs[layer].num_kv_heads, specs[layer].head_dim) for layer in range(model.num_layers)]
