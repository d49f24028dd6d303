"""What tiny mixtures of experts have: shapes, names in GGUF, and stacks of their matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Shapes = dict[str, tuple[int, ...]]
Arrays = dict[str, np.ndarray]

_GATED = ("gate_proj", "up_proj", "down_proj")
EXPERT_NAMES = {  # of the block, and of an expert's gate, up and down
    "qwen2_moe": ("mlp", *_GATED),
    "qwen3_moe": ("mlp", *_GATED),
    "glm4_moe": ("mlp", *_GATED),
    "deepseek_v2": ("mlp", *_GATED),
    "deepseek_v3": ("mlp", *_GATED),
    "glm4_moe_lite": ("mlp", *_GATED),
    "mixtral": ("block_sparse_moe", "w1", "w3", "w2"),
    "lfm2_moe": ("feed_forward", "w1", "w3", "w2"),
}
SHARED = {
    **dict.fromkeys(("glm4_moe", "mistral4", "deepseek_v2", "deepseek_v3", "glm4_moe_lite"), "mlp.shared_experts"),
    "qwen2_moe": "mlp.shared_expert",
}
STACKED = ("qwen3_vl_moe_text", "mistral4")  # whose folders hold experts in stacks
NAMES = {
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    **{f"{block}.{of}_proj": f"ffn_{of}_shexp" for block in SHARED.values() for of in ("gate", "up", "down")},
}
CORRECTIONS = ("e_score_correction_bias", "expert_bias")
# Names of what folders hold as one: gates before ups, in stacks or not; of Qwen3-VL's stacks, each matrix transposed.
DIVIDED = {
    "mlp.experts.gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"),
    "mlp.experts.down_proj": ("ffn_down_exps",),
}


def count(c: Mapping[str, Any]) -> int:
    if "num_experts_per_tok" not in c:
        return 0
    return c.get("num_local_experts") or c.get("n_routed_experts") or c.get("num_experts") or 0


def has_experts(c: Mapping[str, Any], layer: int) -> bool:
    """Whether experts take the place of a layer's feed-forward."""
    dense = c.get("first_k_dense_replace", c.get("num_dense_layers", 0))
    return count(c) > 0 and layer not in c.get("mlp_only_layers", []) and layer >= dense


def expert_shapes(c: Mapping[str, Any]) -> Shapes:
    """Of the matrices of a layer with experts, without their endings."""
    e, f, kind = c["hidden_size"], c.get("moe_intermediate_size", c["intermediate_size"]), c["model_type"]
    block, gate, up, down = EXPERT_NAMES.get(kind, ("mlp", *_GATED))
    each = {gate: (f, e), up: (f, e), down: (e, f)}
    shapes: Shapes = {f"{block}.gate": (count(c), e)}
    if kind not in STACKED:
        shapes |= {f"{block}.experts.{i}.{name}": shape for i in range(count(c)) for name, shape in each.items()}
    if kind in SHARED:
        wide = c.get("shared_expert_intermediate_size") or f * c["n_shared_experts"]
        parts = {"gate_proj": (wide, e), "up_proj": (wide, e), "down_proj": (e, wide)}
        shapes |= {f"{SHARED[kind]}.{name}": shape for name, shape in parts.items()}
    return shapes | ({"mlp.shared_expert_gate": (1, e)} if kind == "qwen2_moe" else {})


def vector_shapes(c: Mapping[str, Any]) -> Shapes:
    """Of the tensors of such a layer whose names have no ending."""
    e, f, n = c["hidden_size"], c.get("moe_intermediate_size", 0), count(c)
    corrections = {"mlp.gate.e_score_correction_bias": (n,)}
    return {
        **dict.fromkeys(("glm4_moe", "deepseek_v3", "glm4_moe_lite"), corrections),
        "lfm2_moe": {"feed_forward.expert_bias": (n,)},
        "mistral4": {"mlp.experts.gate_up_proj": (n, 2 * f, e), "mlp.experts.down_proj": (n, e, f)},
        "qwen3_vl_moe_text": {"mlp.experts.gate_up_proj": (n, e, 2 * f), "mlp.experts.down_proj": (n, f, e)},
    }.get(c["model_type"], {})


def is_expert(name: str) -> bool:
    """Whether it is one expert's alone."""
    return ".experts." in name and name.endswith(".weight")


def is_divided(name: str) -> bool:
    return name.endswith(tuple(DIVIDED)) and not name.endswith("_bias")


def stacked(c: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> Arrays:
    """GGUF's stacks of experts' matrices, gates apart from ups."""
    stacks: dict[str, list[np.ndarray]] = {}
    out: Arrays = {}
    for name, values in held.items():
        if is_divided(name):
            out |= _divided(c, name, values)
        elif is_expert(name):
            _, _, layer, _, _, _, part, _ = name.split(".")
            role = dict(zip(EXPERT_NAMES[c["model_type"]][1:], ("gate", "up", "down"), strict=True))[part]
            stacks.setdefault(f"blk.{layer}.ffn_{role}_exps.weight", []).append(values)
    return out | {name: np.stack(matrices) for name, matrices in stacks.items()}


def _divided(c: Mapping[str, Any], name: str, values: np.ndarray) -> Arrays:
    _, _, layer, part = name.split(".", 3)
    upright = values.swapaxes(1, 2) if c["model_type"] == "qwen3_vl_moe_text" else values
    pieces = np.split(upright, len(DIVIDED[part]), axis=-2)
    return {f"blk.{layer}.{to}.weight": np.ascontiguousarray(p) for to, p in zip(DIVIDED[part], pieces, strict=True)}


def metadata(c: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF's keys, without the architecture."""
    width = c.get("moe_intermediate_size")
    found: dict[str, Any] = {} if width is None else {"expert_feed_forward_length": width}
    if not count(c):
        return found
    found |= {"expert_count": count(c), "expert_used_count": c["num_experts_per_tok"]}
    if c.get("n_group"):
        found |= {"expert_group_count": c["n_group"], "expert_group_used_count": c["topk_group"]}
    if "shared_expert_intermediate_size" in c:
        found["expert_shared_feed_forward_length"] = c["shared_expert_intermediate_size"]
    if c["model_type"] == "lfm2_moe":
        found |= {"leading_dense_block_count": c["num_dense_layers"], "expert_gating_func": 2}
    if c["model_type"] in ("glm4_moe", "deepseek_v2", "deepseek_v3", "glm4_moe_lite"):
        found |= {
            "expert_shared_count": c["n_shared_experts"],
            "leading_dense_block_count": c["first_k_dense_replace"],
            "expert_gating_func": 1 if c["model_type"] == "deepseek_v2" else 2,
            "expert_weights_scale": c["routed_scaling_factor"],
            "expert_weights_norm": c["norm_topk_prob"],
        }
    return found
