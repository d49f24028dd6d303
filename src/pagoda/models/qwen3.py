"""Qwen3, dense: Qwen2 without its biases, with an RMS norm over each query and key head before they are turned."""

from __future__ import annotations

from pagoda.models.dense import DenseReader, read_activation, read_sizes
from pagoda.models.layers import Decoder
from pagoda.models.qwen2 import layer_kinds
from pagoda.models.source import Checkpoint, ModelFile


def build(checkpoint: Checkpoint) -> Decoder:
    file = ModelFile(checkpoint)
    sizes = read_sizes(file)
    reader = DenseReader(file, sizes, activation=read_activation(file, "hidden_act", "silu"), qk_norm=True)
    return reader.decoder(layer_kinds(file, sizes))
