"""What tiny models of Gemma 4 have that no other has: shapes, names and metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Shapes = dict[str, tuple[int, ...]]

SLIDING, FULL = "sliding_attention", "full_attention"
ROPES = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
BASE: dict[str, Any] = {
    "num_hidden_layers": 6,
    "layer_types": [SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL],
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size_per_layer_input": 0,
    "sliding_window": 20,
    "rope_parameters": ROPES,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}
SMALL = {  # as E2B and E4B are made
    "num_key_value_heads": 1,
    "hidden_size_per_layer_input": 32,
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
    "final_logit_softcapping": 3.0,
}
DENSE = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}  # 31B
EXPERTS = {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 32}  # 26B-A4B

# Names in GGUF of tensors whose names do not end in .weight or .bias, or only here.
PARTS = {
    "layer_scalar": "layer_output_scale.weight",
    "per_layer_input_gate.weight": "inp_gate.weight",
    "per_layer_projection.weight": "proj.weight",
    "post_per_layer_input_norm.weight": "post_norm.weight",
    "router.proj.weight": "ffn_gate_inp.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
    "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
    "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
}
WHOLE = {
    "model.embed_tokens_per_layer.weight": "per_layer_token_embd.weight",
    "model.per_layer_model_projection.weight": "per_layer_model_proj.weight",
    "model.per_layer_projection_norm.weight": "per_layer_proj_norm.weight",
}


def gguf_name(name: str) -> str | None:
    """None where it is as in other families."""
    if name in WHOLE:
        return WHOLE[name]
    _, _, layer, part = [*name.split(".", 3), "", "", ""][:4]
    return f"blk.{layer}.{PARTS[part]}" if part in PARTS else None


def heads(c: Mapping[str, Any], layer: int) -> tuple[int, int]:
    """→ (head size, KV heads)"""
    if c["layer_types"][layer] == SLIDING:
        return c["head_dim"], c["num_key_value_heads"]
    fewer = c.get("num_global_key_value_heads") if c.get("attention_k_eq_v") else None
    return c["global_head_dim"], fewer or c["num_key_value_heads"]


def shares(c: Mapping[str, Any], layer: int) -> bool:
    return layer >= c["num_hidden_layers"] - c.get("num_kv_shared_layers", 0)


def ffn_size(c: Mapping[str, Any], layer: int) -> int:
    return c["intermediate_size"] * (2 if c.get("use_double_wide_mlp") and shares(c, layer) else 1)


def global_shapes(c: Mapping[str, Any]) -> Shapes:
    size = c["hidden_size_per_layer_input"]
    if not size:
        return {}
    width = size * c["num_hidden_layers"]
    return {
        "model.embed_tokens_per_layer.weight": (c["vocab_size"], width),
        "model.per_layer_model_projection.weight": (width, c["hidden_size"]),
        "model.per_layer_projection_norm.weight": (size,),
    }


def layer_shapes(c: Mapping[str, Any], layer: int) -> Shapes:
    e, f, (d, kv_heads) = c["hidden_size"], ffn_size(c, layer), heads(c, layer)
    q, kv = c["num_attention_heads"] * d, kv_heads * d
    matrices: Shapes = {"self_attn.q_proj": (q, e), "self_attn.o_proj": (e, q), "self_attn.q_norm": (d,)}
    if not shares(c, layer):
        matrices |= {"self_attn.k_proj": (kv, e), "self_attn.k_norm": (d,)}
        if not (c.get("attention_k_eq_v") and c["layer_types"][layer] == FULL):
            matrices["self_attn.v_proj"] = (kv, e)
    matrices |= {"mlp.gate_proj": (f, e), "mlp.up_proj": (f, e), "mlp.down_proj": (e, f)}
    around = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    matrices |= {f"{norm}_layernorm": (e,) for norm in around}
    plain: Shapes = {"layer_scalar": (1,)}
    if size := c["hidden_size_per_layer_input"]:
        matrices |= {"per_layer_input_gate": (size, e), "per_layer_projection": (e, size)}
        matrices["post_per_layer_input_norm"] = (e,)
    if c.get("enable_moe_block"):
        n, x = c["num_experts"], c["moe_intermediate_size"]
        matrices |= {"router.proj": (n, e), "pre_feedforward_layernorm_2": (e,)}
        matrices |= {f"post_feedforward_layernorm_{i}": (e,) for i in (1, 2)}
        plain |= {"router.scale": (e,), "router.per_expert_scale": (n,)}
        plain |= {"experts.gate_up_proj": (n, 2 * x, e), "experts.down_proj": (n, e, x)}
    return {f"{name}.weight": shape for name, shape in matrices.items()} | plain


def metadata(c: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF's keys, without the architecture."""
    layers = range(c["num_hidden_layers"])
    found: dict[str, Any] = {
        "attention.key_length": c["global_head_dim"],
        "attention.value_length": c["global_head_dim"],
        "attention.key_length_swa": c["head_dim"],
        "attention.value_length_swa": c["head_dim"],
        "attention.sliding_window_pattern": [kind == SLIDING for kind in c["layer_types"]],
        "attention.shared_kv_layers": c.get("num_kv_shared_layers", 0),
        "embedding_length_per_layer_input": c["hidden_size_per_layer_input"],
        "rope.freq_base_swa": ROPES[SLIDING]["rope_theta"],
        "rope.dimension_count": c["global_head_dim"],
        "rope.dimension_count_swa": c["head_dim"],
    }
    if c.get("use_double_wide_mlp"):
        found["feed_forward_length"] = [ffn_size(c, layer) for layer in layers]
    if "num_global_key_value_heads" in c:
        found["attention.head_count_kv"] = [heads(c, layer)[1] for layer in layers]
    if c.get("enable_moe_block"):
        found |= {"expert_count": c["num_experts"], "expert_used_count": c["top_k_experts"]}
    return found


def rope_factors(c: Mapping[str, Any]) -> np.ndarray:
    turned, pairs = c["global_head_dim"] // 8, c["global_head_dim"] // 2
    return np.where(np.arange(pairs) < turned, 1, 1e30).astype("<f4")
