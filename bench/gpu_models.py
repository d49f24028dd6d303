"""Models of random weights in well-known shapes, and what a step of them costs at least.

Weights are views of one pool of random bits with sane scales: what a kernel streams does not depend on their values,
and an 8B model takes a second instead of minutes to make.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pagoda.backends.specs import AttentionSpec, RopeSpec
from pagoda.formats.blocks import BLOCK_TYPES, tensor_bytes
from pagoda.formats.packed import GroupedWeight
from pagoda.formats.quantized import QuantizedTensor
from pagoda.models.layers import Attention, Block, Decoder, FeedForward, Linear, Norm
from pagoda.types import RawTensor

W4 = "W4-g128"  # 4 bits in groups of 128 columns, as GPTQ and AWQ have them
GROUP = 128
SCALES_AT = {"Q6_K": (208,), "Q4_K": (0, 2), "Q4_1": (0, 2)}  # of the float16 numbers in a block
SPREAD = {"Q4_K": 0.05, "Q6_K": 0.05}  # a k-quant's scale is multiplied by 6 or 8 more bits of scale


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False  # the embedding is the head, too

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def layer_weights(self) -> int:
        """Of all layers, without embedding and head."""
        attention = 2 * self.width + 2 * self.kv_heads * self.head_dim
        return self.layers * self.hidden * (attention + 3 * self.ffn)


SHAPES = {
    "llama3-8b": Shape(32, 4096, 14336, 32, 8, 128, 128_256),
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 64, 49_152, tied=True),
    "small": Shape(3, 1024, 2816, 16, 4, 64, 4096),
    "tiny": Shape(2, 256, 512, 4, 2, 64, 512),
}


@dataclass(frozen=True)
class Rates:
    """What the device can do, measured: bytes a second that a copy moves and that a sum reads, bf16 operations."""

    copy: float
    read: float
    product: float

    def floor_s(self, num_bytes: float, operations: float) -> float:
        return max(num_bytes / self.read, operations / self.product)


@dataclass(frozen=True)
class Cost:
    """The bytes that a shape's steps have to move and the operations they have to do."""

    shape: Shape
    weight_bytes: float  # that every step reads: all but the embedding
    kv_bytes: float  # of a token

    def floor_s(self, rates: Rates, *, tokens: int, rows: int, keys: float, pairs: float) -> float:
        """A step of `tokens` tokens that reads `keys` keys, of which queries see `pairs`, and wants `rows` logits."""
        s = self.shape
        products = 2 * s.layer_weights * tokens + 2 * rows * s.hidden * s.vocab
        attention = 2 * 2 * s.width * s.layers * pairs
        return rates.floor_s(self.weight_bytes + self.kv_bytes * (keys + tokens), products + attention)

    def decode_s(self, rates: Rates, seqs: int, context: float) -> float:
        return self.floor_s(rates, tokens=seqs, rows=seqs, keys=seqs * context, pairs=seqs * context)

    def prefill_s(self, rates: Rates, prompt: int, count: int = 1) -> float:
        pairs = count * prompt * (prompt + 1) / 2
        return self.floor_s(rates, tokens=count * prompt, rows=count, keys=0, pairs=pairs)


def cost_of(shape: Shape, weight_bytes: int, kv_bytes: float) -> Cost:
    """`weight_bytes` is what the loaded model takes; an embedding that is not the head is looked up, not streamed."""
    table = shape.vocab * shape.hidden
    streamed = 1.0 if shape.tied else 1 - table / (shape.layer_weights + 2 * table)
    return Cost(shape, weight_bytes * streamed, kv_bytes)


