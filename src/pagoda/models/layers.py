"""A decoder as a forward pass: embed → N blocks → norm → logits. Families differ in which parts are there.

Covered: grouped-query attention, rotary embedding, norms of each query and key head, biases, sliding windows, gated
feed-forward, mixtures of experts, norms after both. Not covered: parallel blocks, cross attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pagoda.backends.base import Activation, AttentionSpec, ExpertsSpec, Handle, KVGroup, Ops, RopeSpec
from pagoda.types import RawTensor


@dataclass(frozen=True, slots=True)
class Linear:
    """x @ weight.T + bias; weight (out, in), bias (out,)."""

    weight: RawTensor
    bias: RawTensor | None = None

    def forward(self, ops: Ops, x: Handle) -> Handle:
        return ops.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Norm:
    """RMS norm with weight (E,), or (D,) over each head."""

    weight: RawTensor
    eps: float

    def forward(self, ops: Ops, x: Handle) -> Handle:
        return ops.rms_norm(x, self.weight, self.eps)

    def forward_heads(self, ops: Ops, x: Handle, num_heads: int) -> Handle:
        return ops.head_norm(x, self.weight, self.eps, num_heads)


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal self-attention over paged KV."""

    q: Linear
    k: Linear
    v: Linear
    output: Linear
    rope: RopeSpec | None  # None: this layer does not see positions
    spec: AttentionSpec
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    whole_norms: bool = False  # over all heads together, not over each

    def forward(self, ops: Ops, layer: int, x: Handle) -> Handle:
        q = self._rotate(ops, self.q.forward(ops, x), self.q_norm, self.spec.num_heads)  # [T, H * D]
        k = self._rotate(ops, self.k.forward(ops, x), self.k_norm, self.spec.num_kv_heads)  # [T, K * D]
        v = self.v.forward(ops, x)  # [T, K * D]
        return self.output.forward(ops, ops.attention(layer, q, k, v, self.spec))  # [T, E]

    def _rotate(self, ops: Ops, x: Handle, norm: Norm | None, num_heads: int) -> Handle:
        if norm is not None:
            x = norm.forward(ops, x) if self.whole_norms else norm.forward_heads(ops, x, num_heads)
        return x if self.rope is None else ops.rope(x, num_heads, self.rope)


@dataclass(frozen=True, slots=True)
class FeedForward:
    """down(activation(gate(x)) * up(x))."""

    gate: Linear
    up: Linear
    down: Linear
    activation: Activation

    def forward(self, ops: Ops, x: Handle) -> Handle:
        gated = ops.gated(self.gate.forward(ops, x), self.up.forward(ops, x), self.activation)  # [T, F]
        return self.down.forward(ops, gated)  # [T, E]


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts, each a feed-forward of its own; a router picks some for each token."""

    router: Linear  # (N, E)
    gate: tuple[RawTensor, ...]  # of N experts (F, E)
    up: tuple[RawTensor, ...]  # (F, E)
    down: tuple[RawTensor, ...]  # (E, F)
    spec: ExpertsSpec

    def forward(self, ops: Ops, x: Handle) -> Handle:
        return ops.experts(x, self.router.forward(ops, x), self.gate, self.up, self.down, self.spec)  # [T, E]


@dataclass(frozen=True, slots=True)
class Block:
    """x += post(attention(norm(x))), then the same with the feed-forward."""

    attn_norm: Norm | None
    attention: Attention
    ffn_norm: Norm | None
    ffn: FeedForward | Experts
    attn_post_norm: Norm | None = None
    ffn_post_norm: Norm | None = None

    @property
    def matrices(self) -> tuple[RawTensor, ...]:
        """What tokens are multiplied with, but for a router."""
        a, f = self.attention, self.ffn
        attention = (a.q.weight, a.k.weight, a.v.weight, a.output.weight)
        if isinstance(f, Experts):
            return (*attention, *f.gate, *f.up, *f.down)
        return (*attention, f.gate.weight, f.up.weight, f.down.weight)

    def forward(self, ops: Ops, layer: int, x: Handle) -> Handle:
        attended = self.attention.forward(ops, layer, _normed(ops, x, self.attn_norm))
        x = _add(ops, x, attended, self.attn_post_norm)
        return _add(ops, x, self.ffn.forward(ops, _normed(ops, x, self.ffn_norm)), self.ffn_post_norm)


def _normed(ops: Ops, x: Handle, norm: Norm | None) -> Handle:
    return x if norm is None else norm.forward(ops, x)


def _add(ops: Ops, x: Handle, y: Handle, norm: Norm | None) -> Handle:
    return ops.add(x, _normed(ops, y, norm))


@dataclass(frozen=True)
class Decoder:
    """A decoder-only model; a `ForwardModel`."""

    embedding: RawTensor  # (V, E)
    blocks: tuple[Block, ...]
    output_norm: Norm
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
        return self.blocks[0].attention.spec.num_kv_heads

    @property
    def head_dim(self) -> int:
        return self.blocks[0].attention.spec.head_dim

    @cached_property
    def rope(self) -> RopeSpec:
        """Of the first layer that has a rotary embedding."""
        return next(block.attention.rope for block in self.blocks if block.attention.rope is not None)

    @cached_property
    def kv_groups(self) -> tuple[KVGroup, ...]:
        """One group a window, in the order in which layers first use them."""
        layers: dict[int | None, list[int]] = {}
        for i, block in enumerate(self.blocks):
            layers.setdefault(block.attention.spec.window, []).append(i)
        return tuple(KVGroup(tuple(members), window) for window, members in layers.items())

    def forward(self, ops: Ops) -> None:
        x = ops.embed(self.embedding, self.embedding_scale)  # [T, E]
        for layer, block in enumerate(self.blocks):
            x = block.forward(ops, layer, x)
        x = self.output_norm.forward(ops, x)
        ops.logits(x, self.output, scale=self.logit_scale, softcap=self.logit_softcap)  # [R, V]
        ops.hidden_states(x)  # [R2, E]
