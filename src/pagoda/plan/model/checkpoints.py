"""A shape as a GGUF checkpoint, so that the engine's own code builds the model that a plan is about.

The tensors' numbers are the caller's affair: random ones to measure kernels on, or none to ask for sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagoda.plan.model.shapes import ModelShape
from pagoda.types import RawTensor


@dataclass(frozen=True)
class ShapeCheckpoint:
    """A `Checkpoint` of a shape."""

    architecture: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, RawTensor]
    kind: str = "gguf"


def gguf_metadata(shape: ModelShape, architecture: str, num_layers: int) -> dict[str, Any]:
    """The keys that say what a file of such a model, with so many layers, would say of its sizes."""
    kind = shape.attention[0]
    windows = [kind.window for kind in shape.attention if kind.window is not None]
    down = next(t for t in shape.tensors if "ffn_down" in t.name)
    keys = {
        "block_count": num_layers,
        "embedding_length": shape.hidden_size,
        "feed_forward_length": down.shape[-1],
        "attention.head_count": kind.num_heads,
        "attention.head_count_kv": kind.num_kv_heads,
        "attention.key_length": kind.key_dim,
        "attention.value_length": kind.value_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "context_length": shape.max_context,
        **({"attention.sliding_window": windows[0]} if windows else {}),
    }
    if shape.num_experts:
        keys |= {
            "expert_count": shape.num_experts,
            "expert_used_count": shape.experts_used,
            "expert_feed_forward_length": down.shape[-1],
        }
    return {f"{architecture}.{key}": value for key, value in keys.items()}
