"""The layers of tiny models with Mamba-2, and of Granite's mixtures, and what llama.cpp's converter makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tiny_blocks import FloatArray

MODELS = ("granitemoehybrid", "granitemoe", "granitemoeshared", "bamba", "falcon_h1", "nemotron_h")

SCALES: dict[str, Any] = {
    "embedding_multiplier": 6.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.15,
    "logits_scaling": 2.5,
}
MAMBA: dict[str, Any] = {
    "num_hidden_layers": 5,
    "layer_types": ["mamba", "mamba", "attention", "mamba", "attention"],
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 32,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
}
EXPERTS: dict[str, Any] = {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 32}
SHARED: dict[str, Any] = {"shared_intermediate_size": 64}
DENSE: dict[str, Any] = {"num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 96}
HYBRID: dict[str, Any] = {**SCALES, **MAMBA, "position_embedding_type": "nope", "tie_word_embeddings": True}
ONE_GROUP: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 16}
_WITHOUT_TYPES = {key: value for key, value in MAMBA.items() if key != "layer_types"}
BAMBA: dict[str, Any] = {
    **_WITHOUT_TYPES,
    **ONE_GROUP,
    "attn_layer_indices": [2, 4],
    "partial_rotary_factor": 0.5,
}

FALCON: dict[str, Any] = {
    **_WITHOUT_TYPES,
    "num_hidden_layers": 3,
    "mamba_d_ssm": 128,
    "mamba_rms_norm": True,
    "mamba_norm_before_gate": False,
    "embedding_multiplier": 3.0,
    "lm_head_multiplier": 0.3,
    "key_multiplier": 0.6,
    "attention_in_multiplier": 1.3,
    "attention_out_multiplier": 0.8,
    "ssm_in_multiplier": 1.2,
    "ssm_out_multiplier": 0.7,
    "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7],
    "mlp_multipliers": [0.8, 1.25],
}
NEMOTRON: dict[str, Any] = {
    "hybrid_override_pattern": "M-M*-MM*",
    "num_hidden_layers": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 32,
    "conv_kernel": 4,
    "expand": 2,
    "mlp_hidden_act": "relu2",
    "layer_norm_epsilon": 1e-5,
}

_STEMS = {
    "block_sparse_moe.router.layer": "ffn_gate_inp",
    "norm": "attn_norm",
    **{f"feed_forward.{of}_proj": f"ffn_{of}" for of in ("gate", "up", "down")},
    **{f"mixer.{of}_proj": f"ffn_{of}" for of in ("up", "down")},
    **{f"mixer.{of}_proj": f"attn_{of}" for of in ("q", "k", "v")},
    "mixer.o_proj": "attn_output",
}


def layer_shapes(c: Mapping[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    """By Hugging Face's names."""
    e, d = c["hidden_size"], c["head_dim"]
    kind = _kinds(c)[layer]
    norms = {"nemotron_h": ("norm",)}.get(c["model_type"], ("input_layernorm", _second_norm(c)))
    shapes: dict[str, tuple[int, ...]] = {f"{norm}.weight": (e,) for norm in norms}
    if kind in ("attention", "both"):
        q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
        for part, shape in {"q": (q, e), "k": (kv, e), "v": (kv, e), "o": (e, q)}.items():
            shapes[f"{_block(c, 'self_attn')}.{part}_proj.weight"] = shape
    if kind in ("mamba", "both"):
        shapes |= _mamba_shapes(c)
    if kind == "mlp" or c["model_type"] != "nemotron_h":
        shapes |= _ffn_shapes(c)
    return shapes


def _second_norm(c: Mapping[str, Any]) -> str:
    return "pre_ff_layernorm" if c["model_type"] in ("bamba", "falcon_h1") else "post_attention_layernorm"


def _block(c: Mapping[str, Any], usual: str) -> str:
    return "mixer" if c["model_type"] == "nemotron_h" else usual


def _kinds(c: Mapping[str, Any]) -> list[str]:
    """What each layer is beside the feed-forward that all have, but for Nemotron-H's."""
    count = c["num_hidden_layers"]
    if c["model_type"] == "falcon_h1":
        return ["both"] * count
    if c["model_type"] == "nemotron_h":
        return [{"M": "mamba", "*": "attention", "-": "mlp"}[letter] for letter in c["hybrid_override_pattern"]]
    if "attn_layer_indices" in c:
        return ["attention" if i in c["attn_layer_indices"] else "mamba" for i in range(count)]
    return list(c.get("layer_types") or ["attention"] * count)


def _sizes(c: Mapping[str, Any]) -> tuple[int, int, int, int, int]:
    """Of Mamba-2: heads, their size, groups, the state's size, taps."""
    if c["model_type"] == "nemotron_h":
        keys = ("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel")
    else:
        keys = ("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv")
    heads, dim, groups, state, taps = (int(c[key]) for key in keys)
    return heads, dim, groups, state, taps


def _mamba_shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    e = c["hidden_size"]
    heads, dim, groups, state, taps = _sizes(c)
    inner, mixed = heads * dim, heads * dim + 2 * groups * state
    shapes: dict[str, tuple[int, ...]] = {
        "in_proj.weight": (inner + mixed + heads, e),
        "out_proj.weight": (e, inner),
        "conv1d.weight": (mixed, 1, taps),
        "conv1d.bias": (mixed,),
        "norm.weight": (inner,),
        **dict.fromkeys(("A_log", "D", "dt_bias"), (heads,)),
    }
    if not c.get("mamba_rms_norm", True):
        del shapes["norm.weight"]
    return {f"{_block(c, 'mamba')}.{name}": shape for name, shape in shapes.items()}


