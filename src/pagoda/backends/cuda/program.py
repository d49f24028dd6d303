"""A recorded forward pass as steps over device ops. What is fused:

    add, then the norm of the sum             one pass over the residual stream, which stays in float32
    linears that read one value               one product, whose columns their readers take their part of
    norm of heads, rope, storing keys         one pass beside attention
    gate and up                               summed from their parts as the activation reads them

A value may come in parts (`ops.py`). What steps cannot say is refused by name, not computed wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pagoda.backends import trace as t
from pagoda.backends.base import KVGroup, RopeSpec
from pagoda.backends.cuda.kv import KVLayer
from pagoda.backends.cuda.layer import AttentionLayer
from pagoda.backends.cuda.metadata import Angles, Step
from pagoda.backends.cuda.ops import DeviceOps, whole
from pagoda.backends.cuda.shard import Shard, node_reads_part
from pagoda.backends.cuda.weights import WeightLoader
from pagoda.errors import UnsupportedError
from pagoda.types import RawTensor


@dataclass(slots=True)
class Run:
    """One pass: the step, and the values that were computed so far, by node."""

    step: Step
    kv: Mapping[int, KVLayer]
    values: dict[int, torch.Tensor]


Action = Callable[[Run], None]


class Program:
    """What `compile_program` made: call it with a step. → logits [R, V] float32"""

    def __init__(self, actions: list[Action], ropes: list[RopeSpec], result: int, device: torch.device) -> None:
        self._actions = actions
        self._result = result
        self._ropes = [
            (torch.from_numpy(spec.inv_freq.astype(np.float64)).to(device), float(spec.scale)) for spec in ropes
        ]

    def __call__(self, step: Step, kv: Mapping[int, KVLayer]) -> torch.Tensor:
        run = Run(step.with_angles(self._angles(step)), kv, {})
        for act in self._actions:
            act(run)
        return run.values[self._result]

    def _angles(self, step: Step) -> tuple[Angles, ...]:
        """In float64, as the reference: positions are large, and float32 would turn them by the wrong angle."""
        position = step.positions.to(torch.float64)[:, None]
        angles = [(position * frequency, scale) for frequency, scale in self._ropes]
        return tuple(((a.cos() * scale).to(torch.float32), (a.sin() * scale).to(torch.float32)) for a, scale in angles)


class ProgramCompiler:
    """Turns nodes into actions, in the order in which the model stated them."""

    def __init__(
        self,
        trace: t.Trace,
        groups: tuple[KVGroup, ...],
        ops: DeviceOps,
        weights: WeightLoader,
        shard: Shard,
    ) -> None:
        self.nodes = trace.nodes
        self.ops, self.weights, self.shard = ops, weights, shard
        self.group_of = {layer: g for g, group in enumerate(groups) for layer in group.layers}
        self.actions: list[Action] = []
        self.ropes: list[RopeSpec] = []
        self.done: set[int] = set()

    def compile(self) -> Program:
        for node in self.nodes:
            if node.index not in self.done:
                self._compile(node)
        last = self.nodes[-1]
        if not isinstance(last, t.Logits):
            raise UnsupportedError("a model must end in its logits")
        return Program(self.actions, self.ropes, last.index, self.weights.device)

    def _compile(self, node: t.Node) -> None:
        if isinstance(node, t.Embed):
            self._embed(node)
        elif isinstance(node, t.Add):
            self._add(node)
        elif isinstance(node, t.Norm):
            self._norm(node)
        elif isinstance(node, t.Linear):
            self._linear(node)
        elif isinstance(node, t.Rope):
            self._deferred(node)
        elif isinstance(node, t.Attention):
            self._attention(node)
        elif isinstance(node, t.Gated):
            self._gated(node)
        elif isinstance(node, t.Logits):
            self._logits(node)
        else:
            raise UnsupportedError(f"the CUDA backend has no kernel for {type(node).__name__}")

    # Ops

    def _embed(self, node: t.Embed) -> None:
        table, ops, out, scale, shard = self.weights.matrix(node.table), self.ops, node.index, node.scale, self.shard
        start, rows = shard.rank * node.table.shape[0], node.table.shape[0]

        def act(run: Run) -> None:
            run.values[out] = ops.embed(table, run.step.tokens, scale)

        def act_on_part(run: Run) -> None:
            """The table's rows are shared out: others hold the rest, and the sum is whole."""
            local = run.step.tokens - start
            mine = (local >= 0) & (local < rows)
            part = ops.embed(table, local.clamp(0, rows - 1), scale) * mine[:, None]
            run.values[out] = shard.sum(part)

        self.actions.append(act if shard.size == 1 else act_on_part)

    def _add(self, node: t.Add) -> None:
        """x is the residual stream and is summed in place; a norm that follows is taken along."""
        x, y, out, ops = node.inputs[0].index, node.inputs[1].index, node.index, self.ops
        if not _is_stream(node.inputs[0]):
            raise UnsupportedError("a sum whose first part is not the residual stream")
        norm = self.nodes[out + 1] if out + 1 < len(self.nodes) else None
        if isinstance(norm, t.Norm) and norm.num_heads is None and norm.inputs == (node,):
            weight, eps, normed = self.weights.vector(norm.weight), norm.eps, norm.index

            def act(run: Run) -> None:
                run.values[normed] = ops.norm(run.values[x], run.values[y], weight, eps)
                run.values[out] = run.values[x]

            self.done.add(normed)
        else:

            def act(run: Run) -> None:
                ops.add(run.values[x], run.values[y])
                run.values[out] = run.values[x]

        self.actions.append(act)

    def _norm(self, node: t.Norm) -> None:
        if node.num_heads is not None:
            self._deferred(node)
            return
        x, out, ops, eps = node.inputs[0].index, node.index, self.ops, node.eps
        weight, stream = self.weights.vector(node.weight), _is_stream(node.inputs[0])

        def act(run: Run) -> None:
            value = run.values[x]
            run.values[out] = ops.norm(value, None, weight, eps) if stream else ops.norm(None, value, weight, eps)

        self.actions.append(act)

    def _linear(self, node: t.Linear) -> None:
        """With its siblings: later linears of the same input whose weights lie alike."""
        mates = [node]
        for other in node.inputs[0].users:
            if isinstance(other, t.Linear) and other.index > node.index and other.index not in self.done:
                alike = self.weights.stackable(node.weight, other.weight)
                if alike and (node.bias is None) == (other.bias is None):
                    mates.append(other)
        weight = self.weights.matrix(*(mate.weight for mate in mates))
        biases: list[RawTensor] = [mate.bias for mate in mates if mate.bias is not None]
        bias = self.weights.vector(*biases) if biases else None
        places, at = [], 0
        for mate in mates:
            places.append((mate.index, at, at + mate.columns))
            at += mate.columns
        x, ops, ready, shard = node.inputs[0].index, self.ops, _is_computed(node.inputs[0]), self.shard
        partial = shard.size > 1 and node_reads_part(node)
        if partial and shard.rank:
            bias = None  # once in the sum is enough

        def act(run: Run) -> None:
            value = run.values[x] if ready else whole(run.values[x]).to(ops.dtype)[None]
            product = ops.linear(value, weight, bias, ops.dtype)
            if partial:
                product = shard.sum(whole(product)[None])
            for out, start, end in places:
                run.values[out] = product[:, :, start:end]

        self.done |= {mate.index for mate in mates}
        self.actions.append(act)

    def _deferred(self, node: t.Norm | t.Rope) -> None:
        """Norm and rotation of heads happen beside attention: nobody else may read them."""
        user = node.only_user
        if not isinstance(user, (t.Rope, t.Attention)):
            raise UnsupportedError(f"{type(node).__name__} of heads that not attention alone reads")

    def _attention(self, node: t.Attention) -> None:
        (q, q_norm, q_rope), (k, k_norm, k_rope) = _chain(node.inputs[0]), _chain(node.inputs[1])
        if (q_rope is None) != (k_rope is None) or (q_rope is not None and k_rope is not None and q_rope is not k_rope):
            raise UnsupportedError("queries and keys that turn differently")
        layer = AttentionLayer(
            node.spec,
            node.layer,
            self.group_of[node.layer],
            self._rope_index(q_rope),
            0 if q_rope is None else q_rope.rotary_dim,
            q_rope is not None and q_rope.style == "interleaved",
            None if q_norm is None else self.weights.vector(q_norm.weight),
            None if k_norm is None else self.weights.vector(k_norm.weight),
            0.0 if q_norm is None else q_norm.eps,
            0.0 if k_norm is None else k_norm.eps,
        )
        inputs, out, ops = (q.index, k.index, node.inputs[2].index), node.index, self.ops

        def act(run: Run) -> None:
            q, k, v = (run.values[i] for i in inputs)
            kv = run.kv[layer.layer]
            run.values[out] = ops.attend(ops.prepare(q, k, v, layer, kv, run.step), layer, kv, run.step)

        self.actions.append(act)

    def _rope_index(self, spec: RopeSpec | None) -> int:
        if spec is None:
            spec = RopeSpec("neox", np.zeros(1, np.float32))
        for i, other in enumerate(self.ropes):
            if other is spec or (other.scale == spec.scale and np.array_equal(other.inv_freq, spec.inv_freq)):
                return i
        self.ropes.append(spec)
        return len(self.ropes) - 1

    def _gated(self, node: t.Gated) -> None:
        gate, up, out, ops, activation = *(n.index for n in node.inputs), node.index, self.ops, node.activation

        def act(run: Run) -> None:
            run.values[out] = ops.gated(run.values[gate], run.values[up], activation)

        self.actions.append(act)

    def _logits(self, node: t.Logits) -> None:
        weight, x, out, ops = self.weights.matrix(node.weight), node.inputs[0].index, node.index, self.ops
        ready, scale, cap = _is_computed(node.inputs[0]), node.scale, node.softcap
        shard, vocab_size = self.shard, node.columns

        def act(run: Run) -> None:
            value = run.values[x] if ready else whole(run.values[x]).to(ops.dtype)[None]
            logits = whole(ops.linear(value.index_select(1, run.step.rows), weight, None, torch.float32))
            if shard.size > 1:
                logits = shard.gather(logits, vocab_size)
            logits = logits * scale if scale != 1.0 else logits
            run.values[out] = logits if cap is None else torch.tanh(logits / cap) * cap

        self.actions.append(act)


def _is_stream(node: t.Node) -> bool:
    """Whether the value is the residual stream, [1, T, E] in float32."""
    return isinstance(node, (t.Embed, t.Add))


def _is_computed(node: t.Node) -> bool:
    """Whether the value is whole, and of the type that products read."""
    return isinstance(node, (t.Norm, t.Attention, t.Gated))


def _chain(node: t.Node) -> tuple[t.Node, t.Norm | None, RopeSpec | None]:
    """What queries or keys come from: linear → norm of heads → rope, the latter two where there are any."""
    rope, norm = None, None
    if isinstance(node, t.Rope):
        rope, node = node.spec, node.inputs[0]
    if isinstance(node, t.Norm) and node.num_heads is not None:
        norm, node = node, node.inputs[0]
    return node, norm, rope
