"""Gemma 4, text. Beside what Gemma 3 has:

- layers that see everything have larger heads, of which the fastest pairs alone are turned, and may have no values of
  their own: values are the keys before norm and rope. All values are normalized, without weights;
- the last layers may read the keys and values of the last layer of their kind before them, and be twice as wide;
- each layer may add an embedding of its own (`PerLayer`), and have experts beside its feed-forward (`Beside`);
- in the end the whole residual stream is multiplied by a number of the layer's.

Norms multiply by w, not 1 + w, and scores are not scaled. See `gemma4_reader.py` for how files say all that.
"""

from __future__ import annotations

from dataclasses import dataclass

from pagoda.backends.base import Handle, Ops
from pagoda.backends.specs import ExpertsSpec
from pagoda.models.layers import AnyNorm, Block, Decoder, Linear, Norm
from pagoda.types import RawTensor


@dataclass(frozen=True, slots=True)
class Beside:
    """A mixture of experts beside the feed-forward: post_norm(ffn) + expert_post_norm(experts(expert_norm(x)))."""

    post_norm: Norm  # of the feed-forward
    router_norm: Norm
    router: Linear  # (N, E)
    scales: RawTensor  # (N,)
    expert_norm: Norm
    gate: tuple[RawTensor, ...]  # of N experts (F, E)
    up: tuple[RawTensor, ...]  # (F, E)
    down: tuple[RawTensor, ...]  # (E, F)
    expert_post_norm: Norm
    spec: ExpertsSpec

    def forward(self, ops: Ops, x: Handle, fed: Handle) -> Handle:
        """x is what the feed-forward's norm read, `fed` what the feed-forward made of it."""
        scores = self.router.forward(ops, self.router_norm.forward(ops, x))  # [T, N]
        h = self.expert_norm.forward(ops, x)
        mixed = ops.experts(h, scores, self.gate, self.up, self.down, self.spec, self.scales)  # [T, E]
        return ops.add(self.post_norm.forward(ops, fed), self.expert_post_norm.forward(ops, mixed))


@dataclass(frozen=True, slots=True)
class PerLayer:
    """The embedding that a layer adds: norm(projection(gelu(gate(x)) * inputs))."""

    gate: Linear  # (P, E)
    projection: Linear  # (E, P)
    norm: Norm

    def forward(self, ops: Ops, x: Handle, inputs: Handle) -> Handle:
        gated = ops.gated(self.gate.forward(ops, x), inputs, "gelu_tanh")  # [T, P]
        return self.norm.forward(ops, self.projection.forward(ops, gated))  # [T, E]


@dataclass(frozen=True)
class Gemma4Block(Block):
    """A `Block` with what only Gemma 4 has."""

    beside: Beside | None = None
    per_layer: PerLayer | None = None
    scale: float = 1.0

    @property
    def matrices(self) -> tuple[RawTensor, ...]:
        found = super().matrices
        if self.per_layer is not None:
            found = (*found, self.per_layer.gate.weight, self.per_layer.projection.weight)
        return found if self.beside is None else (*found, *self.beside.gate, *self.beside.up, *self.beside.down)

    def forward(self, ops: Ops, layer: int, x: Handle, inputs: Handle | None = None) -> Handle:
        assert self.attention is not None  # all blocks have both
        assert self.ffn is not None
        attended = self.attention.forward(ops, layer, _norm(ops, self.attn_norm, x))
        x = ops.add(x, _norm(ops, self.attn_post_norm, attended))
        fed = self.ffn.forward(ops, _norm(ops, self.ffn_norm, x))
        if self.beside is not None:
            fed = self.beside.forward(ops, x, fed)
        x = ops.add(x, _norm(ops, self.ffn_post_norm, fed))
        if self.per_layer is not None:
            x = ops.add(x, self.per_layer.forward(ops, x, inputs))
        return x if self.scale == 1.0 else ops.columns(x, 0, self.width, self.scale)

    @property
    def width(self) -> int:
        assert self.attention is not None
        return self.attention.output.weight.shape[0]


def _norm(ops: Ops, norm: AnyNorm | None, x: Handle) -> Handle:
    assert norm is not None  # all blocks have all
    return norm.forward(ops, x)


@dataclass(frozen=True, slots=True)
class PerLayerInputs:
    """What `PerLayer` reads, of all layers side by side: norm(projection(embedding)) + table's rows, over sqrt(2).

    The scales of either part are in the norm and in `scale`. Tokens that the table lacks, which stand for what was seen
    or heard, read its first row.
    """

    table: RawTensor  # (V or fewer, N * P) of N layers
    scale: float
    projection: Linear  # (N * P, E)
    norm: Norm  # over each layer's (P,)

    def forward(self, ops: Ops, embedding: Handle, num_layers: int) -> Handle:
        projected = self.projection.forward(ops, embedding)
        own = ops.embed(self.table, self.scale, by="known_tokens")
        return ops.add(self.norm.forward_heads(ops, projected, num_layers), own)

    def of_layer(self, ops: Ops, inputs: Handle, layer: int) -> Handle:
        """The layer's part of what `forward` gives. → [T, P]"""
        size = self.norm.weight.shape[0]
        return ops.columns(inputs, layer * size, size)


@dataclass(frozen=True)
class Gemma4(Decoder):
    """A `Decoder` whose blocks may read embeddings of their own."""

    per_layer: PerLayerInputs | None = None

    def forward(self, ops: Ops) -> None:
        x, inputs = ops.embed(self.embedding, self.embedding_scale), None  # [T, E]
        if self.per_layer is not None:  # of an embedding that nothing is added to
            embedding = ops.embed(self.embedding, self.embedding_scale)
            inputs = self.per_layer.forward(ops, embedding, len(self.blocks))  # [T, N * P]
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Gemma4Block)
            own = None if self.per_layer is None else self.per_layer.of_layer(ops, inputs, layer)
            x = block.forward(ops, layer, x, own)
        x = self.output_norm.forward(ops, x)
        ops.logits(x, self.output, scale=self.logit_scale, softcap=self.logit_softcap)  # [R, V]
        ops.hidden_states(x)  # [R2, E]
