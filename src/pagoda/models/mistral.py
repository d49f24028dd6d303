"""Mistral: Llama with a sliding window. GGUF files of it call themselves Llama."""

from __future__ import annotations

from pagoda.models import llama
from pagoda.models.layers import Decoder
from pagoda.models.source import Checkpoint

UNSTATED_WINDOW = 4096  # of a config.json without `sliding_window`; one that says null has none


def build(checkpoint: Checkpoint) -> Decoder:
    return llama.build(checkpoint, default_window=None if "sliding_window" in checkpoint.metadata else UNSTATED_WINDOW)
