"""Qwen3 with a mixture of experts instead of the feed-forward, in all layers or some."""

from __future__ import annotations

from pagoda.models import qwen2
from pagoda.models.family import Family

FAMILY = Family(
    name="qwen3_moe",
    gguf="qwen3moe",
    hf_class="Qwen3MoeForCausalLM",
    build=qwen2.build,
    usual_context=32_768,
    defaults={
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
    },
    qk_norm=True,
    windows=False,
    compared=("llama.cpp 0.3.36: greedy tokens",),
)
