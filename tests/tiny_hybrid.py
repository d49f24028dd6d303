"""The layers of tiny models with gated delta nets, and what llama.cpp's converter makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tiny_blocks import FloatArray

HYBRIDS = ("qwen35", "qwen35moe", "qwen3next")

CONFIG: dict[str, Any] = {
    "num_hidden_layers": 5,
    "full_attention_interval": 4,
    "layer_types": [*["linear_attention"] * 3, "full_attention", "linear_attention"],
    "head_dim": 32,
    "partial_rotary_factor": 0.25,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.25,
        "mrope_section": [2, 1, 1],
    },
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
}
MIXTURE: dict[str, Any] = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 64,
}
NEXT: dict[str, Any] = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
HF_TO_GGUF = {
    "post_attention_layernorm": "post_attention_norm",
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.in_proj_ba": "ssm_ba",
    "linear_attn.out_proj": "ssm_out",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.norm": "ssm_norm",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}


def is_packed(c: Mapping[str, Any]) -> bool:
    """Whether q, k, v and the gate of a key head stand together, and heads keep their order in GGUF files."""
    return c["model_type"] == "qwen3_next"


def layer_shapes(c: Mapping[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    """By Hugging Face's names."""
    e, d = c["hidden_size"], c["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (e,), "post_attention_layernorm.weight": (e,)}
    if layer < len(c["layer_types"]) and c["layer_types"][layer] == "linear_attention":
        heads, values = c["linear_num_value_heads"], c["linear_num_value_heads"] * c["linear_value_head_dim"]
        mixed = 2 * c["linear_num_key_heads"] * c["linear_key_head_dim"] + values
        shapes |= {
            "linear_attn.out_proj.weight": (e, values),
            "linear_attn.conv1d.weight": (mixed, 1, c["linear_conv_kernel_dim"]),
            "linear_attn.norm.weight": (c["linear_value_head_dim"],),
            "linear_attn.A_log": (heads,),
            "linear_attn.dt_bias": (heads,),
        }
        parts = {"qkvz": mixed + values, "ba": 2 * heads} if is_packed(c) else {"qkv": mixed, "z": values}
        parts |= {} if is_packed(c) else {"a": heads, "b": heads}
        shapes |= {f"linear_attn.in_proj_{part}.weight": (rows, e) for part, rows in parts.items()}
    else:
        q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
        shapes |= {"self_attn.q_proj.weight": (2 * q, e), "self_attn.k_proj.weight": (kv, e)}
        shapes |= {"self_attn.v_proj.weight": (kv, e), "self_attn.o_proj.weight": (e, q)}
        shapes |= {"self_attn.q_norm.weight": (d,), "self_attn.k_norm.weight": (d,)}
    return shapes | (_mixture_shapes(c) if "num_experts" in c else _ffn_shapes("mlp", c["intermediate_size"], e))


def _ffn_shapes(block: str, f: int, e: int) -> dict[str, tuple[int, ...]]:
    return {f"{block}.{of}_proj.weight": (e, f) if of == "down" else (f, e) for of in ("gate", "up", "down")}


def _mixture_shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    n, e, f = c["num_experts"], c["hidden_size"], c["moe_intermediate_size"]
    return {
        "mlp.gate.weight": (n, e),
        "mlp.experts.gate_up_proj": (n, 2 * f, e),
        "mlp.experts.down_proj": (n, e, f),
        **_ffn_shapes("mlp.shared_expert", c["shared_expert_intermediate_size"], e),
        "mlp.shared_expert_gate.weight": (1, e),
    }


def gguf_sizes(c: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata without the architecture."""
    sizes = {
        "rope.dimension_sections": [*c["rope_parameters"]["mrope_section"], 0],
        "ssm.conv_kernel": c["linear_conv_kernel_dim"],
        "ssm.state_size": c["linear_key_head_dim"],
        "ssm.group_count": c["linear_num_key_heads"],
        "ssm.time_step_rank": c["linear_num_value_heads"],
        "ssm.inner_size": c["linear_num_value_heads"] * c["linear_value_head_dim"],
        "attention.recurrent_layers": [
            *(kind == "linear_attention" for kind in c["layer_types"]),
            *[False] * c.get("num_nextn_predict_layers", 0),
        ],
        "full_attention_interval": c["full_attention_interval"],
    }
    if "num_experts" in c:
        sizes |= {"expert_count": c["num_experts"], "expert_used_count": c["num_experts_per_tok"]}
        sizes["expert_feed_forward_length"] = c["moe_intermediate_size"]
        sizes["expert_shared_feed_forward_length"] = c["shared_expert_intermediate_size"]
    return sizes


def gguf_tensors(c: Mapping[str, Any], name: str, values: FloatArray) -> dict[str, FloatArray]:
    """What becomes of one tensor of a layer, by its Hugging Face name within the layer."""
    if name == "mlp.experts.gate_up_proj":
        gate, up = np.split(values, 2, axis=1)
        return {"ffn_gate_exps.weight": gate, "ffn_up_exps.weight": up}
    if name == "mlp.experts.down_proj":
        return {"ffn_down_exps.weight": values}
    if name == "linear_attn.A_log":
        return {"ssm_a": _tiled(c, -np.exp(values), 1)}
    if name == "linear_attn.dt_bias":
        return {"ssm_dt.bias": _tiled(c, values, 1)}
    stem = name.removesuffix(".weight")
    if stem == "linear_attn.in_proj_qkvz":
        groups, dim = c["linear_num_key_heads"], c["linear_key_head_dim"]
        heads = values.reshape(groups, -1, values.shape[1])
        rest = (heads.shape[1] - 2 * dim) // 2
        split = np.split(heads, [dim, 2 * dim, 2 * dim + rest], axis=1)
        q, k, v, z = (np.ascontiguousarray(part).reshape(-1, values.shape[1]) for part in split)
        return {"attn_qkv.weight": np.concatenate([q, k, v]), "attn_gate.weight": z}
    if stem == "mlp.shared_expert_gate":
        values = values[0]
    if stem.endswith("norm") and stem != "linear_attn.norm":
        values = values + 1
    if stem.startswith("linear_attn"):
        values = _reordered(c, stem.removeprefix("linear_attn."), values)
    return {f"{HF_TO_GGUF[stem]}.weight": values} if stem in HF_TO_GGUF else {name: values}


def _reordered(c: Mapping[str, Any], part: str, values: FloatArray) -> FloatArray:
    """Value heads in llama.cpp's order, in which head j belongs to key head j % num_key_heads."""
    dim = c["linear_value_head_dim"]
    if is_packed(c):
        return values.reshape(len(values), -1) if part == "conv1d" else values
    if part in ("in_proj_qkv", "conv1d"):
        values = values.reshape(len(values), -1)
        keys = 2 * c["linear_num_key_heads"] * c["linear_key_head_dim"]
        return np.concatenate([values[:keys], _tiled(c, values[keys:], dim)])
    if part == "out_proj":
        return np.ascontiguousarray(_tiled(c, values.T, dim).T)
    return values if part == "norm" else _tiled(c, values, dim if part == "in_proj_z" else 1)


def _tiled(c: Mapping[str, Any], rows: FloatArray, dim: int) -> FloatArray:
    groups = c["linear_num_key_heads"]
    if is_packed(c):
        return rows
    return rows.reshape(groups, -1, dim, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)