class RandomWeights:
    """Matrices of one type out of one pool."""

    def __init__(self, type: str, largest: int) -> None:
        self.type = type
        self._rng = np.random.default_rng(0)
        self._pool = self._codes(largest) if type == W4 else self._data(largest)

    def matrix(self, name: str, rows: int, columns: int) -> RawTensor:
        if self.type == W4:
            return self._grouped(name, rows, columns)
        size, block = tensor_bytes(self.type, (rows, columns)), BLOCK_TYPES[self.type].bytes
        start = int(self._rng.integers(0, (len(self._pool) - size) // block + 1)) * block
        return RawTensor(name, self.type, (rows, columns), self._pool[start : start + size])

    def _data(self, largest: int) -> npt.NDArray[np.uint8]:
        if self.type in ("BF16", "F16", "F32"):
            values = self._rng.standard_normal(largest, np.float32) * np.float32(0.02)
            if self.type == "F32":
                return values.view(np.uint8)
            half = (values.view(np.uint32) >> 16).astype(np.uint16) if self.type == "BF16" else values.astype("f2")
            return half.view(np.uint8)
        data = self._rng.integers(0, 256, tensor_bytes(self.type, (1, largest)), dtype=np.uint8)
        blocks = data.reshape(-1, BLOCK_TYPES[self.type].bytes)
        scale = np.array([0.005 * SPREAD.get(self.type, 1.0)], np.float16).view(np.uint8)
        for place in SCALES_AT.get(self.type, (0,)):
            blocks[:, place : place + 2] = scale
        return data

    def _codes(self, largest: int) -> npt.NDArray[np.uint8]:
        return self._rng.integers(0, 16, largest, dtype=np.uint8)

    def _grouped(self, name: str, rows: int, columns: int) -> RawTensor:
        start = int(self._rng.integers(0, len(self._pool) - rows * columns + 1))
        codes = self._pool[start : start + rows * columns].reshape(rows, columns)

        def unpack(_: object) -> GroupedWeight:
            groups = (np.arange(columns) // GROUP).astype(np.int32)
            scales = np.full((rows, groups[-1] + 1), np.float16(0.004), np.float32)
            return GroupedWeight(4, codes, scales, np.full_like(scales, 8, np.int32), groups)

        packed = RawTensor(name, "U8", (rows, columns // 2), codes.reshape(-1)[: rows * columns // 2])
        return QuantizedTensor(name, W4, (rows, columns), packed.data, {"qweight": packed}, unpack)


def random_model(shape: Shape, type: str, max_context: int = 8192) -> Decoder:
    """A Llama of this shape. With W4-g128, embedding and head are BF16, as such checkpoints have them."""
    e, kv = shape.hidden, shape.kv_heads * shape.head_dim
    weights = RandomWeights(type, e * max(shape.ffn, shape.width, 0 if type == W4 else shape.vocab))
    ends = RandomWeights("BF16", e * shape.vocab) if type == W4 else weights

    def vector(name: str) -> RawTensor:
        return RawTensor(name, "F32", (e,), np.ones(e, np.float32).view(np.uint8))

    def linear(name: str, rows: int, columns: int) -> Linear:
        return Linear(weights.matrix(name, rows, columns))

    rope = RopeSpec("neox", (5e5 ** -(np.arange(0, shape.head_dim, 2) / shape.head_dim)).astype(np.float32))
    spec = AttentionSpec(shape.heads, shape.kv_heads, shape.head_dim, shape.head_dim**-0.5)
    blocks = tuple(
        Block(
            Norm(vector(f"{i}.an"), 1e-5),
            Attention(
                linear(f"{i}.q", shape.width, e),
                linear(f"{i}.k", kv, e),
                linear(f"{i}.v", kv, e),
                linear(f"{i}.o", e, shape.width),
                rope,
                spec,
            ),
            Norm(vector(f"{i}.fn"), 1e-5),
            FeedForward(
                linear(f"{i}.g", shape.ffn, e), linear(f"{i}.u", shape.ffn, e), linear(f"{i}.d", e, shape.ffn), "silu"
            ),
        )
        for i in range(shape.layers)
    )
    embedding = ends.matrix("embedding", shape.vocab, e)
    output = embedding if shape.tied else ends.matrix("output", shape.vocab, e)
    return Decoder(embedding, blocks, Norm(vector("on"), 1e-5), output, max_context)
