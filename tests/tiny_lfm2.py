"""The layers of tiny LFM2 models, and their names in GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tiny_mixtures

CONFIG: dict[str, Any] = {
    "num_hidden_layers": 5,
    "layer_types": ["conv", "full_attention", "conv", "conv", "full_attention"],
    "conv_L_cache": 3,
    "conv_bias": False,
    "norm_eps": 1e-5,
    "block_auto_adjust_ff_dim": True,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 32,
    "intermediate_size": 150,  # of which two thirds up to a multiple: 128
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}
FFN = 128
MIXTURE = {
    "intermediate_size": FFN,
    "num_dense_layers": 2,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "use_expert_bias": True,
}
NAMES = {
    "operator_norm": "attn_norm",
    "self_attn.out_proj": "attn_output",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
    "conv.in_proj": "shortconv.in_proj",
    "conv.conv": "shortconv.conv",
    "conv.out_proj": "shortconv.out_proj",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
    "model.embedding_norm": "token_embd_norm",
    "feed_forward.gate": "ffn_gate_inp",
}


def layer_shapes(c: Mapping[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    e, d, taps = c["hidden_size"], c["head_dim"], c["conv_L_cache"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    shapes: dict[str, tuple[int, ...]] = {"operator_norm": (e,), "ffn_norm": (e,)}
    if c["layer_types"][layer] == "conv":
        shapes |= {"conv.in_proj": (3 * e, e), "conv.conv": (e, 1, taps), "conv.out_proj": (e, e)}
    else:
        shapes |= {"self_attn.q_proj": (q, e), "self_attn.k_proj": (kv, e), "self_attn.v_proj": (kv, e)}
        shapes |= {"self_attn.out_proj": (e, q), "self_attn.q_layernorm": (d,), "self_attn.k_layernorm": (d,)}
    vectors: dict[str, tuple[int, ...]] = {}
    if tiny_mixtures.has_experts(c, layer):
        shapes, vectors = shapes | tiny_mixtures.expert_shapes(c), tiny_mixtures.vector_shapes(c)
    else:
        shapes |= {"feed_forward.w1": (FFN, e), "feed_forward.w3": (FFN, e), "feed_forward.w2": (e, FFN)}
    return {f"{name}.weight": shape for name, shape in shapes.items()} | vectors


def metadata(c: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF's keys, without the architecture."""
    heads = [0 if kind == "conv" else c["num_key_value_heads"] for kind in c["layer_types"]]
    return {"feed_forward_length": FFN, "attention.head_count_kv": heads, "shortconv.l_cache": c["conv_L_cache"]}
