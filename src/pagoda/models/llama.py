"""Llama 2 and 3, and what was built like it: SmolLM2, TinyLlama, Mistral without its window.

GGUF files hold the rows of q and k reordered so that a rotary pair lies side by side; Hugging Face files do not.
"""

from __future__ import annotations

from pagoda.models.dense import DenseReader, LayerKind, read_activation, read_sizes, read_window
from pagoda.models.layers import Decoder
from pagoda.models.rope import read_rope
from pagoda.models.source import Checkpoint, ModelFile


def build(checkpoint: Checkpoint, *, default_window: int | None = None) -> Decoder:
    file = ModelFile(checkpoint)
    sizes = read_sizes(file)
    rope = read_rope(file, sizes.head_dim, "interleaved" if file.is_gguf else "neox")
    kind = LayerKind(rope, read_window(file, sizes.max_context, default_window))
    reader = DenseReader(file, sizes, activation=read_activation(file, "hidden_act", "silu"))
    return reader.decoder([kind] * sizes.num_layers)
