"""What a step has to do: operations, and bytes to read, from the model's shape alone.

    linear       2 FLOPs for each weight of a matrix and each token; the output head only for rows that are sampled
    attention    2 (Dk + Dv) FLOPs for each query head, token and token that it sees, layer by layer
    recurrence   7 FLOPs for each number of its state and each token: to decay, to compare, to write, to read
    bytes        every weight matrix once a step, the keys and values that the sequences see, states twice

Of experts, a step of T tokens reads those that some token picked: 1 − (1 − k/E)^T of them, if picks are even.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagoda.plan.cost.memory import STATE_BYTES, kv_layer_bytes
from pagoda.plan.model.shapes import AttentionShape, ModelShape
from pagoda.plan.model.weights import ModelWeights

STATE_FLOPS = 7  # of a gated delta rule: S e^g, Sᵀk, k δᵀ, Sᵀq


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` sequences that compute `queries` tokens each and then are `context` tokens long."""

    count: float
    queries: int
    context: float


@dataclass(frozen=True, slots=True)
class StepShape:
    """What one forward pass computes: tokens by chunk, and rows of logits."""

    chunks: tuple[Chunk, ...]
    rows: float  # of logits

    @property
    def tokens(self) -> float:
        return sum(chunk.count * chunk.queries for chunk in self.chunks)


def decode_step(batch: float, context: float) -> StepShape:
    return StepShape((Chunk(batch, 1, context),), batch)


def prefill_steps(prompt: int, chunk: int, cached: int = 0) -> list[StepShape]:
    """The steps that prefill one prompt, `chunk` tokens at a time; its first `cached` tokens are in the prefix
    cache."""
    ends = [*range(cached + chunk, prompt, chunk), prompt]
    starts = [cached, *ends[:-1]]
    return [
        StepShape((Chunk(1, end - start, end),), float(end == prompt)) for start, end in zip(starts, ends, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class StepCost:
    """FLOPs and bytes of one step."""

    linear_flops: float
    attention_flops: float
    weight_bytes: float
    kv_bytes: float

    @property
    def flops(self) -> float:
        return self.linear_flops + self.attention_flops

    @property
    def bytes(self) -> float:
        return self.weight_bytes + self.kv_bytes

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.bytes


class Workload:
    """FLOPs and bytes of any step of one model in one format."""

    def __init__(self, shape: ModelShape, weights: ModelWeights, kv_type: str) -> None:
        self.shape = shape
        head, layers = shape.head, shape.layer_matrices
        self.head_bytes = weights.tensors[head.name]
        self.dense_bytes = sum(weights.tensors[t.name] for t in layers if not t.is_expert)
        self.expert_bytes = sum(weights.tensors[t.name] for t in layers if t.is_expert)
        self.layer_weights = sum(t.elements * shape.active_share(t) for t in layers)  # that one token meets
        self.head_weights = head.elements
        self.kv_read_bytes = [(kind, kind.num_layers * kv_layer_bytes(kind, kv_type)) for kind in shape.attention]
        self.state_bytes = 2 * STATE_BYTES * shape.state_elements

    def of(self, step: StepShape) -> StepCost:
        touched = 1.0
        if self.shape.num_experts:
            touched = 1 - (1 - self.shape.experts_used / self.shape.num_experts) ** step.tokens
        weight_bytes = self.dense_bytes + touched * self.expert_bytes + (self.head_bytes if step.rows else 0)
        return StepCost(
            linear_flops=2 * (self.layer_weights * step.tokens + self.head_weights * step.rows),
            attention_flops=sum(_attention_flops(kind, step.chunks) for kind in self.shape.attention)
            + STATE_FLOPS * self.shape.state_elements * step.tokens,
            weight_bytes=weight_bytes,
            kv_bytes=sum(self._kv_bytes(chunk) for chunk in step.chunks),
        )

    def _kv_bytes(self, chunk: Chunk) -> float:
        """Bytes of KV that the step reads and writes; tokens outside of a sliding window are not read."""
        each = sum(
            size * min(chunk.context, (kind.window or chunk.context) + chunk.queries)
            for kind, size in self.kv_read_bytes
        )
        return chunk.count * (each + self.state_bytes)


def _attention_flops(kind: AttentionShape, chunks: Sequence[Chunk]) -> float:
    return sum(chunk.count * pairs(chunk, kind.window) * _pair_flops(kind) for chunk in chunks)


def _pair_flops(kind: AttentionShape) -> float:
    """Latent attention is to the latents: wider, but nothing is unpacked (DeepSeek-V2, 2.1.2)."""
    if kind.latent_dim:
        rank = kind.latent_dim - (kind.key_dim - kind.value_dim)  # without the rotary part
        return 2 * kind.num_layers * kind.num_heads * (kind.latent_dim + rank)
    return kind.flops_per_pair


def pairs(chunk: Chunk, window: int | None) -> float:
    """(query, key) pairs of one sequence of the chunk, with causal attention within the window."""
    q, end = chunk.queries, chunk.context
    first = end - q + 1  # keys that the first query sees
    if window is None or end <= window:
        return q * (first + end) / 2
    if first >= window:
        return float(q * window)
    growing = window - first  # queries that see less than the window
    return growing * (first + window - 1) / 2 + (q - growing) * window
