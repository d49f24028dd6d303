"""Tiny models that see: their text model's config.json inside another, beside a vision model without weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VISION: dict[str, Any] = {"depth": 1, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "out_hidden_size": 64}
KINDS: dict[str, dict[str, Any]] = {  # by the text model's model_type: what else the vision model's config has
    "qwen2_vl_text": {"embed_dim": 16, "hidden_size": 64, "mlp_ratio": 2},
    "qwen2_5_vl_text": {"intermediate_size": 32, "fullatt_block_indexes": [0]},
    "qwen3_vl_text": {"intermediate_size": 32, "deepstack_visual_indexes": [], "num_position_embeddings": 16},
    "qwen3_vl_moe_text": {"intermediate_size": 32, "deepstack_visual_indexes": [], "num_position_embeddings": 16},
}
CLASSES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
}
OUTER = ("vocab_size", "tie_word_embeddings", "bos_token_id", "eos_token_id")


def sees(text: Mapping[str, Any]) -> bool:
    return text["model_type"] in KINDS


def name_in_folder(text: Mapping[str, Any], name: str) -> str:
    """Of a tensor of the text model."""
    inside = text["model_type"].startswith("qwen3_vl") and name.startswith("model.")
    return f"model.language_model.{name.removeprefix('model.')}" if inside else name


def config(text: Mapping[str, Any]) -> dict[str, Any]:
    """The whole model's config.json."""
    name = text["model_type"].removesuffix("_text")
    vision = {"model_type": f"{name}_vision", **VISION, **KINDS[text["model_type"]]}
    inside = {"text_config": dict(text), "vision_config": vision}
    return {"model_type": name, "architectures": [CLASSES[name]], **{key: text[key] for key in OUTER}, **inside}
