"""Tiny random models of every family, as files of either kind and in memory, for tests.

    spec = TINY["gemma3"]                           # what the model is: a config.json
    write_safetensors(folder, spec)                 # config.json, model.safetensors, tokenizer.json
    write_gguf(path, spec, type="Q4_K")             # the same model, matrices in any block format, tokenizer inside
    memory_checkpoint(spec, kind="gguf")            # no file at all, float32

Weights come from the tensors' names by integer arithmetic, so they are the same everywhere and for ever; norms,
biases and scores are large enough that leaving one out shows. Types that gguf cannot write (k-quants, IQ) get random
blocks of the same spread instead of the weights' own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import tiny_gemma3n
import tiny_gemma4
import tiny_hybrid
import tiny_lfm2
import tiny_mamba
import tiny_mistral4
import tiny_mixtures
import tiny_vision
from pagoda.types import RawTensor
from tiny_blocks import FloatArray, encode, noise
from tiny_hybrid import HYBRIDS
from tiny_specs import GEMMAS, INTERLEAVED, LAYER_NORMS, TinyModel
from tiny_specs import MIXTURES as MIXTURES
from tiny_specs import TINY as TINY
from tiny_specs import VOCAB as VOCAB
from tiny_tokenizer import MERGES, TOKENS, tokenizer_json

# Weights


def weights(spec: TinyModel) -> dict[str, FloatArray]:
    """All tensors by their Hugging Face names."""
    shapes = tensor_shapes(spec)
    return {name: tiny_gemma3n.calmed(spec.config, name, _weight(spec, name, shape)) for name, shape in shapes.items()}


def _weight(spec: TinyModel, name: str, shape: tuple[int, ...]) -> FloatArray:
    if ("norm" in name and name.endswith("weight")) or name.endswith(("scale", "scalar")):
        added = spec.architecture in GEMMAS or (spec.architecture in HYBRIDS and "linear_attn" not in name)
        return noise(name, shape, 0.2) + np.float32(0 if added else 1)
    if name.endswith("modality_router.weight"):  # which reads what is divided by the width
        return noise(name, shape, shape[-1] ** 0.5)
    if name.endswith("ion_coefs.weight"):  # more, and layer by layer what is rounded would double
        return noise(name, shape, 0.2)
    if name.endswith("bias"):
        return noise(name, shape, 0.3)
    if name.endswith("A_log"):
        return noise(name, shape, 1.5)
    if name.endswith("sinks"):
        return noise(name, shape)
    if "embed" in name:
        return noise(name, shape, shape[1] ** -0.5 if spec.config["tie_word_embeddings"] else 1.0)
    return noise(name, shape, 1.5 * shape[-1] ** -0.5)


def tensor_shapes(spec: TinyModel) -> dict[str, tuple[int, ...]]:
    c = spec.config
    shapes: dict[str, tuple[int, ...]] = {
        f"{EMBEDDINGS.get(c['model_type'], 'model.embed_tokens')}.weight": (c["vocab_size"], c["hidden_size"]),
        f"{OUTPUT_NORMS.get(c['model_type'], 'model.norm')}.weight": (c["hidden_size"],),
    }
    if spec.architecture in ("stablelm", "nemotron"):
        shapes["model.norm.bias"] = (c["hidden_size"],)
    if spec.architecture == "gemma4":
        shapes |= tiny_gemma4.global_shapes(c)
    if spec.architecture == "gemma3n":
        shapes |= tiny_gemma3n.global_shapes(c)
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (c["vocab_size"], c["hidden_size"])
    for layer in range(c["num_hidden_layers"] + num_heads(c)):
        start = f"{LAYERS.get(c['model_type'], 'model.layers')}.{layer}"
        shapes |= {f"{start}.{name}": shape for name, shape in _layer_shapes(spec, layer).items()}
        if layer >= c["num_hidden_layers"]:
            shapes |= {f"{start}.{name}.weight": shape for name, shape in head_shapes(c["hidden_size"]).items()}
    return shapes


def num_heads(config: Mapping[str, Any]) -> int:
    """Layers after the last that predict several tokens."""
    return int(config.get("num_nextn_predict_layers", 0))


def head_shapes(hidden: int) -> dict[str, tuple[int, ...]]:
    """What such a layer has besides."""
    norms = dict.fromkeys(("enorm", "hnorm", "shared_head.norm"), (hidden,))
    return {"eh_proj": (hidden, 2 * hidden), **norms}


EMBEDDINGS = {"nemotron_h": "backbone.embeddings"}
OUTPUT_NORMS = {
    **dict.fromkeys(("lfm2", "lfm2_moe"), "model.embedding_norm"),
    "bamba": "model.final_layernorm",
    "falcon_h1": "model.final_layernorm",
    "nemotron_h": "backbone.norm_f",
}
LAYERS = {"nemotron_h": "backbone.layers"}


def _layer_shapes(spec: TinyModel, layer: int) -> dict[str, tuple[int, ...]]:
    c, arch = spec.config, spec.architecture
    if arch == "gemma4":
        return tiny_gemma4.layer_shapes(c, layer)
    if arch == "gemma3n":
        return tiny_gemma3n.layer_shapes(c, layer)
    if arch in ("lfm2", "lfm2moe"):
        return tiny_lfm2.layer_shapes(c, layer)
    if arch in HYBRIDS:
        return tiny_hybrid.layer_shapes(c, layer)
    if c["model_type"] in tiny_mamba.MODELS:
        return tiny_mamba.layer_shapes(c, layer)
    if arch == "gpt-oss":
        return gpt_oss_shapes(spec)
    e, f, d = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    matrices = {"self_attn.o_proj": (e, q), "mlp.down_proj": (e, f)}
    if arch in tiny_mistral4.ARCHITECTURES:
        matrices |= tiny_mistral4.attention_shapes(c)
    elif arch == "phi3":
        matrices |= {"self_attn.qkv_proj": (q + 2 * kv, e)}
    else:
        matrices |= {"self_attn.q_proj": (q, e), "self_attn.k_proj": (kv, e), "self_attn.v_proj": (kv, e)}
    if arch in ("phi3", "glm4"):
        matrices |= {"mlp.gate_up_proj": (2 * f, e)}
    else:
        matrices |= {"mlp.up_proj": (f, e)} | ({} if arch == "nemotron" else {"mlp.gate_proj": (f, e)})
    vectors: dict[str, tuple[int, ...]] = {}
    if tiny_mixtures.has_experts(c, layer):
        matrices = {name: shape for name, shape in matrices.items() if "mlp" not in name}
        matrices, vectors = matrices | tiny_mixtures.expert_shapes(c), tiny_mixtures.vector_shapes(c)
    norms = {"input_layernorm": (e,), "post_attention_layernorm": (e,)}
    if arch == "olmo2":
        norms = {"post_attention_layernorm": (e,), "post_feedforward_layernorm": (e,)}
        norms |= {"self_attn.q_norm": (q,), "self_attn.k_norm": (kv,)}
    if arch in ("qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "gemma3") or (arch == "glm4moe" and c["use_qk_norm"]):
        norms |= {"self_attn.q_norm": (d,), "self_attn.k_norm": (d,)}
    if arch in ("gemma2", "gemma3"):
        norms |= {"pre_feedforward_layernorm": (e,), "post_feedforward_layernorm": (e,)}
    if arch == "glm4":
        norms |= {"post_self_attn_layernorm": (e,), "post_mlp_layernorm": (e,)}
    if arch == "command-r" and c.get("use_qk_norm"):
        norms |= {"self_attn.q_norm": (q // d, d), "self_attn.k_norm": (kv // d, d)}
    if c.get("qk_layernorm"):
        heads = {"q": q // d, "k": kv // d}
        vectors |= {f"self_attn.{of}_layernorm.norms.{i}.weight": (d,) for of, n in heads.items() for i in range(n)}
    if arch == "hunyuan-dense":
        norms |= {"self_attn.query_layernorm": (d,), "self_attn.key_layernorm": (d,)}
    if arch in ("command-r", "cohere2") or c.get("use_parallel_residual"):
        del norms["post_attention_layernorm"]
    biased = [name for name in matrices if _has_bias(spec, name)]
    biased += norms if arch in ("stablelm", "nemotron") else ()
    return (
        {f"{name}.weight": shape for name, shape in (matrices | norms).items()}
        | {f"{name}.bias": (matrices | norms)[name][:1] for name in biased}
        | vectors
    )  # fmt: skip


def gpt_oss_shapes(spec: TinyModel) -> dict[str, tuple[int, ...]]:
    """Of a layer: biases on everything, stacks of experts transposed, and gates beside ups."""
    c = spec.config
    e, f, d, n = c["hidden_size"], c["intermediate_size"], c["head_dim"], c["num_local_experts"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    linears = {"q_proj": (q, e), "k_proj": (kv, e), "v_proj": (kv, e), "o_proj": (e, q)}
    linears = {f"self_attn.{name}": shape for name, shape in linears.items()} | {"mlp.router": (n, e)}
    stacks = {"gate_up_proj": (n, e, 2 * f), "down_proj": (n, f, e)}
    return (
        {f"{name}.weight": shape for name, shape in linears.items()}
        | {f"{name}.bias": shape[:1] for name, shape in linears.items()}
        | {f"mlp.experts.{name}": shape for name, shape in stacks.items()}
        | {f"mlp.experts.{name}_bias": (n, shape[2]) for name, shape in stacks.items()}
        | {"self_attn.sinks": (c["num_attention_heads"],)}
        | {f"{name}_layernorm.weight": (e,) for name in ("input", "post_attention")}
    )


def _has_bias(spec: TinyModel, matrix: str) -> bool:
    if not matrix.startswith("self_attn"):
        return bool(spec.config.get("mlp_bias"))
    if (
        spec.architecture in ("qwen2", "qwen2moe", "qwen2vl", "glm4", "glm4moe", "seed_oss", "stablelm")
        and "o_proj" not in matrix
    ):
        return spec.config.get("use_qkv_bias", spec.architecture != "stablelm")
    return bool(spec.config.get("attention_bias")) and spec.architecture not in ("qwen2", "glm4", "glm4moe", "seed_oss")


# Hugging Face folders


def folder_weights(spec: TinyModel) -> dict[str, FloatArray]:
    """All tensors by the names that a folder holds them by."""
    return {_name_in_folder(spec, name): values for name, values in weights(spec).items()}


def _name_in_folder(spec: TinyModel, name: str) -> str:
    start = f"model.layers.{spec.config['num_hidden_layers']}."
    if name.startswith(start) and spec.config["model_type"] in OWN_HEADS:
        names, inside = OWN_HEADS[spec.config["model_type"]], name.removeprefix(start)
        stem, _, suffix = inside.rpartition(".")
        return f"{names[stem]}.{suffix}" if stem in names else f"{names['']}.{inside}"
    return tiny_vision.name_in_folder(spec.config, name)


QWEN_HEAD = {
    "": "mtp.layers.0",
    "eh_proj": "mtp.fc",
    "enorm": "mtp.pre_fc_norm_embedding",
    "hnorm": "mtp.pre_fc_norm_hidden",
    "shared_head.norm": "mtp.norm",
}
MIMO_HEAD = {
    "": "model.mtp_layers.0",
    "eh_proj": "model.mtp_layers.0.input_proj",
    "enorm": "model.mtp_layers.0.token_layernorm",
    "hnorm": "model.mtp_layers.0.hidden_layernorm",
    "shared_head.norm": "model.mtp_layers.0.final_layernorm",
}
OWN_HEADS = {**dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"), QWEN_HEAD), "mimo": MIMO_HEAD}


def write_safetensors(folder: Path, spec: TinyModel, *, type: str = "F32") -> Path:
    """A model folder; `type` is F32, F16 or BF16."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(spec)))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    header, blobs, offset = {}, [], 0
    for name, values in folder_weights(spec).items():
        blob = encode(values, type).tobytes()
        end = offset + len(blob)
        header[name] = {"dtype": type, "shape": list(values.shape), "data_offsets": [offset, end]}
        blobs.append(blob)
        offset = end
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))
    return folder