def _ffn_shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    e, f, n = c["hidden_size"], c["intermediate_size"], c.get("num_local_experts", 0)
    if c["model_type"] == "nemotron_h":
        return {"mixer.up_proj.weight": (f, e), "mixer.down_proj.weight": (e, f)}
    if c["model_type"] in ("bamba", "falcon_h1"):
        shapes = {"gate": (f, e), "up": (f, e), "down": (e, f)}
        return {f"feed_forward.{part}_proj.weight": shape for part, shape in shapes.items()}
    found: dict[str, tuple[int, ...]] = {}
    if n:
        found["block_sparse_moe.router.layer.weight"] = (n, e)
        found["block_sparse_moe.input_linear.weight"] = (n, 2 * f, e)
        found["block_sparse_moe.output_linear.weight"] = (n, e, f)
    if shared := c.get("shared_intermediate_size"):
        found |= {"shared_mlp.input_linear.weight": (2 * shared, e), "shared_mlp.output_linear.weight": (e, shared)}
    return found


def metadata(c: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF's keys, without the architecture."""
    kinds, heads = _kinds(c), c["num_key_value_heads"]
    found: dict[str, Any] = {}
    if c["model_type"] != "falcon_h1":
        found["attention.head_count_kv"] = [heads if kind == "attention" else 0 for kind in kinds]
        found["rope.scaling.finetuned"] = c.get("position_embedding_type", "rope") == "rope"
    if set(kinds) - {"attention"}:
        of, dim, groups, state, taps = _sizes(c)
        found |= {"ssm.conv_kernel": taps, "ssm.state_size": state, "ssm.group_count": groups}
        found |= {"ssm.inner_size": of * dim, "ssm.time_step_rank": of}
    if c["model_type"] == "nemotron_h":
        found["feed_forward_length"] = [c["intermediate_size"] if kind == "mlp" else 0 for kind in kinds]
    if "shared_intermediate_size" in c:
        found["expert_shared_feed_forward_length"] = c["shared_intermediate_size"]
    return found


def gguf_tensors(c: Mapping[str, Any], name: str, values: FloatArray) -> dict[str, FloatArray]:
    """What becomes of one tensor of a layer, by its Hugging Face name within the layer."""
    stem, _, suffix = name.rpartition(".")
    block, _, part = name.partition(".")
    if block in ("mamba", "mixer") and (found := _mamba_tensors(c, part, values)):
        return found
    if block in ("block_sparse_moe", "shared_mlp") and (found := _mixture_tensors(c, stem, values)):
        return found
    if c["model_type"] == "falcon_h1":
        values = values * np.float32(_multiplier(c, part.removesuffix("_proj.weight")))
    elif part in ("q_proj.weight", "k_proj.weight"):
        heads = c["num_attention_heads" if part[0] == "q" else "num_key_value_heads"]
        values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
    if name == "pre_ff_layernorm.weight":
        return {"ffn_norm" if c["model_type"] == "falcon_h1" else "ffn_norm.weight": values}
    return {f"{_STEMS.get(stem, stem)}.{suffix}": values}


def _mixture_tensors(c: Mapping[str, Any], stem: str, values: FloatArray) -> dict[str, FloatArray]:
    if stem == "block_sparse_moe.input_linear":
        gate, up = np.split(values, 2, axis=1)
        return {"ffn_gate_exps.weight": gate, "ffn_up_exps.weight": up}
    if stem == "block_sparse_moe.output_linear":
        return {"ffn_down_exps.weight": values}
    if stem.startswith("shared_mlp"):
        of = "_shexp" if c.get("num_local_experts") else ""
        if "output" in stem:
            return {f"ffn_down{of}.weight": values}
        gate, up = np.split(values, 2)
        return {f"ffn_gate{of}.weight": gate, f"ffn_up{of}.weight": up}
    return {}


def _mamba_tensors(c: Mapping[str, Any], part: str, values: FloatArray) -> dict[str, FloatArray]:
    heads, dim, groups, state, _ = _sizes(c)
    match part:
        case "A_log":
            return {"ssm_a": -np.exp(values)[:, None]}
        case "D":
            return {"ssm_d": values[:, None]}
        case "dt_bias":
            return {"ssm_dt.bias": values}
        case "norm.weight":
            return {"ssm_norm.weight": values.reshape(groups, -1)}
        case "conv1d.weight":
            return {"ssm_conv1d.weight": values[:, 0]}
        case "conv1d.bias":
            return {"ssm_conv1d.bias": values}
        case "out_proj.weight":
            return {"ssm_out.weight": values * np.float32(c.get("ssm_out_multiplier", 1))}
        case "in_proj.weight":
            rows = np.repeat(
                c.get("ssm_multipliers", [1] * 5), [heads * dim, heads * dim, *[groups * state] * 2, heads]
            )
            rows = c.get("ssm_in_multiplier", 1) * rows
            return {"ssm_in.weight": (values * rows[:, None]).astype(np.float32)}
    return {}


def _multiplier(c: Mapping[str, Any], part: str) -> float:
    """What a matrix of Falcon-H1 that is not Mamba-2's is multiplied with."""
    by = {"q": c["attention_in_multiplier"], "o": c["attention_out_multiplier"]}
    by |= {"v": by["q"], "k": by["q"] * c["key_multiplier"]}
    by |= dict(zip(("gate", "down"), c["mlp_multipliers"], strict=True))
    return float(by.get(part, 1.0))


def outer_multiplier(c: Mapping[str, Any], name: str) -> float:
    """And what one outside of the layers is."""
    key = {"model.embed_tokens.weight": "embedding_multiplier", "lm_head.weight": "lm_head_multiplier"}.get(name)
    return float(c[key]) if key and c["model_type"] == "falcon_h1" else 1.0
