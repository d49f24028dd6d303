"""A decoder as a forward pass: embed → N blocks → norm → logits. Families differ in which parts are there.

Covered: grouped-query attention, rotary embedding, norms of each query and key head, biases, sliding windows, gated
attention, recurrent layers in its place (`recurrent.py`), feed-forward with a gate or without, mixtures of experts,
also beside a shared one, norms after both, attention and feed-forward side by side. Not covered: cross attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from pagoda.backends.base import Handle, Ops
from pagoda.backends.specs import Activation, AttentionSpec, ExpertBiases, ExpertsSpec, KVGroup, RopeSpec
from pagoda.types import RawTensor


@dataclass(frozen=True, slots=True)
class Linear:
    """scale * (x @ weight.T + bias); weight (out, in), bias (out,)."""

    weight: RawTensor
    bias: RawTensor | None = None
    scale: float = 1.0

    def forward(self, ops: Ops, x: Handle) -> Handle:
        out = ops.linear(x, self.weight, self.bias)
        return out if self.scale == 1.0 else ops.columns(out, 0, self.weight.shape[0], self.scale)


@dataclass(frozen=True, slots=True)
class Norm:
    """RMS norm with weight (E,), or over each head with (D,) or (H * D,), perhaps `centered` as a layer norm is."""

    weight: RawTensor
    eps: float
    centered: bool = False

    def forward(self, ops: Ops, x: Handle) -> Handle:
        return ops.rms_norm(x, self.weight, self.eps)

    def forward_heads(self, ops: Ops, x: Handle, num_heads: int) -> Handle:
        return ops.head_norm(x, self.weight, self.eps, num_heads, centered=self.centered)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Layer norm with weight and bias (E,)."""

    weight: RawTensor
    bias: RawTensor
    eps: float

    def forward(self, ops: Ops, x: Handle) -> Handle:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


AnyNorm = Norm | LayerNorm


def same_row(ops: Ops, row: RawTensor) -> Handle:
    """`row` (1, n) for each token: the embedding of the one type that all tokens of a decoder have. → [T, n]"""
    return ops.embed(row, by="types")


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal self-attention over paged KV.

    Without k it reads the keys and values of layer `kv_layer`; without v alone, values are keys before norm and rope.
    """

    q: Linear
    k: Linear | None
    v: Linear | None
    output: Linear
    rope: RopeSpec | None  # None: this layer does not see positions
    spec: AttentionSpec
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    whole_norms: bool = False  # over all heads together, not over each
    norms_last: bool = False  # after the rotary embedding, not before
    v_norm: Norm | None = None  # over each head
    kv_layer: int | None = None
    gate: Linear | None = None  # of what attention gives, through a sigmoid
    sinks: RawTensor | None = None  # (H,)

    @property
    def linears(self) -> dict[str, Linear]:
        named = {"q": self.q, "k": self.k, "v": self.v, "o": self.output, "gate": self.gate}
        return {name: linear for name, linear in named.items() if linear is not None}

    def forward(self, ops: Ops, layer: int, x: Handle) -> Handle:
        q = self._rotate(ops, self.q.forward(ops, x), self.q_norm, self.spec.num_heads)  # [T, H * D]
        if self.k is None:
            assert self.kv_layer is not None
            attended = ops.attention(self.kv_layer, q, None, None, self.spec, self.sinks)
        else:
            raw = self.k.forward(ops, x)  # [T, K * D]
            v = raw if self.v is None else self.v.forward(ops, x)
            if self.v_norm is not None:
                v = self.v_norm.forward_heads(ops, v, self.spec.num_kv_heads)
            k = self._rotate(ops, raw, self.k_norm, self.spec.num_kv_heads)
            attended = ops.attention(layer, q, k, v, self.spec, self.sinks)
        if self.gate is not None:
            attended = ops.gated(self.gate.forward(ops, x), attended, "sigmoid")
        return self.output.forward(ops, attended)  # [T, E]

    def _rotate(self, ops: Ops, x: Handle, norm: Norm | None, num_heads: int) -> Handle:
        if self.norms_last and self.rope is not None:
            x = ops.rope(x, num_heads, self.rope)
        if norm is not None:
            x = norm.forward(ops, x) if self.whole_norms else norm.forward_heads(ops, x, num_heads)
        return x if self.norms_last or self.rope is None else ops.rope(x, num_heads, self.rope)


class Recurrent(Protocol):
    """What stands in attention's place or beside it, and keeps of a sequence a state of fixed size (`recurrent.py`)."""

    @property
    def linears(self) -> dict[str, Linear]: ...

    @property
    def state_elements(self) -> int:
        """Numbers that are kept of a sequence."""

    def forward(self, ops: Ops, layer: int, x: Handle) -> Handle: ...


