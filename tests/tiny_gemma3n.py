"""What tiny models of Gemma 3n have that no other has: shapes, names and metadata."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np

import tiny_gemma4
from tiny_blocks import FloatArray, noise
from tiny_gemma4 import FULL, SLIDING, shares

Shapes = dict[str, tuple[int, ...]]

BASE: dict[str, Any] = {
    "num_hidden_layers": 7,
    "layer_types": [SLIDING, FULL, SLIDING, SLIDING, FULL, SLIDING, FULL],
    "num_kv_shared_layers": 2,
    "num_key_value_heads": 2,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size_per_layer_input": 32,
    "altup_num_inputs": 4,
    "altup_active_idx": 0,
    "altup_correct_scale": True,
    "laurel_rank": 16,
    "activation_sparsity_pattern": [0.9, 0.6, 0.3, 0.0, 0.0, 0.0, 0.0],
    "sliding_window": 20,
    "rope_parameters": {
        SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
        FULL: {"rope_type": "default", "rope_theta": 1_000_000.0},
    },
    "final_logit_softcapping": 3.0,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}
SECOND = {"altup_num_inputs": 3, "altup_active_idx": 1, "altup_correct_scale": False}  # what published ones are not

DEEP = {  # layers as the larger published one has them
    "num_hidden_layers": 35,
    "layer_types": [*[SLIDING] * 4, FULL] * 7,
    "num_kv_shared_layers": 15,
    "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 25,
    "final_logit_softcapping": 30.0,
    "branch_scale": 0.1,
}
BRANCHES = (  # what decides how much a layer adds to the streams, and how much it mixes them
    "post_attention_layernorm.weight",
    "post_feedforward_layernorm.weight",
    "post_laurel_norm.weight",
    "post_per_layer_input_norm.weight",
    "modality_router.weight",
    "ion_coefs.weight",
)

PARTS = {  # names in GGUF that only this family has
    "altup.correction_coefs.weight": "altup_correct_coef.weight",
    "altup.correct_output_scale": "altup_correct_scale.weight",
    "altup.prediction_coefs.weight": "altup_predict_coef.weight",
    "altup.modality_router.weight": "altup_router.weight",
    "altup.router_norm.weight": "altup_router_norm.weight",
    "laurel.linear_left.weight": "laurel_l.weight",
    "laurel.linear_right.weight": "laurel_r.weight",
    "laurel.post_laurel_norm.weight": "laurel_post_norm.weight",
}
STACKS = {"model.altup_projections": "altup_proj.weight", "model.altup_unembed_projections": "altup_unembd_proj.weight"}


def gguf_name(name: str) -> str | None:
    """None where it is as in other families."""
    _, _, layer, part = [*name.split(".", 3), "", "", ""][:4]
    return f"blk.{layer}.{PARTS[part]}" if part in PARTS else tiny_gemma4.gguf_name(name)


def calmed(c: Mapping[str, Any], name: str, values: FloatArray) -> FloatArray:
    """A tensor as it is in deep models.

    With large random branches what is rounded grows layer by layer, until transformers' own logits in float32 and in
    float64 have nothing in common. With small ones a tied head would repeat the last token, if the last norm's weights
    were not of either sign.
    """
    if "branch_scale" not in c:
        return values
    if name == "model.norm.weight":
        return noise(name, values.shape)
    return values * np.float32(c["branch_scale"]) if name.endswith(BRANCHES) else values


def global_shapes(c: Mapping[str, Any]) -> Shapes:
    e, size = c["hidden_size"], c["hidden_size_per_layer_input"]
    width = size * c["num_hidden_layers"]
    return {
        "model.embed_tokens_per_layer.weight": (c["vocab_size_per_layer_input"], width),
        "model.per_layer_model_projection.weight": (width, e),
        "model.per_layer_projection_norm.weight": (size,),
        **{f"{stack}.{i}.weight": (e, e) for stack in STACKS for i in range(c["altup_num_inputs"] - 1)},
    }


def layer_shapes(c: Mapping[str, Any], layer: int) -> Shapes:
    e, f, d, n = c["hidden_size"], c["intermediate_size"], c["head_dim"], c["altup_num_inputs"]
    q, kv, size, rank = (
        c["num_attention_heads"] * d,
        c["num_key_value_heads"] * d,
        c["hidden_size_per_layer_input"],
        c["laurel_rank"],
    )
    matrices: Shapes = {"self_attn.q_proj": (q, e), "self_attn.o_proj": (e, q), "self_attn.q_norm": (d,)}
    if not shares(c, layer) or c.get("keep_shared"):
        matrices |= {"self_attn.k_proj": (kv, e), "self_attn.v_proj": (kv, e), "self_attn.k_norm": (d,)}
    matrices |= {"mlp.gate_proj": (f, e), "mlp.up_proj": (f, e), "mlp.down_proj": (e, f)}
    around = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    matrices |= {f"{norm}_layernorm": (e,) for norm in around}
    matrices |= {
        "per_layer_input_gate": (size, e),
        "per_layer_projection": (e, size),
        "post_per_layer_input_norm": (e,),
    }
    matrices |= {"altup.correction_coefs": (n, n), "altup.prediction_coefs": (n * n, n)}
    matrices |= {"altup.modality_router": (n, e), "altup.router_norm": (e,)}
    matrices |= {"laurel.linear_left": (rank, e), "laurel.linear_right": (e, rank), "laurel.post_laurel_norm": (e,)}
    return {f"{name}.weight": shape for name, shape in matrices.items()} | {"altup.correct_output_scale": (e,)}


def stacked(c: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What GGUF holds as one, and the table of layers' inputs with a row for each token.

    Converters fill it up with zeros, for tokens that no text holds; transformers reads the first row there, as here.
    """
    each = range(c["altup_num_inputs"] - 1)
    out = {name: np.stack([held[f"{stack}.{i}.weight"] for i in each]) for stack, name in STACKS.items()}
    table = held["model.embed_tokens_per_layer.weight"]
    missing = c["vocab_size"] - len(table)
    return out | {"per_layer_token_embd.weight": np.concatenate([table, table[:1].repeat(missing, 0)])}


def is_stacked(name: str) -> bool:
    return name.startswith(tuple(STACKS)) or name == "model.embed_tokens_per_layer.weight"


def metadata(c: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF's keys, without the architecture."""
    return {
        "attention.sliding_window_pattern": [kind == SLIDING for kind in c["layer_types"]],
        "attention.shared_kv_layers": c["num_kv_shared_layers"],
        "embedding_length_per_layer_input": c["hidden_size_per_layer_input"],
        "altup.num_inputs": c["altup_num_inputs"],
        "altup.active_idx": c["altup_active_idx"],
        "activation_sparsity_scale": [
            NormalDist().inv_cdf(share) if share else -float("inf") for share in c["activation_sparsity_pattern"]
        ],
    }
