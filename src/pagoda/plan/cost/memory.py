"""Memory: weights + KV of every running request + working buffers + runtime, and how many requests fit.

KV of a request is counted in the engine's own blocks of 16 tokens (`kv.table.peak_blocks`), layer kind by layer kind:
a sliding window keeps no more than the window. Static reservation, which paging replaces, takes the longest context for
every request.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pagoda.engine.memory import SEQUENCE_STATES
from pagoda.kv.table import blocks_for, peak_blocks
from pagoda.plan.model.shapes import AttentionShape, ModelShape
from pagoda.types import BLOCK_SIZE

KV_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "int16": 2.0, "fp8": 1.0, "int8": 1.0}
KV_SCALES = {"int16": 4.0, "int8": 4.0}  # bytes of the scale that these keep for K, and for V, of a token and head

# What a process on a GPU holds beside its tensors: CUDA context and loaded kernels (about 0.5 GB), library workspaces
# and the graphs of decode (about 0.5 GB).
GPU_RUNTIME_BYTES = 1_000_000_000
# Python with the engine's modules, and the server's; a tokenizer's tables for each entry of a vocabulary, where it has
# merges and where it has scores. Fitted to resident memory: docs/planning.md says on what.
ENGINE_BYTES = 46_000_000
SERVER_BYTES = 14_000_000
MERGED_ENTRY_BYTES, SCORED_ENTRY_BYTES = 740, 315


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device, which holds 1/shards of weights and KV."""

    device_bytes: int
    usable_bytes: int  # within the utilization
    weight_bytes: int
    buffer_bytes: int
    runtime_bytes: int
    kv_token_bytes: float  # a token that all layers keep, without block rounding
    kv_request_bytes: int  # a request of the planned length, in whole blocks, and its recurrent state
    kv_context_bytes: int  # a request as long as the context

    @property
    def fixed_bytes(self) -> int:
        return self.weight_bytes + self.buffer_bytes + self.runtime_bytes

    @property
    def kv_room_bytes(self) -> int:
        """Bytes left for KV; negative: the model does not fit at all."""
        return self.usable_bytes - self.fixed_bytes

    @property
    def max_requests(self) -> int:
        """Requests of the planned length that run at once."""
        return max(0, self.kv_room_bytes // self.kv_request_bytes)

    @property
    def max_full_requests(self) -> int:
        """Requests at once if each is as long as the context."""
        return max(0, self.kv_room_bytes // self.kv_context_bytes)

    def with_draft(self, draft: Memory) -> Memory:
        """With a draft model beside it, in the same process, which keeps KV of the same requests."""
        return replace(
            self,
            weight_bytes=self.weight_bytes + draft.weight_bytes,
            buffer_bytes=self.buffer_bytes + draft.buffer_bytes,
            kv_token_bytes=self.kv_token_bytes + draft.kv_token_bytes,
            kv_request_bytes=self.kv_request_bytes + draft.kv_request_bytes,
            kv_context_bytes=self.kv_context_bytes + draft.kv_context_bytes,
        )

    def total_bytes(self, num_requests: int) -> int:
        return self.fixed_bytes + num_requests * self.kv_request_bytes


STATE_BYTES = 4.0  # of each number that a recurrent layer keeps


def kv_layer_bytes(kind: AttentionShape, kv_type: str) -> float:
    """Bytes of KV that one token keeps in one layer of this kind."""
    scales = KV_SCALES.get(kv_type, 0.0) * (1 if kind.latent_dim else 2 * kind.num_kv_heads)
    return kind.layer_kv_elements * KV_BYTES[kv_type] + scales


def kv_token_bytes(kind: AttentionShape, kv_type: str) -> float:
    """Bytes of KV that one token keeps in the layers of this kind."""
    return kind.num_keeping * kv_layer_bytes(kind, kv_type)


def kv_request_bytes(shape: ModelShape, kv_type: str, num_tokens: int, chunk: int) -> int:
    """Bytes of KV of a request of `num_tokens` tokens, in whole blocks, prefilled `chunk` at a time; and its states, of
    which the engine keeps one for the prefix."""
    blocks = sum(
        peak_blocks(num_tokens, kind.window, chunk) * BLOCK_SIZE * kv_token_bytes(kind, kv_type)
        for kind in shape.attention
    )
    return round(blocks + SEQUENCE_STATES * STATE_BYTES * shape.state_elements)


def buffer_bytes(shape: ModelShape, batch_tokens: int, rows: int, element_bytes: int = 2) -> int:
    """Working buffers of a step: the values that are alive at once for each token, and logits in f32.

    Residual, its norm, queries, keys, values, attention's result, gate and up.
    """
    kind = shape.attention[0]
    each = 2 * kind.latent_dim if kind.latent_dim else kind.key_dim + kind.value_dim
    heads = (kind.num_heads + kind.num_kv_heads) * each
    widths = 2 * shape.hidden_size + heads + 2 * ffn_width(shape)
    return batch_tokens * widths * element_bytes + rows * shape.vocab_size * 4


def ffn_width(shape: ModelShape) -> int:
    """Width of the feed-forward, summed over the experts active for one token."""
    widths = [0]
    for tensor in shape.layer_matrices:
        if "ffn_down" in tensor.name:
            widths.append(tensor.shape[-1] * (shape.experts_used if tensor.is_expert else 1))
    return max(widths)


def cpu_runtime_bytes(shape: ModelShape, *, server: bool = True) -> int:
    entry = SCORED_ENTRY_BYTES if shape.scored_vocabulary else MERGED_ENTRY_BYTES
    return ENGINE_BYTES + SERVER_BYTES * server + entry * shape.vocab_size


# What paging saves


@dataclass(frozen=True, slots=True)
class Waste:
    """Shares of the KV memory that hold no token."""

    static_share: float  # every request reserves the whole context
    paged_share: float  # the unfilled end of each request's last block
    mean_tokens: float  # that a request holds, on average over its life
    num_lengths: int
    source: str


def waste(lengths: Sequence[tuple[int, int]], context: int, source: str) -> Waste:
    """`lengths` are (prompt, output) of requests. A request's KV is looked at evenly over its output."""
    used = reserved = paged = 0.0
    for prompt, output in lengths:
        tokens = [min(prompt + round(output * (i + 0.5) / PHASES), context) for i in range(PHASES)]
        weight = output / PHASES  # longer outputs are alive for longer
        used += weight * sum(tokens)
        paged += weight * sum(blocks_for(max(n, 1)) * BLOCK_SIZE for n in tokens)
        reserved += weight * context * PHASES
    life = sum(output for _, output in lengths)
    return Waste(1 - used / reserved, 1 - used / paged, used / life, len(lengths), source)


PHASES = 16


def usual_lengths(prompt: int, output: int, context: int) -> list[tuple[int, int]]:
    """Lengths around two means: exponential, which is long-tailed as requests are, at evenly spaced quantiles.

    Prompt and output are paired against each other, so that all mixes of short and long occur.
    """
    quantiles = [-math.log1p(-(i + 0.5) / QUANTILES) for i in range(QUANTILES)]
    pairs = []
    for i in range(QUANTILES):
        for j in range(QUANTILES):
            one = max(1, min(round(prompt * quantiles[i]), context - 1))
            pairs.append((one, max(1, min(round(output * quantiles[j]), context - one))))
    return pairs


QUANTILES = 16