def hf_config(spec: TinyModel) -> dict[str, Any]:
    """config.json as transformers 4 wrote it."""
    if tiny_vision.sees(spec.config):
        return tiny_vision.config(spec.config)
    return {**spec.config, "architectures": [HF_CLASSES[spec.config["model_type"]]]}


HF_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "mimo": "Qwen2ForCausalLM",  # which is what transformers has of it
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "lfm2_moe": "Lfm2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "mistral4": "Mistral4ForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "glm4_moe_lite": "Glm4MoeLiteForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "gemma3n_text": "Gemma3nForCausalLM",
    "gemma4_text": "Gemma4ForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "granitemoeshared": "GraniteMoeSharedForCausalLM",
    "bamba": "BambaForCausalLM",
    "falcon_h1": "FalconH1ForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "hunyuan_v1_dense": "HunYuanDenseV1ForCausalLM",
    "cohere": "CohereForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "nemotron": "NemotronForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
}


# GGUF files

HF_TO_GGUF = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
HF_TO_GGUF |= (
    tiny_lfm2.NAMES
    | tiny_mixtures.NAMES
    | tiny_mistral4.NAMES
    | {
        "eh_proj": "nextn.eh_proj",
        "enorm": "nextn.enorm",
        "hnorm": "nextn.hnorm",
        "shared_head.norm": "nextn.shared_head_norm",
        "model.final_layernorm": "output_norm",
        "backbone.norm_f": "output_norm",
        "backbone.embeddings": "token_embd",
        "self_attn.query_layernorm": "attn_q_norm",
        "self_attn.key_layernorm": "attn_k_norm",
        "post_self_attn_layernorm": "post_attention_norm",
        "post_mlp_layernorm": "post_ffw_norm",
    }
)
POST_NORMS = ("gemma2", "gemma3", "gemma3n", "gemma4", "olmo2", "seed_oss")
HF_TO_GGUF_POST_NORMS = HF_TO_GGUF | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def write_gguf(path: Path, spec: TinyModel, *, type: str = "F32", types: Mapping[str, str] | None = None) -> Path:
    """A GGUF file. `types` gives single tensors, by GGUF name, a type of their own; vectors are F32."""
    writer = gguf.GGUFWriter(path, spec.architecture)
    for key, value in gguf_metadata(spec).items():
        _add_field(writer, key, value)
    for name, values in gguf_weights(spec).items():
        chosen = (types or {}).get(name, type) if is_matrix(name, values) else "F32"
        data = encode(values, chosen, name)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[chosen])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def is_matrix(name: str, values: FloatArray) -> bool:
    """Whether llama.cpp would quantize it: vectors and routers stay F32."""
    kept = ("ffn_gate_inp", "altup", "laurel", "per_layer_model_proj", "_norm.")
    plain = ("conv1d.weight", "conv.conv.weight", "norm.weight", "bias", "ssm_a", "ssm_d")
    left = any(part in name for part in kept) or name.endswith(plain)
    return values.ndim > 1 and not left


