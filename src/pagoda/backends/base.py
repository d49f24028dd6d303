"""What a backend is: a short list of ops, and a loaded model that runs batches.

A model file (`pagoda.models`) states its forward pass once, in `Ops`. The reference backend computes each op at
once in numpy; the CPU backend records them into a native program; handles are opaque to the model.

Letters: T tokens of the step, E hidden size, F feed-forward size, H query heads, K KV heads, D head size,
V vocabulary, R rows whose logits are wanted, R2 rows whose hidden states are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from pagoda.backends.specs import (
    Activation,
    AdapterWeights,
    AttentionSpec,
    DeltaSpec,
    EmbedBy,
    ExpertBiases,
    ExpertsSpec,
    KVGroup,
    KVType,
    LoraType,
    RopeSpec,
    ScanSpec,
)
from pagoda.types import Batch, FloatArray, Int32Array
from pagoda.types import RawTensor as RawTensor  # part of this interface

Handle = Any  # numpy array in the reference backend, a buffer id in recorded programs


class PlacedAdapter(Protocol):
    """An adapter where its model computes."""

    @property
    def bytes(self) -> int: ...


class Ops(Protocol):
    """The ops a forward pass is made of. Weights are RawTensors; equal names mean the same weight."""

    def embed(self, table: RawTensor, scale: float = 1.0, by: EmbedBy = "tokens", offset: int = 0) -> Handle:
        """Rows `number + offset` of `table` (V, E), times scale, by each token's id, position or type. → [T, E]"""

    def given(self, columns: int) -> Handle:
        """What the batch brings for each token besides its id, `Batch.given`. → [T, columns]"""

    def rms_norm(self, x: Handle, weight: RawTensor, eps: float) -> Handle:
        """x / sqrt(mean(x²) + eps) * weight, over the last dimension. → [T, E]"""

    def layer_norm(self, x: Handle, weight: RawTensor, bias: RawTensor, eps: float) -> Handle:
        """(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias, over the last dimension. → [T, E]"""

    def head_norm(self, x: Handle, weight: RawTensor, eps: float, num_heads: int, *, centered: bool = False) -> Handle:
        """rms_norm over each head of x [T, num_heads * D] with weight (D,), or with one of its own: (num_heads * D,).

        centered: the mean of each head is taken out before, as a layer norm does.
        """

    def linear(self, x: Handle, weight: RawTensor, bias: RawTensor | None = None) -> Handle:
        """x @ weight.T + bias, and for tokens of sequences with an adapter what that adds. → [T, out]"""

    def head_linear(self, x: Handle, weight: RawTensor, *, kept: int = 0) -> Handle:
        """Each head of x by a matrix of its own, but for its first `kept` numbers, which stay as they are.

        x [T, H * (kept + C)], weight (H, R, C), of a float type. → [T, H * (kept + R)]
        """

    def rope(self, x: Handle, num_heads: int, spec: RopeSpec) -> Handle:
        """Rotate the first rotary_dim of each head of x [T, num_heads * D] by the tokens' positions."""

    def multiply(self, x: Handle, y: Handle) -> Handle:
        """x * y, number by number."""

    def columns(self, x: Handle, start: int, count: int, scale: float = 1.0, *, heads: int = 1) -> Handle:
        """scale * columns [start, start + count) of each of so many heads of x [T, heads * D]. → [T, heads * count]"""

    def attention(
        self,
        layer: int,
        q: Handle,
        k: Handle | None,
        v: Handle | None,
        spec: AttentionSpec,
        sinks: RawTensor | None = None,
    ) -> Handle:
        """Store k, v [T, K * D] in the layer's KV blocks, then attend q [T, H * D] to them. → [T, H * value_dim]

        Without v, values are a part of keys: see `AttentionSpec.values_from`. Without k and v, attend to what the pass
        has stored for `layer` before: layers may share keys and values.
        sinks (H,): a score of each head's own that takes its part of the softmax, and adds nothing.
        """

    def gated(self, gate: Handle, up: Handle | None, activation: Activation) -> Handle:
        """activation(gate) * up, or activation(gate) alone where there is no up. → [T, F]"""

    def experts(
        self,
        x: Handle,
        router: Handle,
        gate: Sequence[RawTensor],
        up: Sequence[RawTensor],
        down: Sequence[RawTensor],
        spec: ExpertsSpec,
        scales: RawTensor | None = None,
        biases: ExpertBiases | None = None,
        corrections: RawTensor | None = None,
    ) -> Handle:
        """Mixture of N experts: of each token the sum over its experts of weight * down(activation(gate(x)) * up(x)).

        x [T, E]; router [T, N] logits, whose scores over all N give the weights, of equals the lower index comes
        first; gate and up: N matrices (F, E); down: N of (E, F); each product may have a bias. scales (N,): what an
        expert's weight is multiplied with in the end. corrections (N,): what is added to its score where experts are
        picked, not where they are weighed. Summed in the order of the experts' indices. → [T, E]
        """

    def scale_rows(self, x: Handle, gate: Handle, activation: Activation) -> Handle:
        """Each row of x [T, E] times activation(gate) of the row's one number, gate [T, 1]. → [T, E]"""

    def gaussian_topk(self, x: Handle, deviations: float) -> Handle:
        """max(x - (mean(x) + deviations * std(x)), 0), over the last dimension; std divides by its length. → [T, F]

        Of numbers that are spread as a Gaussian the largest share stays, by how many deviations that is.
        """

    def mix_streams(self, x: Handle, coefficients: Handle, streams: int) -> Handle:
        """Sums of streams, by coefficients of each token's own. x [T, streams * E] holds them side by side.

        coefficients [T, N * streams]; stream i of N is the sum over j of coefficients[:, i * streams + j] * x_j.
        → [T, N * E]
        """

    # Ops with a state: what they keep of a sequence's tokens has a fixed size and is part of the sequence's state.

    def short_conv(
        self, layer: int, x: Handle, weight: RawTensor, bias: RawTensor | None = None, *, silu: bool
    ) -> Handle:
        """Causal convolution of each column of x [T, C] by itself, plus bias (C,), then SiLU if so. weight (C, N), the
        newest last.

        The state is the last N - 1 rows of x, zeros before the first token. → [T, C]
        """

    def delta_rule(
        self,
        layer: int,
        qkv: Handle,
        alpha: Handle,
        beta: Handle,
        decay: RawTensor,
        dt_bias: RawTensor,
        spec: DeltaSpec,
    ) -> Handle:
        """Gated delta rule (arXiv 2412.06464), for each value head by itself, over the sequence's tokens.

        qkv [T, 2 * num_k_heads * k_dim + num_v_heads * v_dim]; alpha, beta [T, num_v_heads]; decay, dt_bias
        (num_v_heads,). With q and k of length 1 (1e-6 is added to the sum of their squares), q / sqrt(k_dim),
        g = exp(decay * softplus(alpha + dt_bias)) and b = sigmoid(beta):

            S = g S;  S = S + k (b (v - S^T k))^T;  out = S^T q

        The state is S, [num_v_heads, k_dim, v_dim] float32, zero before the first token. → [T, num_v_heads * v_dim]
        """

    def selective_scan(
        self,
        layer: int,
        xbc: Handle,
        dt: Handle,
        decay: RawTensor,
        dt_bias: RawTensor,
        skip: RawTensor,
        spec: ScanSpec,
    ) -> Handle:
        """Mamba-2's state-space recurrence (arXiv 2405.21060), for each head by itself, over the sequence's tokens.

        xbc [T, num_heads * head_dim + 2 * num_groups * state_dim]: x of each head, b, then c of each group; dt
        [T, num_heads]; decay, dt_bias, skip (num_heads,). With d = softplus(dt + dt_bias):

            S = exp(decay * d) S + b (d x)^T;  out = S^T c + skip * x

        The state is S, [num_heads, state_dim, head_dim] float32, zero before the first token.
        → [T, num_heads * head_dim]
        """

    def add(self, x: Handle, y: Handle) -> Handle:
        """x + y. A recorded program may write the sum over x; x is not to be used afterwards."""

    def logits(self, x: Handle, weight: RawTensor, scale: float = 1.0, softcap: float | None = None) -> Handle:
        """Output head for the wanted rows only: scale * (x[logit_rows] @ weight.T), soft-capped. → [R, V]"""

    def hidden_states(self, x: Handle) -> Handle:
        """x[hidden_rows], which `LoadedModel.hidden_states` gives. → [R2, E]"""


