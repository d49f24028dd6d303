"""Compiles a forward pass's fused nodes to actions over `EagerOps`, each of which computes one node of values in parts
(`parts.py`). The residual stream stays in float32; siblings among linears are one product, whose columns their readers
take their part of.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch

from pagoda.backends import fused_nodes as fused
from pagoda.backends import lowering as low
from pagoda.backends import states
from pagoda.backends.base import ForwardModel
from pagoda.backends.cuda.adapters import Site, places_of, sites_of
from pagoda.backends.cuda.eager import EagerOps
from pagoda.backends.cuda.layer import AttentionLayer, Rotation
from pagoda.backends.cuda.paged import grown
from pagoda.backends.cuda.parts import whole
from pagoda.backends.cuda.program import Action, Program, Run
from pagoda.backends.cuda.shard import Shard
from pagoda.backends.cuda.weights import WeightLoader
from pagoda.backends.specs import RopeSpec
from pagoda.backends.trace import Node
from pagoda.types import RawTensor

FUSED = ("embed", "rms_norm", "layer_norm", "attention", "logits", "hidden_states")  # in nodes, under other names
# whose values are new, and float32
STREAMS = ("columns", "head_linear", "mix_streams", "short_conv", "delta_rule", "selective_scan")
FLOATS = ("weight", "biases")  # weights of other ops than linears: float32, whatever their shape
# whose values are of the compute type
COMPUTED = ("experts", "gaussian_topk", "head_norm", "multiply", "rope", "scale_rows")


def is_computed(op: str) -> bool:
    """Whether the compiler, or the ops themselves, know this op."""
    return op in FUSED or hasattr(EagerOps, op)


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
        self.waits = False  # for the device to say what is to be done: no graph can hold that

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
            tokens = run.step.tokens
            if node.by == "types":  # of which decoders have one
                tokens = torch.zeros_like(tokens)
            elif node.by == "known_tokens":
                tokens = torch.where(tokens < rows, tokens, 0)
            run.values[out] = ops.embed(table, tokens, scale)

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
        weight, bias = self._vector(node.weight), self._vector(node.bias)
        self.streams.add(total)
        self.computed.add(out)

        def act(run: Run) -> None:
            run.values[out] = ops.norm(run.values[x], run.values[y], weight, eps, bias)
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
        x, eps, ops, is_stream = norm.x, norm.eps, self.ops, norm.x in self.streams
        weight, bias = self._vector(norm.weight), self._vector(norm.bias)
        self.computed.add(out)

        def act(run: Run) -> None:
            value = run.values[x]
            stream, other = (value, None) if is_stream else (None, value)
            run.values[out] = ops.norm(stream, other, weight, eps, bias)

        self.actions.append(act)

    def _gated(self, out: Node, gated: fused.Gated) -> None:
        gate, up, activation, ops = gated.gate, gated.up, gated.activation, self.ops
        self.computed.add(out)
        self.cut.add(out)

        def act(run: Run) -> None:
            run.values[out] = ops.gated(run.values[gate], None if up is None else run.values[up], activation)

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
        layer = AttentionLayer(
            node.spec,
            node.layer,
            self.group_of[node.layer],
            self._rotation(node.rope),
            self._vector(node.q_norm),
            self._vector(node.k_norm),
            node.eps,
            self._vector(node.sinks),
        )
        q, k, out, ops, spec = node.q, node.k, node.out, self.ops, node.spec
        v = k if node.v is None else node.v  # latents are kept twice here, and the sum over whole ones is cut
        self.computed.add(out)
        self.cut.add(out)

        def act(run: Run) -> None:
            kv = run.caches.kv[layer.layer]
            keys, values = (None if x is None else run.values[x] for x in (k, v))
            queries = ops.rope_and_store_kv(run.values[q], keys, values, layer, kv, run.step)
            if spec.growth is not None:
                queries = grown(queries, run.step.positions, spec.growth)
            attended = ops.attend(queries, layer, kv, run.step)
            if spec.values_from:
                attended = attended.unflatten(-1, (spec.num_heads, -1))[..., spec.values_from :].flatten(-2)
            run.values[out] = attended

        self.actions.append(act)

    def _vector(self, raw: RawTensor | None) -> torch.Tensor | None:
        return None if raw is None else self.weights.vector(raw)

    def _rotation(self, spec: RopeSpec | None) -> Rotation:
        if spec is None:
            return Rotation(self._rope_index(RopeSpec("neox", np.zeros(1, np.float32))))
        return Rotation(self._rope_index(spec), spec.rotary_dim, spec.style == "interleaved")

    def _rope_index(self, spec: RopeSpec) -> int:
        for i, other in enumerate(self.ropes):
            if other is spec or (other.scale == spec.scale and np.array_equal(other.inv_freq, spec.inv_freq)):
                return i
        self.ropes.append(spec)
        return len(self.ropes) - 1

    def _call(self, node: fused.Call) -> None:
        """An op that is fused with nothing is the method of its name. Rotations are told the step; ops with a state the
        step and their states."""
        method, out, has_state = getattr(self.ops, node.op), node.out, node.op in states.OPS
        values = {name: value for name, value in node.arguments.items() if isinstance(value, Node)}
        weights = {name: value for name, value in node.arguments.items() if name not in values}
        stack = node.op == "experts" and all(self._alike(node.arguments[name]) for name in ("gate", "up", "down"))
        if stack:
            method = self.ops.stacked_experts
        self.waits |= node.op == "experts" and not stack
        others: dict[str, Any] = {
            name: self._floats(value) if name in FLOATS else self._placed(value, stack=stack)
            for name, value in weights.items()
        }
        reads_step = has_state or node.op == "rope"
        if node.op == "rope":
            others["rotation"] = self._rotation(others.pop("spec"))
        key = (node.op, others.pop("layer")) if has_state else None
        if node.op in STREAMS:
            self.streams.add(out)
        elif node.op in COMPUTED:
            self.computed.add(out)

        def act(run: Run) -> None:
            given = others | {name: run.values[value] for name, value in values.items()}
            if reads_step:
                given["step"] = run.step
            if key is not None:
                given["states"] = run.caches.states[key]
            run.values[out] = method(**given)

        self.actions.append(act)

    def _floats(self, raw: RawTensor | tuple[RawTensor, ...] | None) -> Any:
        """Tensors of any shape in float32, as vectors are."""
        if isinstance(raw, tuple):
            return tuple(self._floats(part) for part in raw)
        return raw and self.weights.vector(replace(raw, shape=(prod(raw.shape),))).view(raw.shape)

    def _alike(self, experts: tuple[RawTensor, ...]) -> bool:
        """Whether they can be one stack."""
        return len({self.weights.layout(raw) for raw in experts}) == 1

    def _placed(self, argument: object, *, stack: bool = False) -> object:
        """The argument itself, or the weight on the device; several of them in one stack, or one by one."""
        if isinstance(argument, tuple):
            return self.weights.matrix(*argument) if stack else tuple(self._placed(raw) for raw in argument)
        if not isinstance(argument, RawTensor):
            return argument
        return self.weights.vector(argument) if len(argument.shape) == 1 else self.weights.matrix(argument)
