"""What the engine here really takes for a model: asked of the code that allocates it, with weights that hold nothing.

The model is compiled as it is for serving (`CpuBackend.sizes`), so that no layout and no buffer is written down twice.
The embedding table is read from the mapped file.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from pagoda.backends.cpu import CpuBackend
from pagoda.backends.specs import KVType
from pagoda.engine.speculation.mtp import waiting_bytes
from pagoda.errors import FormatError, UnsupportedError
from pagoda.formats.blocks import BLOCK_TYPES, tensor_bytes
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.layers import Decoder
from pagoda.models.mtp import MtpHead
from pagoda.models.registry import known_family, load_head, load_model
from pagoda.plan.model.checkpoints import ShapeCheckpoint, gguf_metadata
from pagoda.plan.model.shapes import EMBEDDING, ModelShape, TensorShape
from pagoda.plan.model.weights import ModelWeights
from pagoda.types import RawTensor


def engine_bytes(
    shape: ModelShape,
    weights: ModelWeights,
    kv_type: KVType,
    *,
    batch_tokens: int,
    rows: int,
    threads: int,
    with_head: bool = False,
) -> tuple[int, int] | None:
    """Bytes of weights, without the embedding table, and of the buffers of steps of `batch_tokens` tokens that want
    `rows` rows of logits; with_head: also of the head that predicts one token more, if it has one. None where the
    engine here does not run such a model or format."""
    model, head = _model(shape, weights)
    if model is None:
        return None
    beside = head if with_head else None
    waiting = 0 if beside is None else waiting_bytes(batch_tokens, beside.hidden_size)
    sizes = {"max_batch_tokens": batch_tokens, "max_batch_seqs": rows}
    try:
        packed, buffers = _backend(threads).sizes(model, **sizes, kv_type=kv_type, beside=beside)
    except UnsupportedError:
        return None
    return packed, buffers + waiting


def embedding_bytes(shape: ModelShape, weights: ModelWeights) -> int:
    """Bytes of the embedding table in the mapped file."""
    return weights.tensors[EMBEDDING]


@functools.cache
def _backend(threads: int) -> CpuBackend:
    return CpuBackend(threads=threads)


def _model(shape: ModelShape, weights: ModelWeights) -> tuple[Decoder | None, MtpHead | None]:
    """The model as the engine would build it from a GGUF file of such weights, and the head beside it."""
    family, types = known_family(shape.architecture), weights.types
    if family is None or family.build is None or types is None or not set(types.values()) <= set(BLOCK_TYPES):
        return None, None
    tensors = {t.name: _empty(t, types[t.name]) if t.is_matrix else _ones(t) for t in shape.tensors}
    with _metadata(shape, family.gguf) as metadata:
        checkpoint = ShapeCheckpoint(family.gguf, metadata, tensors)
        try:
            model = load_model(checkpoint)
        except (FormatError, UnsupportedError):
            return None, None
        try:
            return model, load_head(checkpoint, model)
        except (FormatError, UnsupportedError):
            return model, None


@contextmanager
def _metadata(shape: ModelShape, architecture: str) -> Iterator[Mapping[str, Any]]:
    """What the model's own file says, if it is a GGUF file; else what its shape does."""
    if shape.path is None or shape.path.suffix != ".gguf":
        yield gguf_metadata(shape, architecture, shape.num_layers)
        return
    with open_checkpoint(shape.path) as checkpoint:
        yield checkpoint.metadata


def _empty(tensor: TensorShape, type: str) -> RawTensor:
    """A tensor without memory: every byte of it is the same one."""
    data = np.broadcast_to(np.uint8(0), (tensor_bytes(type, tensor.shape),))
    return RawTensor(tensor.name, type, tensor.shape, data)


def _ones(tensor: TensorShape) -> RawTensor:
    """A small tensor of ones: models look at some, and factors of rotary frequencies must be positive."""
    return RawTensor(tensor.name, "F32", tensor.shape, np.ones(tensor.elements, np.float32).view(np.uint8))
