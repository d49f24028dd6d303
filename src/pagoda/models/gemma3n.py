"""Gemma 3n, text. It has what small Gemma 4 models have, embeddings of layers' own and keys that layers share. Besides:

- tokens have several residual streams, side by side. A layer predicts all of them, computes with one, and corrects all
  of them by what came out (`AltUp`, alternating updates, arXiv 2301.13310);
- a product of low rank stands beside attention (LAuReL, arXiv 2411.07501);
- in the first layers only gates far above the mean of all count (`Ops.gaussian_topk`).

Norms multiply by w, not 1 + w, and scores are not scaled. See `gemma3n_reader.py` for how files say all that.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from pagoda.backends.base import Handle, Ops
from pagoda.models.family import floats, ones
from pagoda.models.gemma4 import PerLayer, PerLayerInputs
from pagoda.models.layers import AnyNorm, Block, Decoder, Linear, Norm, same_row
from pagoda.types import RawTensor

LEAST = 1e-30  # under a root, so that what is all 0 stays so


@dataclass(frozen=True, slots=True)
class AltUp:
    """How a layer passes N streams of width E on.

    What predict and correct read is tanh(router(norm(x) / E)), with biases of the identity and of 1. As tanh(z) is
    2 sigmoid(2 z) - 1, they hold twice their weights and biases less the sums of rows; router_norm's weight is 2 / E.
    """

    router_norm: Norm
    router: Linear  # (N, E)
    predict: Linear  # (N * N, N)
    correct: Linear  # (N, N)
    active: int  # the stream that the layer computes with
    count: int

    def predictions(self, ops: Ops, streams: Handle, width: int) -> Handle:
        """What each stream will be: itself, and a share of each. [T, N * E] → [T, N * E]"""
        modalities = self._modalities(ops, self.active_of(ops, streams, width))
        return ops.mix_streams(streams, self.predict.forward(ops, modalities), self.count)

    def active_of(self, ops: Ops, streams: Handle, width: int, scale: float = 1.0) -> Handle:
        """scale * the active stream. → [T, E]"""
        return ops.columns(streams, self.active * width, width, scale)

    def corrected(self, ops: Ops, predictions: Handle, made: Handle, width: int) -> Handle:
        """Each prediction, and a share of what was made [T, E] beyond that of the active stream. → [T, N * E]"""
        shares = self.correct.forward(ops, self._modalities(ops, made))
        beyond = ops.add(self.active_of(ops, predictions, width, -1.0), made)
        return ops.add(predictions, ops.mix_streams(beyond, shares, 1))

    def _modalities(self, ops: Ops, x: Handle) -> Handle:
        """sigmoid(router(norm(x) * 2 / E)). → [T, N]"""
        return ops.gated(self.router.forward(ops, self.router_norm.forward(ops, x)), None, "sigmoid")


@dataclass(frozen=True, slots=True)
class Laurel:
    """norm(right(left(x))) + x, of low rank."""

    left: Linear  # (rank, E)
    right: Linear  # (E, rank)
    norm: Norm

    def forward(self, ops: Ops, x: Handle) -> Handle:
        return ops.add(self.norm.forward(ops, self.right.forward(ops, self.left.forward(ops, x))), x)


@dataclass(frozen=True, kw_only=True)
class Gemma3nBlock(Block):
    """A layer over streams side by side; `per_layer_scale` (1, E) scales what its own embedding is made of."""

    altup: AltUp
    laurel: Laurel
    per_layer: PerLayer
    per_layer_scale: RawTensor | None

    @property
    def matrices(self) -> tuple[RawTensor, ...]:
        found = (self.laurel.left, self.laurel.right, self.per_layer.gate, self.per_layer.projection)
        return (*super().matrices, *(linear.weight for linear in found))

    def forward(
        self, ops: Ops, layer: int, x: Handle, inputs: Handle | None = None, others: Handle | None = None
    ) -> Handle:
        """x [T, N * E]; others [T, N]: 1 for the streams that the layer's own embedding is added to. → [T, N * E]"""
        assert self.attention is not None
        width = self.laurel.right.weight.shape[0]
        predictions = self.altup.predictions(ops, x, width)
        active = self.altup.active_of(ops, predictions, width)
        h = _normed(ops, self.attn_norm, active)
        laurel = self.laurel.forward(ops, h)
        attended = ops.add(active, _normed(ops, self.attn_post_norm, self.attention.forward(ops, layer, h)))
        made = ops.columns(ops.add(attended, laurel), 0, width, sqrt(0.5))
        assert self.ffn is not None
        fed = self.ffn.forward(ops, _normed(ops, self.ffn_norm, made))
        made = ops.add(made, _normed(ops, self.ffn_post_norm, fed))
        streams = self.altup.corrected(ops, predictions, made, width)
        first = self.altup.active_of(ops, streams, width)
        if self.per_layer_scale is not None:
            first = ops.multiply(first, same_row(ops, self.per_layer_scale))
        own = self.per_layer.forward(ops, first, inputs)
        return ops.add(streams, ops.mix_streams(own, others, 1))


