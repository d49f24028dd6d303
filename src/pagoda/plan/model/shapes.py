"""What of a model a plan needs: the shapes of its tensors, and what its attention layers keep of each token.

Tensors go by GGUF's names, whatever they were read from; shapes are row-major (out, in). Nothing here knows a device
or a weight format.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path

from pagoda.models.experts import is_expert
from pagoda.models.registry import known_family

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"

_LAYER = re.compile(r"(?:blk|layers)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class TensorShape:
    """One tensor; `type` is what a file stores it as, where there is a file."""

    name: str
    shape: tuple[int, ...]
    type: str | None = None

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def layer(self) -> int | None:
        match = _LAYER.search(self.name)
        return int(match[1]) if match else None

    @property
    def is_expert(self) -> bool:
        """See `models.experts.is_expert`."""
        return is_expert(self.name)

    @property
    def is_matrix(self) -> bool:
        """Whether tokens are multiplied by it: a weight of two or more dimensions that is no table to look up."""
        is_table = "_embd" in self.name and self.name != EMBEDDING  # which may be the head, too
        return len(self.shape) >= 2 and self.name.endswith(".weight") and "norm" not in self.name and not is_table


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """`num_layers` layers of one kind.

    latent_dim: with multi-head latent attention, the numbers a token's K and V are kept in together (rank + rotary).
    num_sharing: of the layers, those that read keys and values of another one and keep none.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    latent_dim: int | None = None
    num_sharing: int = 0

    @property
    def num_keeping(self) -> int:
        return self.num_layers - self.num_sharing

    @property
    def layer_kv_elements(self) -> int:
        """Numbers that one token keeps in the KV cache of one layer."""
        return self.latent_dim or self.num_kv_heads * (self.key_dim + self.value_dim)

    @property
    def kv_elements(self) -> int:
        """Numbers that one token keeps in the KV cache, over all layers of this kind."""
        return self.num_keeping * self.layer_kv_elements

    @property
    def flops_per_pair(self) -> int:
        """FLOPs of one query token against one cached token, over all layers of this kind: scores, then the weighted
        sum of values."""
        return 2 * self.num_layers * self.num_heads * (self.key_dim + self.value_dim)

    def seen(self, context: float) -> float:
        """How many tokens the last of `context` tokens attends to: at most the window."""
        return min(context, self.window or context)


@dataclass(frozen=True)
class ModelShape:
    """A model without its numbers. `assumptions` are sentences about what could not be read and was taken as usual.

    state_elements: numbers that a sequence keeps whatever its length, the state of recurrent layers.
    """

    name: str
    architecture: str
    hidden_size: int
    vocab_size: int
    max_context: int
    attention: tuple[AttentionShape, ...]
    tensors: tuple[TensorShape, ...]
    num_experts: int = 0
    experts_used: int = 0
    state_elements: int = 0
    scored_vocabulary: bool = False  # SentencePiece's, with scores instead of merges
    stored_as: str | None = None  # the format of the file it was read from
    file_bytes: int | None = None
    path: Path | None = None  # of the file or folder, where its weights are here
    hub: str | None = None  # the repository that publishes it
    assumptions: tuple[str, ...] = ()

    def named(self, name: str) -> ModelShape:
        return replace(self, name=name)

    @cached_property
    def num_layers(self) -> int:
        """Also of layers without attention."""
        return 1 + max((layer for tensor in self.tensors if (layer := tensor.layer) is not None), default=0)

    @cached_property
    def has_head(self) -> bool:
        """Whether the file has a layer that predicts one token more, of a family whose is used."""
        family = known_family(self.architecture)
        is_used = family is not None and family.head is not None
        return is_used and any(t.name.endswith(".nextn.eh_proj.weight") for t in self.tensors)

    def with_head(self) -> ModelShape:
        """With the KV of such a layer, which keeps what the others do."""
        first, *others = self.attention
        return replace(self, attention=(replace(first, num_layers=first.num_layers + 1), *others))

    @cached_property
    def parameters(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    @cached_property
    def active_parameters(self) -> int:
        """Parameters used for one token: of experts, only the picked ones."""
        return round(sum(t.elements * self.active_share(t) for t in self.tensors))

    def active_share(self, tensor: TensorShape) -> float:
        return self.experts_used / self.num_experts if tensor.is_expert and self.num_experts else 1.0

    @cached_property
    def is_tied(self) -> bool:
        """Whether the embedding matrix is the output head too."""
        return all(tensor.name != OUTPUT for tensor in self.tensors)

    @cached_property
    def head(self) -> TensorShape:
        """The matrix that turns hidden states into logits."""
        wanted = EMBEDDING if self.is_tied else OUTPUT
        return next(tensor for tensor in self.tensors if tensor.name == wanted)

    @cached_property
    def layer_matrices(self) -> tuple[TensorShape, ...]:
        """All matrices of the layers: neither embedding nor head."""
        return tuple(t for t in self.tensors if t.is_matrix and t.name not in (EMBEDDING, OUTPUT))

    @property
    def kv_elements(self) -> int:
        """Numbers that one token keeps in the KV cache, over all layers."""
        return sum(kind.kv_elements for kind in self.attention)

    @property
    def heads_per_kv(self) -> int:
        first = self.attention[0]
        return max(1, first.num_heads // first.num_kv_heads)