def _add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    if isinstance(value, list):
        writer.add_array(key, value)
    elif key != "general.architecture":  # the writer has put it already
        add[value.__class__](key, value)


SAME_IN_GGUF = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
}


def gguf_metadata(spec: TinyModel) -> dict[str, Any]:
    c, arch = spec.config, spec.architecture
    sizes = {
        "block_count": c["num_hidden_layers"] + num_heads(c),
        "context_length": c["max_position_embeddings"],
        "embedding_length": c["hidden_size"],
        "feed_forward_length": c["intermediate_size"],
        "attention.head_count": c["num_attention_heads"],
        "attention.head_count_kv": c["num_key_value_heads"],
        "attention.key_length": c["head_dim"],
        "attention.value_length": c["head_dim"],
        f"attention.layer_norm_{'' if arch in LAYER_NORMS else 'rms_'}epsilon": c["rms_norm_eps"],
        "rope.freq_base": c["rope_theta"],
        "rope.dimension_count": int(c["head_dim"] * c.get("partial_rotary_factor", 1)),
    }
    if c.get("sliding_window") and "use_sliding_window" not in c:
        sizes["attention.sliding_window"] = c["sliding_window"]
    sizes |= {"nextn_predict_layers": num_heads(c)} if num_heads(c) else {}
    sizes |= tiny_mixtures.metadata(c)
    sizes |= {key: c[name] for name, key in SAME_IN_GGUF.items() if name in c}
    sizes |= tiny_gemma3n.metadata(c) if arch == "gemma3n" else {}
    sizes |= tiny_gemma4.metadata(c) if arch == "gemma4" else {}
    sizes |= tiny_mistral4.metadata(c) if arch in tiny_mistral4.ARCHITECTURES else {}
    sizes |= tiny_lfm2.metadata(c) if "lfm2" in arch else {}
    sizes |= tiny_hybrid.gguf_sizes(c) if arch in HYBRIDS else {}
    sizes |= tiny_mamba.metadata(c) if c["model_type"] in tiny_mamba.MODELS else {}
    if "logit_scale" in c:
        sizes["logit_scale"] = c["logit_scale"]
    scaling = c.get("rope_parameters") or c.get("rope_scaling") or {}
    scaling = scaling.get("full_attention", scaling)
    sizes["rope.freq_base"] = scaling.get("rope_theta", c["rope_theta"])
    if "alpha" in scaling:
        sizes["rope.freq_base"] *= scaling["alpha"] ** (c["head_dim"] / (c["head_dim"] - 2))
    if "llama_4_scaling_beta" in scaling:
        sizes |= {
            "attention.temperature_scale": scaling["llama_4_scaling_beta"],
            "rope.scaling.yarn_log_multiplier": 0.1 if arch == "mistral4" else 1.0,  # which has a unit of its own
        }
    if "mscale_all_dim" in scaling and arch == "deepseek2":
        sizes["rope.scaling.yarn_log_multiplier"] = 0.1 * scaling["mscale_all_dim"]
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in ("linear", "yarn"):
        sizes |= {"rope.scaling.type": kind, "rope.scaling.factor": scaling["factor"]}
    if kind == "yarn":
        sizes["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
    if scaling.get("rope_type") == "longrope":
        original = c["original_max_position_embeddings"]
        factor = (1 + math.log(c["max_position_embeddings"] / original) / math.log(original)) ** 0.5
        sizes |= {"rope.scaling.original_context_length": original, "rope.scaling.attn_factor": factor}
    return {
        "general.architecture": arch,
        **{f"{arch}.{key}": value for key, value in sizes.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3 if token in ("<s>", "</s>") else 1 for token in TOKENS],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": c["bos_token_id"],
        "tokenizer.ggml.eos_token_id": c["eos_token_id"],
    }


def gguf_weights(spec: TinyModel) -> dict[str, FloatArray]:
    """All tensors by their GGUF names, float32: q and k permuted for Llama, norms 1 + w for Gemma."""
    held = weights(spec)
    if spec.architecture in HYBRIDS or spec.config["model_type"] in tiny_mamba.MODELS:
        return _hybrid_weights(spec, held)
    out = {_gguf_name(spec, name): _gguf_values(spec, name, held[name]) for name in held if not _is_apart(spec, name)}
    out |= _gpt_oss_experts(held) if spec.architecture == "gpt-oss" else tiny_mixtures.stacked(spec.config, held)
    out |= _head_norms(held)
    for name in held:
        if name.endswith(tiny_mistral4.SPLIT):
            out |= tiny_mistral4.split(spec.config, name, held[name])
    if spec.architecture == "gemma3n":
        out |= tiny_gemma3n.stacked(spec.config, held)
    if spec.architecture == "gemma4":
        out["rope_freqs.weight"] = tiny_gemma4.rope_factors(spec.config)
    scaling = spec.config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "llama3":
        out["rope_freqs.weight"] = _llama3_factors(spec)
    if scaling.get("rope_type") == "longrope":
        out |= {f"rope_factors_{way}.weight": np.array(scaling[f"{way}_factor"], "<f4") for way in ("long", "short")}
    return out


def _is_apart(spec: TinyModel, name: str) -> bool:
    """Whether a GGUF file stacks or divides it."""
    if spec.architecture == "gemma3n" and tiny_gemma3n.is_stacked(name):
        return True
    if ".norms." in name or tiny_mixtures.is_divided(name) or name.endswith(tiny_mistral4.SPLIT):
        return True
    return tiny_mixtures.is_expert(name) or (spec.architecture == "gpt-oss" and ".experts." in name)


def _hybrid_weights(spec: TinyModel, held: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    out: dict[str, FloatArray] = {}
    family = tiny_hybrid if spec.architecture in HYBRIDS else tiny_mamba
    for name, values in held.items():
        if ".layers." not in name:
            added = family is tiny_hybrid and name.endswith("norm.weight")
            times = np.float32(tiny_mamba.outer_multiplier(spec.config, name))
            out[_gguf_name(spec, name)] = values + 1 if added else values * times
            continue
        _, _, layer, part = name.split(".", 3)
        for found, changed in family.gguf_tensors(spec.config, part, values).items():
            stem, _, suffix = found.rpartition(".")
            out[f"blk.{layer}.{HF_TO_GGUF.get(stem, stem)}.{suffix}" if stem else f"blk.{layer}.{found}"] = changed
    return out


def _head_norms(held: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """StableLM's: those of all heads as one."""
    stacks: dict[str, list[FloatArray]] = {}
    for name, values in held.items():
        if ".norms." in name:
            _, _, layer, _, part, *_ = name.split(".")
            stacks.setdefault(f"blk.{layer}.attn_{part[0]}_norm.weight", []).append(values)
    return {name: np.stack(vectors) for name, vectors in stacks.items()}


def _gpt_oss_experts(held: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """The matrices upright, gates apart from ups."""
    out: dict[str, FloatArray] = {}
    for name, values in held.items():
        if ".experts." in name:
            _, _, layer, _, _, part = name.split(".")
            suffix = "bias" if part.endswith("_bias") else "weight"
            upright = values if suffix == "bias" else values.swapaxes(1, 2)
            pieces = {"gate": upright[:, ::2], "up": upright[:, 1::2]} if "gate_up" in part else {"down": upright}
            out |= {f"blk.{layer}.ffn_{role}_exps.{suffix}": np.ascontiguousarray(v) for role, v in pieces.items()}
    return out


def _gguf_name(spec: TinyModel, name: str) -> str:
    if spec.architecture == "gemma4" and (special := tiny_gemma4.gguf_name(name)):
        return special
    if spec.architecture == "gemma3n" and (special := tiny_gemma3n.gguf_name(name)):
        return special
    if name.endswith(".self_attn.sinks"):
        return f"blk.{name.split('.')[2]}.attn_sinks.weight"
    stem, suffix = name.rsplit(".", 1)
    if suffix in tiny_mixtures.CORRECTIONS:
        return f"blk.{name.split('.')[2]}.exp_probs_b.bias"
    table = HF_TO_GGUF_POST_NORMS if spec.architecture in POST_NORMS else HF_TO_GGUF
    if spec.architecture in ("gpt-oss", "glm4moe"):
        table = table | {"post_attention_layernorm": "post_attention_norm"}
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{table[part]}.{suffix}"
    return f"{table[stem]}.{suffix}"


def _gguf_values(spec: TinyModel, name: str, values: FloatArray) -> FloatArray:
    if name.endswith("shared_expert_gate.weight"):
        return values[0]
    if spec.architecture in GEMMAS and name.endswith("norm.weight"):
        return values + 1
    if name.endswith("conv.conv.weight"):
        return values[:, 0]
    if spec.architecture in INTERLEAVED and ("q_proj" in name or "k_proj" in name):
        heads = spec.config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
        return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    return values


def _llama3_factors(spec: TinyModel) -> FloatArray:
    """What the converter writes: how much slower each pair turns, after Meta's code."""
    s, d = spec.config["rope_scaling"], spec.config["head_dim"]
    wavelengths = 2 * np.pi * spec.config["rope_theta"] ** (np.arange(0, d, 2) / d)
    long, short = (s["original_max_position_embeddings"] / s[f"{end}_freq_factor"] for end in ("low", "high"))
    smooth = (s["original_max_position_embeddings"] / wavelengths - s["low_freq_factor"]) / (
        s["high_freq_factor"] - s["low_freq_factor"]
    )
    blended = 1 / ((1 - smooth) / s["factor"] + smooth)
    return np.where(wavelengths < short, 1, np.where(wavelengths > long, s["factor"], blended)).astype(np.float32)


# In memory


@dataclass(frozen=True)
class MemoryCheckpoint:
    """What models read of a `pagoda.formats.checkpoint.Checkpoint`."""

    kind: str
    architecture: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, RawTensor]


def memory_checkpoint(spec: TinyModel, *, kind: str = "safetensors") -> MemoryCheckpoint:
    """The model without a file, float32; kind "gguf" has GGUF's names, metadata and permutation."""
    values = gguf_weights(spec) if kind == "gguf" else folder_weights(spec)
    metadata = gguf_metadata(spec) if kind == "gguf" else hf_config(spec)
    architecture = spec.architecture if kind == "gguf" else spec.config["model_type"].removesuffix("_text")
    return MemoryCheckpoint(kind, architecture, metadata, {name: raw(name, v) for name, v in values.items()})


def changed_checkpoint(spec: TinyModel, kind: str, **metadata: Any) -> MemoryCheckpoint:
    """With other metadata, without those that are None; of GGUF without the architecture, "__" standing for a dot."""
    checkpoint = memory_checkpoint(spec, kind=kind)
    prefix = f"{spec.architecture}." if kind == "gguf" else ""
    given = {f"{prefix}{key.replace('__', '.') if prefix else key}": value for key, value in metadata.items()}
    kept = {key: value for key, value in {**checkpoint.metadata, **given}.items() if value is not None}
    return replace(checkpoint, metadata=kept)


def raw(name: str, values: FloatArray) -> RawTensor:
    return RawTensor(name, "F32", values.shape, np.ascontiguousarray(values).view(np.uint8).reshape(-1))
