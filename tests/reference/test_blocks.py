"""Block decoders against the `gguf` package, bit for bit, on random blocks."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from pagoda.formats.blocks import BLOCK_TYPES, dequantize
from tiny_blocks import put_nibbles

SCALES_AT = {  # byte offsets of the f16 scales in a block
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
    "IQ1_S": (0,),
    "IQ1_M": (),
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "MXFP4": (),
}


def random_blocks(type: str, count: int, seed: int) -> np.ndarray:
    """Random bytes [count, bytes] with finite scales."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, BLOCK_TYPES[type].bytes), dtype=np.uint8)
    for at in SCALES_AT[type]:
        blocks[:, at : at + 2] = rng.standard_normal((count, 1)).astype("<f2").view(np.uint8)
    if type == "IQ1_M":
        put_nibbles(blocks, rng.standard_normal(count).astype("<f2"))
    if type == "MXFP4":
        blocks[:, 0] = np.arange(count) % 250  # larger ones overflow
    return blocks


@pytest.mark.parametrize("type", SCALES_AT)
def test_decodes_random_blocks_as_gguf_does(type: str) -> None:
    blocks = random_blocks(type, 512, seed=7)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[type])
    decoded = dequantize(blocks, type, (512, BLOCK_TYPES[type].elements))
    np.testing.assert_array_equal(decoded, expected)


def test_table_has_the_sizes_and_ids_of_gguf() -> None:
    for name, block in BLOCK_TYPES.items():
        type = gguf.GGMLQuantizationType[name]
        assert (block.elements, block.bytes) == gguf.GGML_QUANT_SIZES[type], name
        assert block.id == type.value, name


@pytest.mark.parametrize("type", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_decodes_what_gguf_quantizes(type: str) -> None:
    original = np.random.default_rng(3).standard_normal((8, 96)).astype(np.float32)
    packed = gguf.quants.quantize(original, gguf.GGMLQuantizationType[type])
    decoded = dequantize(packed, type, (8, 96))
    bits = int(type[1])
    assert np.abs(decoded - original).max() < np.abs(original).max() * 2.0 ** (2 - bits)
