"""Every family against transformers' logits (goldens/, written by make_goldens.py), from either kind of file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paged_run import reference_run
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.registry import load_model
from pagoda.types import FloatArray
from tiny_models import TINY, MemoryCheckpoint, TinyModel, memory_checkpoint, raw, write_gguf, write_safetensors

GOLDENS = Path(__file__).parent / "goldens"

# What GGUF has no key for; and where llama.cpp's converter reorders queries and keys as if heads were turned whole.
NOT_IN_GGUF = {"qwen2_windowed", "qwen3moe_mixed", "bamba", "gemma3n_second"}


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDENS / f"{name}.json").read_text())


def logits_of(checkpoint: Any, expected: dict[str, Any]) -> FloatArray:
    """What the golden holds: some rows, every so manieth logit."""
    rows = reference_run(load_model(checkpoint, max_context=128)).step({"s": expected["tokens"]})["s"]
    return rows[expected["rows"]][:, :: expected["every"]]


def test_every_tiny_model_has_a_golden() -> None:
    assert {path.stem for path in GOLDENS.glob("*.json")} - {"default_model", "minilm", "packed"} == set(TINY)


@pytest.mark.parametrize("name", TINY)
def test_logits_equal_those_of_transformers(name: str) -> None:
    expected = golden(name)
    np.testing.assert_allclose(logits_of(memory_checkpoint(TINY[name]), expected), expected["logits"], atol=1e-4)


@pytest.mark.parametrize("name", sorted(TINY.keys() - NOT_IN_GGUF))
def test_gguf_names_metadata_and_permutation_give_the_same_model(name: str) -> None:
    expected = golden(name)
    checkpoint = memory_checkpoint(TINY[name], kind="gguf")
    np.testing.assert_allclose(logits_of(checkpoint, expected), expected["logits"], atol=1e-4)


@pytest.mark.parametrize("name", ["llama3", "gemma3"])
def test_files_give_the_same_model(name: str, tmp_path: Path) -> None:
    expected = golden(name)
    paths = [
        write_safetensors(tmp_path / "folder", TINY[name]),
        write_gguf(tmp_path / "model.gguf", TINY[name]),
    ]
    for path in paths:
        with open_checkpoint(path) as checkpoint:
            np.testing.assert_allclose(logits_of(checkpoint, expected), expected["logits"], atol=1e-4)


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_sixteen_bit_weights_are_close(name: str, tmp_path: Path) -> None:
    """BF16 keeps 8 bits of a number: logits of size 1 move by some hundredths, norms included."""
    expected = golden(name)
    with open_checkpoint(write_safetensors(tmp_path, TINY[name], type="BF16")) as checkpoint:
        moved = np.abs(logits_of(checkpoint, expected) - expected["logits"])
    assert 1e-4 < moved.max() < 0.2


# Each golden must be able to tell whether its feature works: without it, the numbers differ.
WITHOUT: dict[str, TinyModel] = {
    "llama3": TINY["llama3"].with_config(rope_scaling=None),
    "mistral": TINY["mistral"].with_config(sliding_window=None),
    "qwen2_windowed": TINY["qwen2_windowed"].with_config(use_sliding_window=False),
    "qwen3_yarn": TINY["qwen3_yarn"].with_config(rope_scaling=None),
    "gemma3": TINY["gemma3"].with_config(sliding_window_pattern=1),
    "gemma3_256": TINY["gemma3_256"].with_config(query_pre_attn_scalar=256),
    "qwen3moe": TINY["qwen3moe"].with_config(norm_topk_prob=False),
    "qwen3moe_mixed": TINY["qwen3moe_mixed"].with_config(num_experts_per_tok=1),
    "mixtral": TINY["mixtral"].with_config(num_experts_per_tok=1),
    "gemma2": TINY["gemma2"].with_config(attn_logit_softcapping=None),
    "smollm3": TINY["smollm3"].with_config(no_rope_layer_interval=100),
    "granite": TINY["granite"].with_config(residual_multiplier=1.0),
    "ministral3": TINY["ministral3"].with_config(rope_parameters=None),
    "olmo3": TINY["olmo3"].with_config(sliding_window=None),
    "glm4": TINY["glm4"].with_config(partial_rotary_factor=1.0),
    "hunyuan": TINY["hunyuan"].with_config(rope_scaling=None),
    "cohere": TINY["cohere"].with_config(logit_scale=0.25),
    "cohere2": TINY["cohere2"].with_config(sliding_window_pattern=1),
    "stablelm": TINY["stablelm"].with_config(partial_rotary_factor=0.5),
    "nemotron": TINY["nemotron"].with_config(hidden_act="gelu"),
    "lfm2": TINY["lfm2"].with_config(rope_theta=100.0),
    "granite4": TINY["granite4"].with_config(position_embedding_type="rope"),
    "granite4_dense": TINY["granite4_dense"].with_config(attention_multiplier=0.3),
    "granite4_attention": TINY["granite4_attention"].with_config(position_embedding_type="nope"),
    "granitemoe": TINY["granitemoe"].with_config(num_experts_per_tok=1),
    "bamba": TINY["bamba"].with_config(partial_rotary_factor=1.0),
    "falcon_h1": TINY["falcon_h1"].with_config(mamba_norm_before_gate=True),
    "falcon_h1_plain": TINY["falcon_h1_plain"].with_config(ssm_multipliers=None),
    "nemotron_h": TINY["nemotron_h"].with_config(mlp_hidden_act="silu"),
    "gemma3n": TINY["gemma3n"].with_config(activation_sparsity_pattern=[0.0] * 7),
    "gemma3n_second": TINY["gemma3n_second"].with_config(altup_active_idx=0),
    "gemma3n_deep": TINY["gemma3n_deep"].with_config(num_kv_shared_layers=14),
    "gemma4": TINY["gemma4"].with_config(final_logit_softcapping=None),
    "gemma4_dense": TINY["gemma4_dense"].with_config(sliding_window=256),
    "gemma4_experts": TINY["gemma4_experts"].with_config(top_k_experts=1),
    "phi3": TINY["phi3"].with_config(sliding_window=None),
    "phi3_long": TINY["phi3_short"],
    "phi3_short": TINY["phi3_long"],
}


@pytest.mark.parametrize("name", WITHOUT)
def test_goldens_notice_a_missing_feature(name: str) -> None:
    expected = golden(name)
    off = np.abs(logits_of(memory_checkpoint(WITHOUT[name]), expected) - expected["logits"])
    assert off.max() > 0.01


# What transformers 5 writes for the same models.
SPELLED_ANEW: dict[str, dict[str, Any]] = {
    "gemma3": {
        "rope_theta": None,
        "rope_scaling": None,
        "rope_local_base_freq": None,
        "sliding_window_pattern": None,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"factor": 8.0, "rope_theta": 1_000_000.0, "rope_type": "linear"},
            "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"},
        },
    },
    "llama3": {
        "rope_theta": None,
        "rope_scaling": None,
        "rope_parameters": {**TINY["llama3"].config["rope_scaling"], "rope_theta": 10_000.0},
    },
    "qwen2_windowed": {"layer_types": ["full_attention", "sliding_attention"], "max_window_layers": None},
}


@pytest.mark.parametrize("name", SPELLED_ANEW)
def test_configs_of_transformers_5_say_the_same(name: str) -> None:
    expected = golden(name)
    checkpoint = memory_checkpoint(TINY[name].with_config(**SPELLED_ANEW[name]))
    np.testing.assert_allclose(logits_of(checkpoint, expected), expected["logits"], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "model_type", "outer"),
    [
        ("gemma3", "gemma3", "language_model."),
        ("gemma4", "gemma4", "model.language_model."),
        ("gemma3n", "gemma3n", "model.language_model."),
        ("ministral3", "mistral3", "language_model."),
    ],
)
def test_the_language_part_of_a_model_that_sees_is_served(name: str, model_type: str, outer: str) -> None:
    text = memory_checkpoint(TINY[name])
    config = {"model_type": model_type, "text_config": text.metadata, "vision_config": {"hidden_size": 8}}
    tower = {tensor: raw(tensor, np.ones((8, 8), np.float32)) for tensor in ("vision_tower.a.weight",)}
    renamed = {
        outer + (tensor.removeprefix("model.") if outer.startswith("model.") else tensor): held
        for tensor, held in text.tensors.items()
    }
    seeing = MemoryCheckpoint("safetensors", model_type, config, renamed | tower)
    np.testing.assert_allclose(logits_of(seeing, golden(name)), golden(name)["logits"], atol=1e-4)
