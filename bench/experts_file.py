"""Writes a GGUF file of the layer shape of Qwen3-30B-A3B with few layers and random weights.

    python bench/experts_file.py VOCABULARY.gguf OUT.gguf [--layers 2]

The tokenizer, and the number of tokens, are those of VOCABULARY.gguf. Types are as in Q4_K_M: Q6_K for the embeddings,
which are the head, too, and in the last half of the layers for values and the experts' second matrices; Q4_K for the
rest. pagoda bench and llama-bench take the file.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pagoda.formats.checkpoint import open_checkpoint
from pagoda.formats.gguf_writer import GGUFWriter, TensorRow, Value, f32, text, u32
from pagoda.quantize.gguf.source_model import GGUFSource

HIDDEN, HEADS, KV_HEADS, HEAD, EXPERTS, USED, WIDTH = 2048, 32, 4, 128, 128, 8, 768


def fields(layers: int, tokens: int) -> dict[str, Value]:
    sizes = {
        "block_count": layers,
        "context_length": 32768,
        "embedding_length": HIDDEN,
        "feed_forward_length": 6144,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "expert_count": EXPERTS,
        "expert_used_count": USED,
        "expert_feed_forward_length": WIDTH,
        "vocab_size": tokens,
    }
    reals = {"rope.freq_base": 1e6, "attention.layer_norm_rms_epsilon": 1e-6}
    return {
        "general.architecture": text("qwen3moe"),
        "general.name": text("random experts"),
        **{f"qwen3moe.{key}": u32(value) for key, value in sizes.items()},
        **{f"qwen3moe.{key}": f32(value) for key, value in reals.items()},
    }


def rows(layers: int, tokens: int) -> Iterator[TensorRow]:
    yield TensorRow("token_embd.weight", "Q6_K", (tokens, HIDDEN))
    yield TensorRow("output_norm.weight", "F32", (HIDDEN,))
    for layer in range(layers):
        type, some = "Q4_K", "Q6_K" if layer >= layers // 2 else "Q4_K"
        for name, kind, shape in (
            ("attn_norm", "F32", (HIDDEN,)),
            ("attn_q", type, (HEADS * HEAD, HIDDEN)),
            ("attn_k", type, (KV_HEADS * HEAD, HIDDEN)),
            ("attn_v", some, (KV_HEADS * HEAD, HIDDEN)),
            ("attn_q_norm", "F32", (HEAD,)),
            ("attn_k_norm", "F32", (HEAD,)),
            ("attn_output", type, (HIDDEN, HEADS * HEAD)),
            ("ffn_norm", "F32", (HIDDEN,)),
            ("ffn_gate_inp", "F32", (EXPERTS, HIDDEN)),
            ("ffn_gate_exps", type, (EXPERTS, WIDTH, HIDDEN)),
            ("ffn_up_exps", type, (EXPERTS, WIDTH, HIDDEN)),
            ("ffn_down_exps", some, (EXPERTS, HIDDEN, WIDTH)),
        ):
            yield TensorRow(f"blk.{layer}.{name}.weight", kind, shape)


def random_bytes(row: TensorRow, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Norms of ones, floats of a usual size, blocks of any codes whose scales are small."""
    if row.type == "F32":
        ones = len(row.shape) == 1
        return np.ones(row.shape, np.float32) if ones else rng.normal(0, 0.03, row.shape).astype(np.float32)
    size, scales = {"Q4_K": (144, {0: 2e-4, 2: 1e-3}), "Q6_K": (210, {208: 4e-5})}[row.type]
    blocks = rng.integers(0, 256, (row.num_bytes // size, size), np.uint8)
    for at, scale in scales.items():
        blocks[:, at : at + 2] = np.array([scale], np.float16).view(np.uint8)
    return blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    options = parser.parse_args()
    with open_checkpoint(options.vocabulary) as checkpoint:
        values = GGUFSource(checkpoint, threads=1).values
        words = {key: value for key, value in values.items() if key.startswith("tokenizer.")}
        tokens = len(checkpoint.metadata["tokenizer.ggml.tokens"])
    rng = np.random.default_rng(1)
    every = list(rows(options.layers, tokens))
    with GGUFWriter(options.out, {**fields(options.layers, tokens), **words}, every) as writer:
        for row in writer.missing():
            writer.write(row.name, random_bytes(row, rng))
        writer.finish()


if __name__ == "__main__":
    main()
