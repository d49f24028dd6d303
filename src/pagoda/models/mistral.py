"""Mistral: Llama with a sliding window in every layer."""

from __future__ import annotations

from pagoda.models import llama
from pagoda.models.dense import read_sizes, read_window
from pagoda.models.layers import Decoder
from pagoda.models.source import Checkpoint, ModelFile

UNSTATED_WINDOW = 4096  # of a config.json without `sliding_window`; one that says null has none


def build(checkpoint: Checkpoint) -> Decoder:
    file = ModelFile(checkpoint)
    sizes = read_sizes(file)
    default = None if "sliding_window" in checkpoint.metadata else UNSTATED_WINDOW
    return llama.decoder(file, sizes, read_window(file, sizes.max_context, default))
