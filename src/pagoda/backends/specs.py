"""What ops are told besides their values: how positions turn, what attention sees, how experts are picked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pagoda.types import FloatArray, RawTensor

# relu2: max(x, 0)². clamped_swiglu, of gpt-oss, is not a function of the gate alone: (u + 1) * g * sigmoid(1.702 g),
# g = min(gate, 7), u = up within -7 and 7.
Activation = Literal["silu", "gelu_tanh", "gelu", "relu2", "sigmoid", "clamped_swiglu"]
Scoring = Literal["softmax", "sigmoid"]  # what a router's logits become
# Which number of a token picks the row of an embedding table; known_tokens: its id, 0 where the table has no such row.
EmbedBy = Literal["tokens", "known_tokens", "positions", "types"]
RopeStyle = Literal["interleaved", "neox"]  # pairs (2i, 2i+1), or (i, i + D/2)
LoraType = Literal["f32", "bf16", "int8"]  # of an adapter's numbers in memory
KVType = Literal["f16", "bf16", "f32", "int16", "int8", "fp8"]  # int16: on CPUs alone; fp8 (e4m3): on CUDA alone


def kv_type_for(isa: str | None) -> KVType:
    """What the KV cache holds where nobody says: of a CPU with that instruction set; None: of a GPU."""
    return "int16" if isa in ("avx512", "avx2") else "f16"


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding of one layer kind: pair i turns by position * inv_freq[i]; q and k are scaled by `scale`."""

    style: RopeStyle
    inv_freq: FloatArray  # [rotary_dim / 2], scaling (linear, llama3, yarn, longrope) already applied
    scale: float = 1.0  # attention factor of yarn and longrope

    @property
    def rotary_dim(self) -> int:
        return 2 * int(self.inv_freq.shape[0])

    @property
    def key(self) -> tuple[str, float, bytes]:
        """Equal for specs that rotate alike."""
        return self.style, self.scale, self.inv_freq.tobytes()


@dataclass(frozen=True, slots=True)
class QueryGrowth:
    """Queries at position p are multiplied by 1 + beta * ln(1 + floor(p / length)): attention stays sharp where a
    context is stretched (Llama 4, Ministral 3)."""

    beta: float
    length: int


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Attention of one layer. `window`: a query at p sees keys in (p - window, p]; None: all up to p.

    Where it is not `causal`, a query sees all keys of its sequence, which then all stand in the step or before it;
    there is no window, and layers may share one layer of the KV blocks, for no later step reads it.

    values_from: values are the numbers of keys from this one on, as latent attention has them, and are not kept apart.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None  # scores become softcap * tanh(scores / softcap)
    causal: bool = True
    growth: QueryGrowth | None = None
    values_from: int | None = None

    @property
    def value_dim(self) -> int:
        return self.head_dim - (self.values_from or 0)


@dataclass(frozen=True, slots=True)
class ExpertGroups:
    """Experts in groups of as many neighbours, of which a token uses `num_used`: those of the highest scores.

    best: a group's score is the sum of its so many highest, corrections included, 1 or 2.
    """

    count: int
    num_used: int
    best: int


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """How a router picks experts for a token: the `num_used` of the highest scores, which weigh them.

    normalize: the weights are divided by their sum. scale: then multiplied by this. groups: experts are picked from
    the token's groups alone.
    """

    num_used: int
    normalize: bool
    activation: Activation
    scoring: Scoring = "softmax"  # over all experts
    scale: float = 1.0
    groups: ExpertGroups | None = None


ExpertBiases = tuple[RawTensor, RawTensor, RawTensor]  # of gate and up (N, F), of down (N, E)


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers of attention that share block tables: same window. One block of the group holds 16 tokens of them all."""

    layers: tuple[int, ...]
    window: int | None


@dataclass(frozen=True, slots=True)
class LoraDelta:
    """What an adapter makes of one linear's output: row_scale * out + b @ (a @ x) + bias."""

    a: FloatArray  # [rank, in]
    b: FloatArray  # [out, rank], scale included
    bias: FloatArray | None = None  # [out]
    row_scale: FloatArray | None = None  # [out], of DoRA; None: 1


AdapterWeights = Mapping[str, LoraDelta]  # by the name of the linear's weight


@dataclass(frozen=True, slots=True)
class DeltaSpec:
    """Heads of a gated delta rule. Value head j reads key head j // (num_v_heads / num_k_heads), or, where they are
    `tiled`, j % num_k_heads."""

    num_k_heads: int
    num_v_heads: int
    k_dim: int
    v_dim: int
    tiled: bool = False

    def k_head(self, v_head: int) -> int:
        return v_head % self.num_k_heads if self.tiled else v_head // (self.num_v_heads // self.num_k_heads)


@dataclass(frozen=True, slots=True)
class ScanSpec:
    """Heads of a selective scan. Head j reads group j // (num_heads / num_groups)."""

    num_heads: int
    head_dim: int
    num_groups: int
    state_dim: int

    @property
    def inner_size(self) -> int:
        """Columns of all heads together."""
        return self.num_heads * self.head_dim

    @property
    def mixed_size(self) -> int:
        """Columns of x, b and c together."""
        return self.inner_size + 2 * self.num_groups * self.state_dim
