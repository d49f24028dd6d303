"""Numbers that are the same everywhere, and their encoding in any block format; for `tiny_models` and kernel tests."""

from __future__ import annotations

import functools
import zlib
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@functools.lru_cache(maxsize=256)
def noise(name: str, shape: tuple[int, ...], scale: float = 1.0) -> FloatArray:
    """Uniform numbers of standard deviation `scale`, from the name alone (splitmix64)."""
    z = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) + (np.uint64(zlib.crc32(name.encode())) << np.uint64(32))
    z = z * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    uniform = (z >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0  # [-1, 1)
    values = (uniform * scale * 3**0.5).astype(np.float32).reshape(shape)
    values.flags.writeable = False  # it is shared
    return values


# Types that gguf cannot write: elements and bytes of a block; where its f16 scales lie and how large they are beside
# each other, so that values centre on zero; the standard deviation of values when the first scale is 1.
RANDOM_BLOCKS: dict[str, tuple[int, int, dict[int, float], float]] = {
    "Q2_K": (256, 84, {80: 1.0, 82: 1.5}, 14.4),
    "Q3_K": (256, 110, {108: 1.0}, 43.4),
    "Q4_K": (256, 144, {0: 1.0, 2: 7.5}, 269.0),
    "Q5_K": (256, 176, {0: 1.0, 2: 15.5}, 553.0),
    "Q6_K": (256, 210, {208: 1.0}, 1380.0),
    "IQ4_NL": (32, 18, {0: 1.0}, 68.1),
    "IQ4_XS": (256, 136, {0: 1.0}, 1270.0),
    "IQ2_XXS": (256, 66, {0: 1.0}, 53.2),
    "IQ2_XS": (256, 74, {0: 1.0}, 55.6),
    "IQ2_S": (256, 82, {0: 1.0}, 56.2),
    "IQ3_XXS": (256, 98, {0: 1.0}, 141.9),
    "IQ3_S": (256, 110, {0: 1.0}, 140.1),
    "IQ1_S": (256, 50, {0: 1.0}, 7.24),
    "IQ1_M": (256, 56, {}, 7.21),  # its scale is in nibbles
}


def encode(values: FloatArray, type: str, name: str = "") -> npt.NDArray[Any]:
    """`values` in a block format, as bytes [rows…, bytes]; random blocks of their spread where gguf cannot encode."""
    if type in ("F32", "F16"):
        return values.astype("<f4" if type == "F32" else "<f2")
    if type in RANDOM_BLOCKS:
        return random_blocks(type, values.shape, name, float(values.std()))
    return np.ascontiguousarray(gguf.quants.quantize(values, gguf.GGMLQuantizationType[type])).view(np.uint8)


def put_nibbles(blocks: npt.NDArray[np.uint8], scales: npt.NDArray[np.float16]) -> None:
    """IQ1_M's f16 scales [N] into the top nibbles of the four words from byte 48 on."""
    for i in range(4):
        nibble = (scales.view("<u2") >> (4 * i) & 15).astype(np.uint8)
        blocks[:, 49 + 2 * i] = blocks[:, 49 + 2 * i] & 15 | nibble << 4


def random_blocks(type: str, shape: tuple[int, ...], name: str, scale: float = 0.05) -> npt.NDArray[np.uint8]:
    """Blocks of random bits whose values have about standard deviation `scale`. → [rows…, bytes]"""
    elements, size, scales, spread = RANDOM_BLOCKS[type]
    count = int(np.prod(shape)) // elements
    bits = noise(f"{type} {name}", (count, size)).view(np.uint32) >> np.uint32(3)
    blocks = bits.astype(np.uint8)
    factors = scale / spread * (1 + 0.2 * noise(f"scales of {name}", (count, max(len(scales), 1))))
    if type == "IQ1_M":
        put_nibbles(blocks, factors[:, 0].astype("<f2"))
    for i, (at, ratio) in enumerate(scales.items()):
        blocks[:, at : at + 2] = (ratio * factors[:, i : i + 1]).astype("<f2").view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)
