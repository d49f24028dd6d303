"""GLM-4 of April 2025 (9B, 32B and Z1): gate and up in one matrix, norms after attention and feed-forward too, and half
of each head turned, a rotary pair side by side.
"""

from __future__ import annotations

from pagoda.models import llama
from pagoda.models.family import Family
from pagoda.models.names import TENSORS

FAMILY = Family(
    name="glm4",
    gguf="glm4",
    hf_class="Glm4ForCausalLM",
    build=llama.build,
    compared=("llama.cpp 0.3.36: greedy tokens",),
    tensors=TENSORS
    | {
        "ffn_up": ("blk.{i}.ffn_up", "model.layers.{i}.mlp.gate_up_proj"),
        "attn_post_norm": ("blk.{i}.post_attention_norm", "model.layers.{i}.post_self_attn_layernorm"),
        "ffn_post_norm": ("blk.{i}.post_ffw_norm", "model.layers.{i}.post_mlp_layernorm"),
    },
    defaults={"rms_norm_eps": 1.5625e-7, "head_dim": 128, "attention_bias": True, "partial_rotary_factor": 0.5},
    usual_context=131_072,
    adjacent_pairs=True,
    partial_rotary=True,
    post_norms=True,
    fused_ffn=True,
    qkv_bias=True,
    windows=False,
)
