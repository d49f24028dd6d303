"""Folders of a decoder saved without its head, as some embedding models are: names of tensors lack their beginning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagoda.models.source import Checkpoint
from pagoda.types import RawTensor

PREFIX = "model."
HEAD = "lm_head."
TELLING = "embed_tokens.weight"  # a tensor that every decoder has


@dataclass(frozen=True, slots=True)
class Named:
    """A checkpoint under other names."""

    kind: str
    architecture: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, RawTensor]


def with_base_names(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the names that a whole decoder has; itself where it has them."""
    if checkpoint.kind == "gguf" or TELLING not in checkpoint.tensors:
        return checkpoint
    tensors = {
        name if name.startswith(HEAD) else f"{PREFIX}{name}": tensor for name, tensor in checkpoint.tensors.items()
    }
    return Named(checkpoint.kind, checkpoint.architecture, checkpoint.metadata, tensors)