@dataclass(frozen=True, slots=True)
class FeedForward:
    """down(activation(gate(x)) * up(x)); down(activation(up(x))) where there is no gate."""

    gate: Linear | None
    up: Linear
    down: Linear
    activation: Activation
    deviations: float | None = None  # of a gate, only what lies so many standard deviations above the mean counts

    @property
    def linears(self) -> dict[str, Linear]:
        named = {"gate": self.gate, "up": self.up, "down": self.down}
        return {name: linear for name, linear in named.items() if linear is not None}

    @property
    def matrices(self) -> tuple[RawTensor, ...]:
        return tuple(linear.weight for linear in self.linears.values())

    def forward(self, ops: Ops, x: Handle) -> Handle:
        if self.gate is None:
            hidden = ops.gated(self.up.forward(ops, x), None, self.activation)  # [T, F]
        else:
            gate = self.gate.forward(ops, x)
            if self.deviations is not None:
                gate = ops.gaussian_topk(gate, self.deviations)
            hidden = ops.gated(gate, self.up.forward(ops, x), self.activation)
        return self.down.forward(ops, hidden)  # [T, E]


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts, each a feed-forward of its own; a router picks some for each token.

    A shared one, if any, works for every token; shared_gate (1, E) says through a sigmoid how much it counts.
    """

    router: Linear  # (N, E)
    gate: tuple[RawTensor, ...]  # of N experts (F, E)
    up: tuple[RawTensor, ...]  # (F, E)
    down: tuple[RawTensor, ...]  # (E, F)
    spec: ExpertsSpec
    shared: FeedForward | None = None
    shared_gate: Linear | None = None
    biases: ExpertBiases | None = None
    corrections: RawTensor | None = None  # (N,): of the scores that experts are picked by

    @property
    def matrices(self) -> tuple[RawTensor, ...]:
        """Of all experts, but for the router."""
        return (*self.gate, *self.up, *self.down, *(() if self.shared is None else self.shared.matrices))

    def forward(self, ops: Ops, x: Handle) -> Handle:
        router, experts = self.router.forward(ops, x), (self.gate, self.up, self.down)  # [T, N]
        out = ops.experts(x, router, *experts, self.spec, biases=self.biases, corrections=self.corrections)  # [T, E]
        if self.shared is None:
            return out
        shared = self.shared.forward(ops, x)
        if self.shared_gate is not None:
            shared = ops.scale_rows(shared, self.shared_gate.forward(ops, x), "sigmoid")
        return ops.add(out, shared)


@dataclass(frozen=True, slots=True)
class Block:
    """x += post(mixed(norm(x))), mixed being attention, a recurrent layer or the sum of both; then the same with the
    feed-forward, which where it is `parallel` reads what attention read. Either may be missing."""

    attn_norm: AnyNorm | None
    attention: Attention | None
    ffn_norm: AnyNorm | None
    ffn: FeedForward | Experts | None
    attn_post_norm: AnyNorm | None = None
    ffn_post_norm: AnyNorm | None = None
    parallel: bool = False
    recurrent: Recurrent | None = None

    @property
    def matrices(self) -> tuple[RawTensor, ...]:
        """What tokens are multiplied with, but for a router."""
        parts = [part for part in (self.attention, self.recurrent) if part is not None]
        mixing = [linear.weight for part in parts for linear in part.linears.values()]
        return (*mixing, *(() if self.ffn is None else self.ffn.matrices))

    def forward(self, ops: Ops, layer: int, x: Handle) -> Handle:
        h = x
        if self.attention is not None or self.recurrent is not None:
            h = _normed(ops, x, self.attn_norm)
            mixed = self._mix(ops, layer, h)
            if self.parallel:
                assert self.ffn is not None
                return ops.add(x, ops.add(mixed, self.ffn.forward(ops, h)))
            x = _add(ops, x, mixed, self.attn_post_norm)
        if self.ffn is None:
            return x
        return _add(ops, x, self.ffn.forward(ops, _normed(ops, x, self.ffn_norm)), self.ffn_post_norm)

    def _mix(self, ops: Ops, layer: int, h: Handle) -> Handle:
        recurred = None if self.recurrent is None else self.recurrent.forward(ops, layer, h)
        if self.attention is None:
            return recurred
        attended = self.attention.forward(ops, layer, h)
        return attended if recurred is None else ops.add(attended, recurred)


def _normed(ops: Ops, x: Handle, norm: AnyNorm | None) -> Handle:
    return x if norm is None else norm.forward(ops, x)


def _add(ops: Ops, x: Handle, y: Handle, norm: AnyNorm | None) -> Handle:
    return ops.add(x, _normed(ops, y, norm))


@dataclass(frozen=True)
class Decoder:
    """A decoder-only model; a `ForwardModel`."""

    embedding: RawTensor  # (V, E)
    blocks: tuple[Block, ...]
    output_norm: AnyNorm
    output: RawTensor  # (V, E), the embedding itself where they are tied
    max_context: int
    embedding_scale: float = 1.0
    logit_softcap: float | None = None
    logit_scale: float = 1.0  # before the soft cap

    @property
    def vocab_size(self) -> int:
        return self.embedding.shape[0]

    @property
    def num_layers(self) -> int:
        return len(self.blocks)

    @property
    def num_kv_heads(self) -> int:
        return self.attention.spec.num_kv_heads

    @property
    def head_dim(self) -> int:
        return self.attention.spec.head_dim

    @cached_property
    def attentions(self) -> dict[int, Attention]:
        """The attention of each layer that has any."""
        found = ((layer, block.attention) for layer, block in enumerate(self.blocks))
        return {layer: attention for layer, attention in found if attention is not None}

    @property
    def attention(self) -> Attention:
        """The attention of the first of those layers."""
        return next(iter(self.attentions.values()))

    @property
    def is_hybrid(self) -> bool:
        """Whether some layers keep a state."""
        return any(block.recurrent is not None for block in self.blocks)

    @cached_property
    def rope(self) -> RopeSpec:
        """That of the first layer with a rotary embedding that sees everything, or else of the first with one."""
        turned = [attention for attention in self.attentions.values() if attention.rope is not None]
        found = next((attention for attention in turned if attention.spec.window is None), turned[0]).rope
        assert found is not None
        return found

    @cached_property
    def kv_groups(self) -> tuple[KVGroup, ...]:
        """One group a window, in the order in which layers first use them; of layers with keys of their own."""
        layers: dict[int | None, list[int]] = {}
        for layer, attention in self.attentions.items():
            if attention.k is not None:
                layers.setdefault(attention.spec.window, []).append(layer)
        return tuple(KVGroup(tuple(members), window) for window, members in layers.items())

    def forward(self, ops: Ops) -> None:
        x = ops.embed(self.embedding, self.embedding_scale)  # [T, E]
        for layer, block in enumerate(self.blocks):
            x = block.forward(ops, layer, x)
        x = self.output_norm.forward(ops, x)
        ops.logits(x, self.output, scale=self.logit_scale, softcap=self.logit_softcap)  # [R, V]
        ops.hidden_states(x)  # [R2, E]
