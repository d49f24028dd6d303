"""Qwen1.5-MoE and Qwen2-57B-A14B: Qwen2 with a mixture of experts beside a shared one, which counts as a gate says."""

from __future__ import annotations

from pagoda.models import qwen2
from pagoda.models.experts import shared_expert
from pagoda.models.family import Family
from pagoda.models.names import TENSORS

FAMILY = Family(
    name="qwen2_moe",
    gguf="qwen2moe",
    hf_class="Qwen2MoeForCausalLM",
    build=qwen2.build,
    not_covered="conversion; training",
    usual_context=32_768,
    tensors=TENSORS | shared_expert("mlp.shared_expert", "mlp.shared_expert_gate"),
    defaults={
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "norm_topk_prob": False,
    },
    gguf_norm_topk=False,
    is_converted=False,
    is_trained=False,
    qkv_bias=True,
    windows=False,
    compared=("llama.cpp 0.3.36: greedy tokens",),
)
