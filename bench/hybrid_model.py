"""A model of Qwen3.5-0.8B's shape with random weights in Q4_K_M: speed asks for nothing else.

    LLAMA_CPP_BIN=build/bin python bench/hybrid_model.py hybrid.gguf
    LLAMA_CPP_BIN=build/bin python bench/compare.py hybrid.gguf --only prefill-512,decode-1,decode-16

Sizes as in its config.json; the vocabulary has as many tokens, with names that mean nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

LAYERS, INTERVAL, HIDDEN, FFN, VOCAB = 24, 4, 1024, 3584, 248_320
HEADS, KV_HEADS, HEAD_DIM = 8, 2, 256
DELTA_HEADS, DELTA_DIM, TAPS = 16, 128, 4
INNER = DELTA_HEADS * DELTA_DIM


def shapes(layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from (("attn_norm.weight", (HIDDEN,)), ("post_attention_norm.weight", (HIDDEN,)))
    if (layer + 1) % INTERVAL:
        yield from (("attn_qkv.weight", (3 * INNER, HIDDEN)), ("attn_gate.weight", (INNER, HIDDEN)))
        yield from (("ssm_alpha.weight", (DELTA_HEADS, HIDDEN)), ("ssm_beta.weight", (DELTA_HEADS, HIDDEN)))
        yield from (("ssm_conv1d.weight", (3 * INNER, TAPS)), ("ssm_out.weight", (HIDDEN, INNER)))
        yield from (("ssm_norm.weight", (DELTA_DIM,)), ("ssm_a", (DELTA_HEADS,)), ("ssm_dt.bias", (DELTA_HEADS,)))
    else:
        yield from (("attn_q.weight", (2 * HEADS * HEAD_DIM, HIDDEN)), ("attn_k.weight", (KV_HEADS * HEAD_DIM, HIDDEN)))
        yield from (
            ("attn_v.weight", (KV_HEADS * HEAD_DIM, HIDDEN)),
            ("attn_output.weight", (HIDDEN, HEADS * HEAD_DIM)),
        )
        yield from (("attn_q_norm.weight", (HEAD_DIM,)), ("attn_k_norm.weight", (HEAD_DIM,)))
    yield from ((f"ffn_{of}.weight", (HIDDEN, FFN) if of == "down" else (FFN, HIDDEN)) for of in ("gate", "up", "down"))


def values(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.floating]:
    if "norm" in name:
        return np.ones(shape, np.float32)
    if name.endswith("ssm_a"):
        return -rng.uniform(0.5, 8, shape).astype(np.float32)
    made = rng.standard_normal(shape, np.float32) * np.float32(0.02)
    return made if "conv1d" in name or len(shape) == 1 else made.astype(np.float16)


def write(path: Path) -> None:
    """The model in F16."""
    writer, rng = gguf.GGUFWriter(path, "qwen35"), np.random.default_rng(0)
    for key, value in {
        "block_count": LAYERS, "context_length": 32_768, "embedding_length": HIDDEN, "feed_forward_length": FFN,
        "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM, "rope.dimension_count": HEAD_DIM // 4, "ssm.conv_kernel": TAPS,
        "ssm.state_size": DELTA_DIM, "ssm.group_count": DELTA_HEADS, "ssm.time_step_rank": DELTA_HEADS,
        "ssm.inner_size": INNER, "full_attention_interval": INTERVAL,
    }.items():  # fmt: skip
        writer.add_uint32(f"qwen35.{key}", value)
    writer.add_float32("qwen35.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32("qwen35.rope.freq_base", 10_000_000.0)
    writer.add_array("qwen35.rope.dimension_sections", [11, 11, 10, 0])
    alphabet = [chr(code if code > 32 else 256 + code) for code in range(256)]
    tokens = [*alphabet, *(f"token{i}" for i in range(VOCAB - len(alphabet)))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen35")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * VOCAB)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(VOCAB - 1)
    writer.add_tensor("token_embd.weight", values(rng, "token_embd", (VOCAB, HIDDEN)))
    writer.add_tensor("output_norm.weight", values(rng, "output_norm", (HIDDEN,)))
    for layer in range(LAYERS):
        for name, shape in shapes(layer):
            writer.add_tensor(f"blk.{layer}.{name}", values(rng, name, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    out = Path(sys.argv[1])
    whole = out.with_suffix(".f16.gguf")
    write(whole)
    quantize = Path(os.environ["LLAMA_CPP_BIN"]) / "llama-quantize"
    subprocess.run([quantize, whole, out, "Q4_K_M"], check=True)
    whole.unlink()


if __name__ == "__main__":
    main()
