"""A thin slice of a model, to measure kernels on: a few of its layers, of the very shapes and block formats.

Of a file, the layers are the file's own, evenly spaced, so that activations are as uneven as they are in the model.
Without a file they are random codes with scales that keep values near one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pagoda.errors import UnsupportedError
from pagoda.formats.blocks import BLOCK_TYPES, tensor_bytes
from pagoda.models.layers import Attention, Block, Decoder
from pagoda.models.registry import known_family, load_model
from pagoda.plan.model.checkpoints import ShapeCheckpoint, gguf_metadata
from pagoda.plan.model.shapes import ModelShape
from pagoda.plan.model.weights import ModelWeights
from pagoda.types import RawTensor

TINY_VOCAB = 64

# Where a block's f16 scales, and its minima, stand: random bytes there would be infinities.
SCALES: dict[str, tuple[int, ...]] = {
    **{"Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,), "IQ4_NL": (0,), "IQ4_XS": (0,), "Q3_K": (108,), "Q6_K": (208,)},
    **{"Q4_1": (0,), "Q5_1": (0,), "Q2_K": (80,), "Q4_K": (0,), "Q5_K": (0,), "TQ1_0": (52,), "TQ2_0": (64,)},
    **{"IQ1_S": (0,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,)},
    **{"MXFP4": (), "IQ1_M": ()},
}
MINIMA: dict[str, tuple[int, float]] = {"Q4_1": (2, -7.5), "Q5_1": (2, -15.5)}
K_MINIMA = {"Q2_K": 82, "Q4_K": 2, "Q5_K": 2}
SCALE = 0.004


@dataclass(frozen=True, slots=True)
class Slice:
    """A model of some layers of another. `signatures` tells layers of different formats apart."""

    decoder: Decoder
    signatures: tuple[str, ...]  # of its layers


def signature(block: Block) -> str:
    """A key that is equal for layers whose matrices have equal shapes and types."""
    return " ".join(f"{matrix.type}{matrix.shape[0]}x{matrix.shape[1]}" for matrix in block.matrices)


def cut(model: Decoder, least_bytes: int) -> Slice:
    """Evenly spaced layers of every signature, at least `least_bytes` of matrices if the model has as much."""
    places: dict[str, list[int]] = {}
    for i, block in enumerate(model.blocks):
        places.setdefault(signature(block), []).append(i)
    layer_bytes = sum(_bytes(block) for block in model.blocks) / len(model.blocks)
    wanted = min(len(model.blocks), max(1, round(least_bytes / layer_bytes + 0.5)))
    chosen = sorted(i for members in places.values() for i in _spread(members, wanted / len(model.blocks)))
    blocks = tuple(_unwindowed(model.blocks[i]) for i in chosen)
    return Slice(replace(model, blocks=blocks), tuple(signature(block) for block in blocks))


def signatures(model: Decoder) -> dict[str, int]:
    """How many layers of each signature there are."""
    return dict(Counter(signature(block) for block in model.blocks))


def attention_only(model: Decoder) -> Decoder:
    """The model with one layer and a tiny vocabulary, so that a step is mostly attention."""
    rows = min(TINY_VOCAB, model.embedding.shape[0])
    embedding = _first_rows(model.embedding, rows)
    block = next(block for block in model.blocks if isinstance(block.attention, Attention))
    return replace(model, blocks=(_unwindowed(block),), embedding=embedding, output=embedding)


def _spread(members: Sequence[int], share: float) -> list[int]:
    count = max(1, round(len(members) * share))
    return [members[int((i + 0.5) * len(members) / count)] for i in range(count)]


def _bytes(block: Block) -> int:
    return sum(matrix.data.nbytes for matrix in block.matrices)


def _unwindowed(block: Block) -> Block:
    attention = block.attention
    if not isinstance(attention, Attention):
        return block
    return replace(block, attention=replace(attention, spec=replace(attention.spec, window=None)))


def _first_rows(tensor: RawTensor, rows: int) -> RawTensor:
    shape = (rows, *tensor.shape[1:])
    data = tensor.data.reshape(-1)[: tensor_bytes(tensor.type, shape)]
    return RawTensor(f"{tensor.name}[:{rows}]", tensor.type, shape, data)


# Without a file


def random_model(shape: ModelShape, weights: ModelWeights, least_bytes: int) -> tuple[Decoder, dict[str, int]]:
    """A few layers of such a model, at least `least_bytes` of matrices, and how many layers of each signature the
    whole model has. UnsupportedError if the engine has no such family or format."""
    family = known_family(shape.architecture)
    special = shape.num_experts or shape.state_elements  # what `gguf_metadata` does not say
    if family is None or family.build is None or weights.types is None or special:
        what = weights.format if weights.types is None else shape.architecture
        raise UnsupportedError(f"the engine here does not run {what!r}")
    if unread := set(weights.types.values()) - set(BLOCK_TYPES):
        raise UnsupportedError(f"the engine here does not read {', '.join(sorted(unread))}")
    kinds = _layer_kinds(shape, weights.types)
    each = sum(weights.tensors[t.name] for t in shape.layer_matrices) / shape.num_layers
    share = min(1.0, (least_bytes / each + 1) / shape.num_layers)
    chosen = sorted(i for members in kinds.values() for i in _spread(members, share))
    model = _random_layers(shape, family.gguf, weights.types, chosen)
    names = {signature(block): i for block, i in zip(model.blocks, chosen, strict=True)}
    counts = {name: next(len(m) for m in kinds.values() if i in m) for name, i in names.items()}
    return model, counts


def _layer_kinds(shape: ModelShape, types: Mapping[str, str]) -> dict[tuple[str, ...], list[int]]:
    """Layer numbers grouped by the types of their matrices."""
    by_layer: dict[int, list[str]] = {}
    for tensor in shape.layer_matrices:
        by_layer.setdefault(tensor.layer or 0, []).append(types[tensor.name])
    kinds: dict[tuple[str, ...], list[int]] = {}
    for layer, found in by_layer.items():
        kinds.setdefault(tuple(found), []).append(layer)
    return kinds


def _random_layers(shape: ModelShape, architecture: str, types: Mapping[str, str], chosen: Sequence[int]) -> Decoder:
    rng = np.random.default_rng(0)
    tensors = {}
    for tensor in shape.tensors:
        if tensor.layer is not None and tensor.layer not in chosen:
            continue
        name = tensor.name
        if tensor.layer is not None:
            name = name.replace(f"blk.{tensor.layer}.", f"blk.{chosen.index(tensor.layer)}.")
        type = types[tensor.name] if tensor.is_matrix else "F32"
        tensors[name] = _random(rng, name, type, tensor.shape)
    return load_model(ShapeCheckpoint(architecture, gguf_metadata(shape, architecture, len(chosen)), tensors))


def _random(rng: np.random.Generator, name: str, type: str, shape: tuple[int, ...]) -> RawTensor:
    size = tensor_bytes(type, shape)
    if type == "F32":
        values = np.ones(shape, np.float32) if "norm" in name else _normal(rng, shape)
        return RawTensor(name, type, shape, values.reshape(-1).view(np.uint8))
    if type in ("F16", "BF16"):
        half = _normal(rng, shape)
        raw = (
            half.astype(np.float16).view(np.uint8) if type == "F16" else (half.view(np.uint32) >> 16).astype(np.uint16)
        )
        return RawTensor(name, type, shape, raw.reshape(-1).view(np.uint8))
    data = rng.integers(0, 256, size, np.uint8)
    blocks = data.reshape(-1, BLOCK_TYPES[type].bytes)
    if type == "MXFP4":
        blocks[:, 0] = 119  # 2 to the -9
    if type == "IQ1_M":
        blocks[:, 55] &= 0x0F  # the top of a scale in nibbles: small, and a number
    for at in SCALES[type]:
        _put_f16(blocks, at, SCALE)
    if type in MINIMA:
        at, factor = MINIMA[type]
        _put_f16(blocks, at, factor * SCALE)
    if type in K_MINIMA:
        _put_f16(blocks, K_MINIMA[type], 7.5 * SCALE)
    return RawTensor(name, type, shape, data)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return rng.standard_normal(shape, np.float32) * np.float32(0.02)


def _put_f16(blocks: np.ndarray[Any, np.dtype[np.uint8]], at: int, value: float) -> None:
    blocks[:, at : at + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
