"""Emits a forward pass's fused nodes as steps over `EagerOps`, each of which computes one node of values in parts
(`parts.py`). The residual stream stays in float32; siblings among linears are one product, whose columns their readers
take their part of.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

import numpy as np
import torch

from pagoda.backends import fused_nodes as fused
from pagoda.backends import lowering as low
from pagoda.backends.base import ForwardModel
from pagoda.backends.cuda.adapters import Site, places_of, sites_of
from pagoda.backends.cuda.eager import EagerOps, grown
from pagoda.backends.cuda.layer import AttentionLayer
from pagoda.backends.cuda.parts import whole
from pagoda.backends.cuda.program import Action, Program, Run
from pagoda.backends.cuda.shard import Shard
from pagoda.backends.cuda.weights import WeightLoader
from pagoda.backends.specs import RopeSpec
from pagoda.backends.trace import Node
from pagoda.errors import UnsupportedError
from pagoda.types import RawTensor


def fusions(weights: WeightLoader) -> low.Fusions:
    """Linears of one value whose weights lie alike are one product; a sum is normalized as it is made."""

    def reading(node: Node) -> Hashable:
        return weights.layout(node["weight"]), node["bias"] is None

    return low.Fusions(reading, reads_through=lambda node: False, sums_with="norms")


class ProgramCompiler:
    """Turns fused nodes into actions, one after the other."""

    def __init__(self, model: ForwardModel, ops: EagerOps, weights: WeightLoader, shard: Shard) -> None:
        self.vocab_size = model.vocab_size
        self.ops, self.weights, self.shard = ops, weights, shard
        self.group_of = {layer: g for g, group in enumerate(model.kv_groups) for layer in group.layers}
        self.actions: list[Action] = []
        self.ropes: list[RopeSpec] = []
        self.streams: set[Node] = set()  # values that are [1, T, E] in float32, and may be added to
        self.computed: set[Node] = set()  # values that are whole, and of the type that products read
        self.cut: set[Node] = set()  # values of which each device has a part of the columns
        self.ends: dict[str, Node] = {}
        self.sites: dict[str, Site] = {}

    def compile(self, nodes: Iterable[fused.FusedNode]) -> Program:
        last_read: dict[Node, int] = {}  # in which action
        for node in nodes:
            self._emit(node)
            last_read |= dict.fromkeys(fused.values_read(node), len(self.actions) - 1)
        unread: list[list[Node]] = [[] for _ in self.actions]
        for value, action in last_read.items():
            unread[action].append(value)
        actions = list(zip(self.actions, unread, strict=True))
        return Program(actions, self.ropes, self.ends, self.sites, self.weights.device)

    def _emit(self, node: fused.FusedNode) -> None:
        match node:
            case fused.Embed():
                self._embed(node)
            case fused.AddNorm():
                self._add_norm(node)
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

    def _embed(self, node: fused.Embed) -> None:
        table, ops, out, scale, shard = self.weights.matrix(node.table), self.ops, node.out, node.scale, self.shard
        rows, start = node.table.shape[0], shard.rank * shard.share_of(self.vocab_size)
        self.streams.add(out)

        def act(run: Run) -> None:
            run.values[out] = ops.embed(table, run.step.tokens, scale)

        def act_on_part(run: Run) -> None:
            """The table's rows are shared out: others hold the rest, and the sum is whole."""
            local = run.step.tokens - start
            mine = (local >= 0) & (local < rows)
            part = ops.embed(table, local.clamp(0, rows - 1), scale) * mine[:, None]
            run.values[out] = shard.sum(part)

        self.actions.append(act if shard.size == 1 else act_on_part)

    # Norms, activations and sums

    def _add_norm(self, node: fused.AddNorm) -> None:
        x, y, total, out, eps, ops = self._stream(node.x), node.y, node.sum, node.out, node.eps, self.ops
        weight = self.weights.vector(node.weight)
        self.streams.add(total)
        self.computed.add(out)

        def act(run: Run) -> None:
            run.values[out] = ops.norm(run.values[x], run.values[y], weight, eps)
            run.values[total] = run.values[x]

        self.actions.append(act)

    def _rowwise(self, node: fused.Rowwise) -> None:
        match node.source:
            case fused.Norm():
                self._norm(node.out, node.source)
            case fused.Gated():
                self._gated(node.out, node.source)
            case y:
                assert node.residual is not None  # there is nothing else to do with a value that is there
                self._add(node.out, node.residual, y)

    def _add(self, out: Node, residual: Node, y: Node) -> None:
        x, ops = self._stream(residual), self.ops
        self.streams.add(out)

        def act(run: Run) -> None:
            ops.add(run.values[x], run.values[y])
            run.values[out] = run.values[x]

        self.actions.append(act)

    def _stream(self, x: Node) -> Node:
        """x, made such that it can be added to."""
        if x not in self.streams:
            self.actions.append(lambda run: run.values.update({x: whole(run.values[x]).clone()[None]}))
        return x

    def _norm(self, out: Node, norm: fused.Norm) -> None:
        x, eps, ops, weight = norm.x, norm.eps, self.ops, self.weights.vector(norm.weight)
        is_stream = x in self.streams
        self.computed.add(out)

        def act(run: Run) -> None:
            value = run.values[x]
            run.values[out] = ops.norm(value, None, weight, eps) if is_stream else ops.norm(None, value, weight, eps)

        self.actions.append(act)

    def _gated(self, out: Node, gated: fused.Gated) -> None:
        assert gated.up is not None  # which only encoders leave out
        gate, up, activation, ops = gated.gate, gated.up, gated.activation, self.ops
        self.computed.add(out)
        self.cut.add(out)

        def act(run: Run) -> None:
            run.values[out] = ops.gated(run.values[gate], run.values[up], activation)

        self.actions.append(act)

    # Products

    def _linears(self, node: fused.Linears) -> None:
        assert isinstance(node.source, Node)  # nothing is read through
        products = node.products
        weight = self.weights.matrix(*(product.weight for product in products))
        biases: list[RawTensor] = [product.bias for product in products if product.bias is not None]
        bias = self.weights.vector(*biases) if biases else None
        read, ops, shard = self._reader(node.source), self.ops, self.shard
        partial = shard.size > 1 and node.source in self.cut
        sites = sites_of((product.weight for product in products), cuts_columns=partial)
        self.sites |= {site.name: site for site in sites}
        places = places_of(sites, self.weights.device)
        if partial and shard.rank:
            bias = None  # once in the sum is enough

        def act(run: Run) -> None:
            x = read(run)
            result = ops.linear(x, weight, bias, ops.dtype)
            if run.step.adapters is not None:
                ops.add_adapters(x, result, sites, places, run.step.adapters)
            if partial:
                result = shard.sum(whole(result)[None])
            for product, site in zip(products, sites, strict=True):
                run.values[product.out] = result[:, :, site.start : site.end]

        self.actions.append(act)

    def _reader(self, x: Node) -> Callable[[Run], torch.Tensor]:
        """Gives x as products read it: [1, T, C], of the compute type."""
        dtype = self.ops.dtype
        if x in self.computed:
            return lambda run: run.values[x]
        return lambda run: whole(run.values[x]).to(dtype)[None]

    def _logits(self, node: fused.Logits) -> None:
        assert isinstance(node.source, Node)
        weight, read, out, ops = self.weights.matrix(node.weight), self._reader(node.source), node.out, self.ops
        scale, cap, shard, vocab_size = node.scale, node.softcap, self.shard, node.out.columns
        self.ends["logits"] = out

        def act(run: Run) -> None:
            rows = read(run).index_select(1, run.step.rows)
            logits = whole(ops.linear(rows, weight, None, torch.float32))
            if shard.size > 1:
                logits = shard.gather(logits, vocab_size)
            logits = logits * scale if scale != 1.0 else logits
            run.values[out] = logits if cap is None else torch.tanh(logits / cap) * cap

        self.actions.append(act)

    def _hidden_states(self, node: fused.HiddenStates) -> None:
        assert isinstance(node.source, Node)
        x, out = node.source, node.out
        self.ends["hidden_states"] = out

        def act(run: Run) -> None:
            if len(run.step.hidden):
                run.values[out] = whole(run.values[x].index_select(1, run.step.hidden))

        self.actions.append(act)

    # Attention, and ops of their own

    def _attention(self, node: fused.Attention) -> None:
        assert node.k is not None  # layers that share keys and values are refused before
        assert node.v is not None
        rope, norms = node.rope, (node.q_norm, node.k_norm)
        q_norm, k_norm = (None if norm is None else self.weights.vector(norm) for norm in norms)
        layer = AttentionLayer(
            node.spec,
            node.layer,
            self.group_of[node.layer],
            self._rope_index(rope),
            0 if rope is None else rope.rotary_dim,
            rope is not None and rope.style == "interleaved",
            q_norm,
            k_norm,
            node.eps,
            self._sinks(node),
        )
        q, k, v, out, ops, growth = node.q, node.k, node.v, node.out, self.ops, node.spec.growth
        self.computed.add(out)
        self.cut.add(out)

        def act(run: Run) -> None:
            kv = run.kv[layer.layer]
            queries = ops.rope_and_store_kv(run.values[q], run.values[k], run.values[v], layer, kv, run.step)
            if growth is not None:
                queries = grown(queries, run.step.positions, growth)
            run.values[out] = ops.attend(queries, layer, kv, run.step)

        self.actions.append(act)

    def _sinks(self, node: fused.Attention) -> torch.Tensor | None:
        if node.sinks is None:
            return None
        if not self.ops.takes_sinks:
            raise UnsupportedError("the GPU kernels' attention takes no sinks yet; serve this model with --device cpu")
        return self.weights.vector(node.sinks)

    def _rope_index(self, spec: RopeSpec | None) -> int:
        if spec is None:
            spec = RopeSpec("neox", np.zeros(1, np.float32))
        for i, other in enumerate(self.ropes):
            if other is spec or (other.scale == spec.scale and np.array_equal(other.inv_freq, spec.inv_freq)):
                return i
        self.ropes.append(spec)
        return len(self.ropes) - 1

    def _call(self, node: fused.Call) -> None:
        """An op that is fused with nothing is the method of its name."""
        method = getattr(self.ops, node.op, None)
        if method is None:
            raise UnsupportedError(f"the CUDA backend does not compute {node.op}")
        out = node.out
        values = {name: value for name, value in node.arguments.items() if isinstance(value, Node)}
        others = {name: self._placed(value) for name, value in node.arguments.items() if name not in values}

        def act(run: Run) -> None:
            run.values[out] = method(**{name: run.values[value] for name, value in values.items()}, **others)

        self.actions.append(act)

    def _placed(self, argument: object) -> object:
        """The argument itself, or the weight on the device, or several."""
        if isinstance(argument, tuple):
            return tuple(self._placed(part) for part in argument)
        if not isinstance(argument, RawTensor):
            return argument
        return self.weights.vector(argument) if len(argument.shape) == 1 else self.weights.matrix(argument)
