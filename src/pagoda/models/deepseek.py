"""DeepSeek V2 and V3, and those built like them (Moonlight, GLM-4.7 Flash): latent attention (`latent.py`) in all
layers, and from a layer on a mixture of experts beside shared ones. V2 picks experts by softmax, the others by
corrected sigmoids. The largest pick them from groups: V2 scores a group by its best, the others by the sum of its two
best, corrections included, as in deepseek-ai's own inference code.

The layer that predicts several tokens (MTP) is a head beside the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pagoda.models.experts import shared_expert
from pagoda.models.family import Family
from pagoda.models.latent import LATENT_TENSORS, build_latent, latent_head
from pagoda.models.names import TENSORS


def _by_layer(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """GLM says of each layer what its feed-forward is."""
    types = config.get("mlp_layer_types")
    if not isinstance(types, list):
        return config
    return {**config, "mlp_only_layers": [layer for layer, type in enumerate(types) if type == "dense"]}


SECOND = Family(
    name="deepseek_v2",
    gguf="deepseek2",  # of the others, too: their files say how experts are scored
    hf_class="DeepseekV2ForCausalLM",
    build=build_latent,
    head=latent_head,
    not_covered="conversion; training",
    tensors=TENSORS
    | LATENT_TENSORS
    | shared_expert("mlp.shared_experts")
    | {"expert_corrections": ("blk.{i}.exp_probs_b", "model.layers.{i}.mlp.gate.e_score_correction_bias")},
    defaults={"first_k_dense_replace": 0, "norm_topk_prob": False, "topk_method": "greedy"},
    group_method="group_limited_greedy",
    gguf_norm_topk=False,
    is_converted=False,
    is_trained=False,
    adjacent_pairs=True,
    windows=False,
)
THIRD = replace(
    SECOND,
    name="deepseek_v3",
    hf_class="DeepseekV3ForCausalLM",
    compared=("llama.cpp 0.3.36: greedy tokens",),
    not_covered="conversion; training",
    defaults={
        "num_attention_heads": 128,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_group": 8,
        "topk_group": 4,
        "first_k_dense_replace": 3,
        "routed_scaling_factor": 2.5,
        "num_nextn_predict_layers": 1,
    },
    usual_context=4096,
    scoring="sigmoid",
)
GLM_LITE = replace(
    THIRD,
    name="glm4_moe_lite",
    hf_class="Glm4MoeLiteForCausalLM",
    not_covered="conversion; training",
    defaults={
        **THIRD.defaults,
        "num_attention_heads": 20,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "moe_intermediate_size": 1536,
        "n_routed_experts": 64,
        "num_experts_per_tok": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.8,
        "rms_norm_eps": 1e-5,
    },
    usual_context=202_752,
    adapt_config=_by_layer,
)
