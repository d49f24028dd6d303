"""What tiny models of Mistral 4 and DeepSeek have: latent attention, in folders and in GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

CONFIG: dict[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 64,
    "q_lora_rank": 64,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 64,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
}
DEEPSEEK = CONFIG | {
    "head_dim": 32,
    "v_head_dim": 32,
    "num_hidden_layers": 3,
    "n_group": 1,
    "topk_group": 1,
    "scoring_func": "sigmoid",
}
LITE = DEEPSEEK | {  # queries come out of the input itself
    "q_lora_rank": None,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "rope_scaling": {
        "type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "beta_fast": 32,
        "beta_slow": 1,
    },
}
GROUPS = {"n_routed_experts": 12, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2}  # experts picked from them
ARCHITECTURES = ("mistral4", "deepseek2")
NAMES = {
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
}
SPLIT = "self_attn.kv_b_proj.weight"


def attention_shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of a layer, without their endings."""
    e, heads, rank, q_rank = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"], c["q_lora_rank"]
    plain, turned, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    queries = heads * (plain + turned)
    shapes: dict[str, tuple[int, ...]] = {"q_proj": (queries, e)}
    if q_rank:
        shapes = {"q_a_proj": (q_rank, e), "q_a_layernorm": (q_rank,), "q_b_proj": (queries, q_rank)}
    shapes |= {
        "kv_a_proj_with_mqa": (rank + turned, e),
        "kv_a_layernorm": (rank,),
        "kv_b_proj": (heads * (plain + value), rank),
        "o_proj": (e, heads * value),
    }
    return {f"self_attn.{name}": shape for name, shape in shapes.items()}


def split(c: Mapping[str, Any], name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """What GGUF makes of the matrix that keys and values come out of: keys' part the other way round."""
    layer, plain = name.split(".")[2], c["qk_nope_head_dim"]
    heads = values.reshape(c["num_attention_heads"], -1, c["kv_lora_rank"])
    keys = np.ascontiguousarray(heads[:, :plain].swapaxes(1, 2))
    return {
        f"blk.{layer}.attn_k_b.weight": keys,
        f"blk.{layer}.attn_v_b.weight": np.ascontiguousarray(heads[:, plain:]),
    }


def metadata(c: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF's keys, without the architecture."""
    turned = c["qk_rope_head_dim"]
    return ({"attention.q_lora_rank": c["q_lora_rank"]} if c["q_lora_rank"] else {}) | {
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": c["kv_lora_rank"],
        "attention.key_length": c["kv_lora_rank"] + turned,
        "attention.value_length": c["kv_lora_rank"],
        "attention.key_length_mla": c["qk_nope_head_dim"] + turned,
        "attention.value_length_mla": c["v_head_dim"],
        "rope.dimension_count": turned,
        "expert_shared_count": c["n_shared_experts"],
        "leading_dense_block_count": c["first_k_dense_replace"],
        "expert_weights_scale": c["routed_scaling_factor"],
        "expert_weights_norm": c["norm_topk_prob"],
    }
