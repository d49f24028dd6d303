"""Seed-OSS: Llama with biases on q, k and v."""

from __future__ import annotations

from pagoda.models import llama
from pagoda.models.family import Family
from pagoda.models.names import TENSORS

FAMILY = Family(
    name="seed_oss",
    gguf="seed_oss",
    hf_class="SeedOssForCausalLM",
    build=llama.build,
    compared=("llama.cpp 0.3.36: greedy tokens",),
    tensors=TENSORS | {"ffn_norm": ("blk.{i}.post_attention_norm", "model.layers.{i}.post_attention_layernorm")},
    defaults={"head_dim": 128, "num_key_value_heads": 8},
    usual_context=524_288,
    qkv_bias=True,
    windows=False,
)
