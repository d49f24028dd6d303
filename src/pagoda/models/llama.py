"""Llama 2 and 3, and what was built like it: SmolLM2, TinyLlama, Mistral but for its window.

GGUF files hold the rows of q and k reordered so that a rotary pair lies side by side; Hugging Face files do not.
"""

from __future__ import annotations

from pagoda.models.dense import DenseReader, LayerKind, Sizes, read_activation, read_sizes, read_window
from pagoda.models.layers import Decoder
from pagoda.models.rope import read_rope
from pagoda.models.source import Checkpoint, ModelFile


def build(checkpoint: Checkpoint) -> Decoder:
    file = ModelFile(checkpoint)
    sizes = read_sizes(file)
    window = read_window(file, sizes.max_context) if file.is_gguf else None  # GGUF calls Mistral a Llama
    return decoder(file, sizes, window)


def decoder(file: ModelFile, sizes: Sizes, window: int | None) -> Decoder:
    rope = read_rope(file, sizes.head_dim, "interleaved" if file.is_gguf else "neox")
    reader = DenseReader(file, sizes, activation=read_activation(file, "hidden_act", "silu"))
    return reader.decoder([LayerKind(rope, window)] * sizes.num_layers)
