"""A bidirectional encoder as a forward pass: embeddings → norm → N blocks → hidden states, as BERT has it.

Covered: learned positions, token types, attention to all tokens of a text, layer norms after each part. Not covered:
relative positions (MPNet, DeBERTa), rotary ones (ModernBERT, Nomic).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pagoda.backends.base import Handle, Ops
from pagoda.backends.specs import Activation, AttentionSpec, KVGroup
from pagoda.models.layers import LayerNorm, Linear
from pagoda.types import RawTensor

KV_LAYER = 0  # keys and values are read within their own layer alone, so that all layers store them in one place


@dataclass(frozen=True, slots=True)
class EncoderBlock:
    """x = norm(x + attention(x)), then x = norm(x + down(activation(up(x))))."""

    q: Linear
    k: Linear
    v: Linear
    output: Linear
    attn_norm: LayerNorm
    up: Linear
    down: Linear
    ffn_norm: LayerNorm
    spec: AttentionSpec
    activation: Activation

    def with_matrices(self, change: Callable[[RawTensor], RawTensor]) -> EncoderBlock:
        q, k, v, output, up, down = (
            Linear(change(linear.weight), linear.bias)
            for linear in (self.q, self.k, self.v, self.output, self.up, self.down)
        )
        return replace(self, q=q, k=k, v=v, output=output, up=up, down=down)

    def forward(self, ops: Ops, x: Handle) -> Handle:
        q, k, v = (linear.forward(ops, x) for linear in (self.q, self.k, self.v))  # [T, H * D]
        attended = self.output.forward(ops, ops.attention(KV_LAYER, q, k, v, self.spec))  # [T, E]
        x = self.attn_norm.forward(ops, ops.add(x, attended))
        hidden = ops.gated(self.up.forward(ops, x), None, self.activation)  # [T, F]
        return self.ffn_norm.forward(ops, ops.add(x, self.down.forward(ops, hidden)))


@dataclass(frozen=True)
class Encoder:
    """An encoder; a `ForwardModel` that ends in hidden states. Each sequence of a batch is one whole text."""

    embedding: RawTensor  # (V, E)
    positions: RawTensor  # (P, E)
    position_offset: int  # the row of position 0: RoBERTa leaves some out
    token_types: RawTensor | None  # (N, E)
    embedding_norm: LayerNorm
    blocks: tuple[EncoderBlock, ...]
    max_context: int
    num_layers: int = 1  # of keys and values

    def with_matrices(self, change: Callable[[RawTensor], RawTensor]) -> Encoder:
        """The encoder with other weights in its products."""
        return replace(self, blocks=tuple(block.with_matrices(change) for block in self.blocks))

    @property
    def vocab_size(self) -> int:
        return self.embedding.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.embedding.shape[1]

    @property
    def num_token_types(self) -> int:
        return 1 if self.token_types is None else self.token_types.shape[0]

    @property
    def num_kv_heads(self) -> int:
        return self.blocks[0].spec.num_kv_heads

    @property
    def head_dim(self) -> int:
        return self.blocks[0].spec.head_dim

    @property
    def kv_groups(self) -> tuple[KVGroup, ...]:
        return (KVGroup((KV_LAYER,), None),)

    def forward(self, ops: Ops) -> None:
        x = ops.embed(self.embedding)  # [T, E]
        x = ops.add(x, ops.embed(self.positions, by="positions", offset=self.position_offset))
        if self.token_types is not None:
            x = ops.add(x, ops.embed(self.token_types, by="types"))
        x = self.embedding_norm.forward(ops, x)
        for block in self.blocks:
            x = block.forward(ops, x)
        ops.hidden_states(x)  # [R2, E]