def _normed(ops: Ops, norm: AnyNorm | None, x: Handle) -> Handle:
    assert norm is not None  # all blocks have all
    return norm.forward(ops, x)


@dataclass(frozen=True, slots=True)
class Streams:
    """How streams come out of the embedding, and become one again: each is projected to the size of the first.

    Publishers' code takes at least 1e-5 for the mean square of what is projected; real ones are far above.
    """

    spread: tuple[RawTensor, ...]  # of all streams but the first (E, E)
    merge: tuple[RawTensor, ...]

    @property
    def count(self) -> int:
        return len(self.spread) + 1

    def begin(self, ops: Ops, x: Handle, width: int) -> Handle:
        """x [T, E] → [T, N * E]"""
        first = floats("streams.first", np.eye(self.count)[:1])
        streams, size = ops.mix_streams(x, same_row(ops, first), 1), self._size(ops, x, width)
        for i, weight in enumerate(self.spread):
            place = floats(f"streams.{i + 1}", np.eye(self.count)[i + 1][:, None])  # (N, 1)
            share = ops.linear(size, place)  # [T, N]: its size where the stream stands
            made = self._unit(ops, ops.linear(x, weight), width)
            streams = ops.add(streams, ops.mix_streams(made, share, 1))
        return streams

    def end(self, ops: Ops, streams: Handle, width: int) -> Handle:
        """The sum of all, [T, N * E] → [T, E]"""
        size, total = self._size(ops, ops.columns(streams, 0, width), width), None
        for i, weight in enumerate(self.merge):
            made = self._unit(ops, ops.linear(ops.columns(streams, (i + 1) * width, width), weight), width)
            total = made if total is None else ops.add(total, made)
        return ops.add(ops.columns(streams, 0, width), ops.mix_streams(total, size, 1))

    def others(self, ops: Ops) -> Handle:
        """1 for all streams but the first. → [T, N]"""
        return same_row(ops, floats("streams.others", 1 - np.eye(self.count)[:1]))

    def _unit(self, ops: Ops, x: Handle, width: int) -> Handle:
        """x with a root mean square of 1."""
        return ops.rms_norm(x, ones(width), LEAST)

    def _size(self, ops: Ops, x: Handle, width: int) -> Handle:
        """The root mean square of x: the mean of x times what x would be if that were 1. → [T, 1]"""
        mean = floats("streams.mean", np.full((1, width), 1 / width))
        return ops.linear(ops.multiply(x, self._unit(ops, x, width)), mean)


@dataclass(frozen=True, kw_only=True)
class Gemma3n(Decoder):
    """A `Decoder` of several streams, whose blocks read embeddings of their own. output_norm's epsilon is for a sum of
    streams instead of their mean."""

    streams: Streams
    per_layer: PerLayerInputs

    def forward(self, ops: Ops) -> None:
        width = self.embedding.shape[1]
        embedding = ops.embed(self.embedding, self.embedding_scale)  # [T, E]
        inputs = self.per_layer.forward(ops, embedding, len(self.blocks))  # [T, L * P] of L layers
        x, others = self.streams.begin(ops, embedding, width), self.streams.others(ops)
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Gemma3nBlock)
            x = block.forward(ops, layer, x, self.per_layer.of_layer(ops, inputs, layer), others)
        x = self.output_norm.forward(ops, self.streams.end(ops, x, width))
        ops.logits(x, self.output, scale=self.logit_scale, softcap=self.logit_softcap)  # [R, V]
        ops.hidden_states(x)  # [R2, E]