class ForwardModel(Protocol):
    """What a model file gives a backend. Attributes beyond these are the model's own."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def max_context(self) -> int: ...
    @property
    def kv_groups(self) -> tuple[KVGroup, ...]: ...

    def forward(self, ops: Ops) -> None:
        """State the forward pass. It ends in `ops.logits`, in `ops.hidden_states`, or in both."""


LOGIT_BLOCK = 64  # logits that are ranked together


@dataclass(frozen=True, slots=True)
class TopKBlocks:
    """For each row of logits the k blocks of 64 neighbouring tokens that contain its k likeliest tokens."""

    blocks: Int32Array  # [R, k], ascending; block b holds tokens [64 b, 64 b + 64)
    logits: FloatArray  # [R, k, 64], -inf beyond the vocabulary
    weights: FloatArray | None  # [R, V / 64]: of each block, the sum of e^(x - the greatest x of the row)


class TokenRanker(Protocol):
    """A device that finds the likeliest tokens of each row itself, so that whole rows need not be copied from it."""

    def top_k_blocks(self, k: int, *, weights: bool) -> TopKBlocks:
        """Wait for the launched step, and rank its logits; equal logits rank by id. Valid until the next call.

        k: at most ceil(V / 64). weights: only where V is a multiple of 64.
        """


class LoadedModel(Protocol):
    """A model whose weights are in place. One thread uses it at a time.

    Every step goes the same way: it is staged, launched and waited for. A CPU computes inside `launch`. A device that
    is `asynchronous` computes while the caller goes on: the next step may be staged then, and is launched after `wait`.
    It does one thing after the other, so `copy_blocks` copies what the launched step has written.
    """

    weight_bytes: int  # resident bytes of weights
    buffer_bytes: int  # resident bytes of working buffers for max_batch_tokens

    @property
    def graph_bytes(self) -> int:
        """How many of buffer_bytes are captured graphs."""

    @property
    def asynchronous(self) -> bool:
        """Whether `launch` returns before the step is done."""

    @property
    def ranker(self) -> TokenRanker | None:
        """Ranks the logits of the launched step; None: they can only be fetched in whole rows."""

    def block_bytes(self, group: int) -> int:
        """Bytes of one block of KV group `group`, all its layers, K and V."""

    @property
    def state_bytes(self) -> int:
        """Bytes of one state: what ops with a state keep of one sequence, in all layers. 0: there are none."""

    def place_adapter(self, weights: AdapterWeights, *, type: LoraType) -> PlacedAdapter:
        """Make an adapter that batches of this model may name; it goes with the last reference to it.

        Any thread may call this while steps are computed.

        type: what its numbers are kept in; bytes have a scale for each row.
        UnsupportedError names a linear that takes no adapter.
        """

    def allocate_kv(self, num_blocks: tuple[int, ...], num_states: int = 0) -> None:
        """Allocate the KV pool, a count per group, and states. Both are numbered from 0. Called once, before the first
        step."""

    def copy_blocks(self, group: int, pairs: npt.NDArray[np.int32]) -> None:
        """Copy KV blocks: pairs [N, 2] of (source, destination)."""

    def stage(self, batch: Batch) -> None:
        """Lay out the next step, whatever its tokens. The batch's arrays must not change before it is launched.

        ValueError for a step that must not run, here or in `launch`.
        """

    def launch(self, tokens: Int32Array) -> None:
        """Start the staged step with these tokens [T]."""

    def wait(self, rows: Int32Array | None = None) -> FloatArray:
        """Wait for the launched step. → its logits [R, V] float32, or only `rows` of them, valid until the next wait"""

    def hidden_states(self) -> FloatArray:
        """Wait for the launched step. → its hidden states [R2, E] float32, valid until the next launch"""

    def close(self) -> None:
        """Free everything. Idempotent."""


@runtime_checkable
class SharingBackend(Protocol):
    """A backend that puts a model beside another, of which it has some weights."""

    def load_beside(
        self,
        model: ForwardModel,
        target: LoadedModel,
        *,
        max_batch_tokens: int,
        max_batch_seqs: int,
        kv_type: KVType,
    ) -> LoadedModel:
        """As `Backend.load`; weights that `target` has, by their names, are not put in place again, nor counted."""


@runtime_checkable
class MovableBlocks(Protocol):
    """A loaded model whose KV blocks can be taken out and put back, by any process that loads the same model.

    States, where it has any, are the blocks of one group more, numbered after the last.
    """

    def moved_bytes(self, group: int) -> int:
        """How long the content of one block is, on all devices together."""

    def read_blocks(self, group: int, blocks: Int32Array) -> npt.NDArray[np.uint8]:
        """The contents of blocks of a group. → [len(blocks), moved_bytes(group)]"""

    def write_blocks(self, group: int, blocks: Int32Array, data: npt.NDArray[np.uint8]) -> None:
        """Put what `read_blocks` gave into blocks of the same group, be they the same or others."""


def check_ends(batch: Batch, ends: Collection[str]) -> None:
    """ValueError for a step that wants rows of what the model does not end in: "logits", "hidden_states"."""
    for end, rows in (("logits", batch.logit_rows), ("hidden_states", batch.hidden_rows)):
        if rows.size and end not in ends:
            raise ValueError(f"{rows.size} rows of {end} are wanted of a model that gives none")


def run_batch(model: LoadedModel, batch: Batch) -> FloatArray:
    """One step from beginning to end. → logits [R, V] float32, valid until the next step"""
    model.stage(batch)
    model.launch(batch.tokens)
    return model.wait()


class Backend(Protocol):
    """A device kind that loads models."""

    name: str

    @property
    def kv_type(self) -> KVType:
        """The type of 16 bits that attention computes with fastest."""

    def available_memory(self) -> int | None:
        """Bytes of the device's own memory that are free now; None: it computes in the host's."""

    def load(
        self,
        model: ForwardModel,
        *,
        max_batch_tokens: int,
        max_batch_seqs: int,
        kv_type: KVType,
    ) -> LoadedModel:
        """Put the model's weights in place, ready for allocate_kv.

        A step has at most max_batch_tokens tokens of max_batch_seqs sequences, and wants at most max_batch_seqs rows
        of logits, and as many of hidden states as it has tokens.
        """
