"""What the engine here really takes for a model: its own layouts, asked of the native code and not written down twice.

Packed weights are sized by packing a small matrix of each type; buffers by opening, in an empty program, those that
`backends/compile.py` opens for a decoder. The embedding table is read from the mapped file.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

import pagoda._native as native
from pagoda.backends.base import KVType
from pagoda.formats.blocks import BLOCK_TYPES, tensor_bytes
from pagoda.models.registry import known_family
from pagoda.plan.cost.memory import ffn_width
from pagoda.plan.model.shapes import EMBEDDING, ModelShape
from pagoda.plan.model.weights import FLOATS, ModelWeights

PANEL_ROWS = 16
COLUMNS = 256
SAMPLE_PANELS = 1024  # so many that rounding to whole pages does not show


def packed_bytes(shape: ModelShape, weights: ModelWeights) -> int | None:
    """Weights as the engine holds them: matrices packed, vectors in f32, and the embedding table as in the file. None
    where it has no kernel for a type."""
    types = weights.types
    if types is None or not set(types.values()) <= set(BLOCK_TYPES):
        return None
    total = embedding_bytes(shape, weights)
    for tensor in (*shape.layer_matrices, shape.head):
        rows, columns = tensor.elements // tensor.shape[-1], tensor.shape[-1]
        total += round(-(-rows // PANEL_ROWS) * columns / COLUMNS * _panel_bytes(types[tensor.name]))
    return total + 4 * sum(t.elements for t in shape.tensors if not t.is_matrix)


def embedding_bytes(shape: ModelShape, weights: ModelWeights) -> int:
    """Bytes of the embedding table in the mapped file."""
    return weights.tensors[EMBEDDING]


@functools.cache
def _panel_bytes(type: str) -> float:
    """Bytes of one packed panel: 16 rows of 256 columns."""
    rows = SAMPLE_PANELS * PANEL_ROWS
    data = np.zeros(tensor_bytes(type, (rows, COLUMNS)), np.uint8)
    return native.Runtime(1).pack(data, type, rows, COLUMNS).bytes / SAMPLE_PANELS


def engine_buffer_bytes(
    shape: ModelShape, weights: ModelWeights, kv_type: KVType, *, batch_tokens: int, rows: int, threads: int
) -> int:
    """Buffers of the native program for steps of `batch_tokens` tokens that want `rows` rows of logits."""
    program = native.Runtime(threads).program(batch_tokens, rows, kv_type)
    is_float = weights.types is not None and weights.types[shape.layer_matrices[0].name] in FLOATS
    for columns in _buffers(shape, is_float):
        program.add_buffer(columns)
    kind = shape.attention[0]
    for columns in () if is_float else {shape.hidden_size, kind.num_heads * kind.value_dim, ffn_width(shape)}:
        program.add_quantized(columns)
    family = known_family(shape.architecture)
    for _ in range(family.rope_tables if family else 1):
        program.add_rope(np.ones(kind.key_dim // 2, np.float32), 1.0, True)
    logits = rows * -(-shape.vocab_size // PANEL_ROWS) * PANEL_ROWS * 4
    return program.buffer_bytes + logits


def _buffers(shape: ModelShape, is_float: bool) -> Iterator[int]:
    """Columns of the values that are alive at once: residual, queries, keys, values, attention's result, gate, up.

    Next to float weights also a norm, the gated product and the rows for logits; after attention the norm's is reused
    where its width is the same.
    """
    kind = shape.attention[0]
    q, kv = kind.num_heads * kind.key_dim, kind.num_kv_heads * kind.key_dim
    hidden, ffn = shape.hidden_size, ffn_width(shape)
    yield from (hidden, q, kv, kv, ffn, ffn)
    if not is_float or q != hidden:
        yield q
    if is_float:
        yield from (hidden, ffn, hidden)
    if any("post_attention_norm" in t.name for t in shape.tensors) and not is_float and q != hidden:
        yield hidden
