"""Adapters of the tiny models, one of each kind that peft writes, for tests; `peft` itself is not needed.

`make_adapter_goldens.py` has peft make them once. Kept are its adapter_config.json and the shapes of its tensors, whose
values come from their names (`tiny_blocks.noise`), and the logits that transformers and peft then compute.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tiny_blocks import FloatArray, noise

GOLDENS = Path(__file__).parent / "reference/goldens/adapters"

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class TinyAdapter:
    """What peft is to make: LoraConfig's arguments, for the tiny model called `base`."""

    base: str
    config: Mapping[str, Any]


# Whose models' GGUF files hold other matrices or rows in another order, or cannot be served.
OF_FOLDERS = {"all_beside", "all_delta", "mamba_beside", "mamba_turned"}

ADAPTERS: dict[str, TinyAdapter] = {
    "q_v": TinyAdapter("llama", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}),
    "all_linear": TinyAdapter("llama", {"r": 3, "lora_alpha": 5, "target_modules": "all-linear"}),
    "regex": TinyAdapter("llama", {"r": 2, "target_modules": r".*layers\.1\..*(q|gate)_proj"}),
    "rslora": TinyAdapter("llama", {"r": 9, "lora_alpha": 4, "use_rslora": True, "target_modules": LINEARS}),
    "patterns": TinyAdapter(
        "llama",
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": LINEARS,
            # keys that match one module together: saving sorts them, and then the first that matches wins
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "k_proj": 6, r"layers\.\d+\.mlp\.(gate|up)_proj": 5},
            "alpha_pattern": {"v_proj": 3, "layers.0.self_attn.v_proj": 40, "down_proj": 1},
        },
    ),
    "biases": TinyAdapter("qwen2", {"r": 4, "target_modules": LINEARS, "bias": "all"}),
    "lora_biases": TinyAdapter("qwen2", {"r": 4, "target_modules": ["q_proj", "v_proj"], "bias": "lora_only"}),
    "lora_bias": TinyAdapter("qwen2", {"r": 4, "lora_alpha": 6, "target_modules": ["v_proj"], "lora_bias": True}),
    "dora": TinyAdapter("llama", {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": LINEARS}),
    "dora_biased": TinyAdapter("qwen2", {"r": 4, "use_dora": True, "use_rslora": True, "target_modules": LINEARS}),
    "latent": TinyAdapter("deepseek2", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"]}),
    "whole_head": TinyAdapter(
        "llama", {"r": 4, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}
    ),
    "whole_norms": TinyAdapter("llama", {"r": 4, "target_modules": ["o_proj"], "modules_to_save": ["input_layernorm"]}),
    "embedding": TinyAdapter(
        "llama", {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "lm_head", "q_proj"]}
    ),
    "fused": TinyAdapter("phi3", {"r": 4, "target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]}),
    "layers": TinyAdapter("llama", {"r": 4, "target_modules": ["q_proj"], "layers_to_transform": [1]}),
    # attention and feed-forward of models whose other layers keep a state
    "delta_net": TinyAdapter("qwen35", {"r": 4, "lora_alpha": 8, "target_modules": LINEARS}),
    "delta_net_dora": TinyAdapter("qwen35", {"r": 4, "use_dora": True, "target_modules": ["q_proj", "down_proj"]}),
    "short_conv": TinyAdapter(
        "lfm2", {"r": 4, "target_modules": r".*(q_proj|k_proj|v_proj|self_attn\.out_proj|w1|w2|w3)"}
    ),
    "mamba": TinyAdapter(
        "granite4_dense", {"r": 4, "lora_alpha": 6, "target_modules": [*LINEARS[:4], "input_linear", "output_linear"]}
    ),
    "all_delta": TinyAdapter("qwen35", {"r": 4, "target_modules": "all-linear"}),
    "all_conv": TinyAdapter("lfm2", {"r": 4, "target_modules": "all-linear"}),
    "all_mamba": TinyAdapter("granite4_dense", {"r": 4, "target_modules": "all-linear"}),
    "all_beside": TinyAdapter("falcon_h1", {"r": 4, "target_modules": [*LINEARS, "in_proj"]}),
    "mamba_beside": TinyAdapter("falcon_h1", {"r": 4, "target_modules": LINEARS}),
    "mamba_turned": TinyAdapter("bamba", {"r": 4, "target_modules": LINEARS}),
}


HYBRIDS = {
    "all_delta",
    "all_conv",
    "all_mamba",
    "all_beside",
    "delta_net",
    "delta_net_dora",
    "short_conv",
    "mamba",
    *OF_FOLDERS,
}


def value(key: str, shape: tuple[int, ...]) -> FloatArray:
    """What a tensor of an adapter holds, large enough that leaving it out shows."""
    if "lora_magnitude_vector" in key:
        return 1.5 + noise(key, shape, 0.3)
    if key.endswith("norm.weight"):
        return 1 + noise(key, shape, 0.2)
    if key.endswith("bias"):
        return noise(key, shape, 0.3)
    return noise(key, shape, 0.5 * shape[-1] ** -0.5 if "lora_" in key else shape[-1] ** -0.5)


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDENS / f"{name}.json").read_text())


def write_adapter(folder: Path, name: str) -> Path:
    """The adapter as peft would write it."""
    expected = golden(name)
    values = {key: value(key, tuple(shape)) for key, shape in expected["shapes"].items()}
    return write_peft(folder, expected["config"], values)


def write_peft(folder: Path, config: Mapping[str, Any], values: Mapping[str, FloatArray]) -> Path:
    """A PEFT folder of these float32 tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {}
    offset = 0
    for key, array in values.items():
        header[key] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    blobs = b"".join(np.ascontiguousarray(array).tobytes() for array in values.values())
    (folder / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + blobs)
    return folder
