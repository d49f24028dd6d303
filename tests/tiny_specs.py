"""What the tiny models of every family are: their config.json; `tiny_models.py` makes files of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import tiny_gemma3n
import tiny_gemma4
import tiny_hybrid
import tiny_lfm2
import tiny_mamba
import tiny_mistral4
import tiny_mixtures
from tiny_tokenizer import TOKENS

VOCAB = len(TOKENS)


@dataclass(frozen=True)
class TinyModel:
    """A config.json; `architecture` is what GGUF calls it."""

    architecture: str
    config: Mapping[str, Any] = field(default_factory=dict)

    def with_config(self, **changes: Any) -> TinyModel:
        return replace(self, config={**self.config, **changes})


BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE_SCALING = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.5, 1.8, 2.0],
    "long_factor": [1.0, 1.5, 2.5, 4.0, 6.0, 8.0],
}
PHI4 = {
    "partial_rotary_factor": 0.75,
    "rope_scaling": LONGROPE_SCALING,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
YARN_SCALING = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
GEMMA = {
    "num_key_value_heads": 1,
    "head_dim": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
MINISTRAL_ROPE = {
    **YARN_SCALING,
    "factor": 2.0,
    "original_max_position_embeddings": 24,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
    "rope_theta": 10_000.0,
}
HUNYUAN_ROPE = {"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0, "rope_theta": 10_000.0}
OLMO3_ROPE = {
    "full_attention": {**YARN_SCALING, "rope_theta": 20_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
}
OLMO3 = {"num_hidden_layers": 5, "rope_parameters": OLMO3_ROPE, "sliding_window": 20}
NO_DROPOUT = {"attention_dropout": 0.0, "residual_dropout": 0.0}  # else transformers drops some while it trains
COHERE = {"layer_norm_eps": 1e-5, "logit_scale": 0.5, "tie_word_embeddings": True, "pad_token_id": 0}
STABLELM = {"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25, "num_key_value_heads": 4}
EXPERTS = {"num_local_experts": 6, "num_experts_per_tok": 2}
GLM_MOE = {
    "num_hidden_layers": 3,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
    "partial_rotary_factor": 0.5,
    "num_nextn_predict_layers": 0,
    "pad_token_id": 0,
}


QWEN2_MOE = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 64,
    "decoder_sparse_step": 1,
}
QWEN3_VL_ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
QWEN3_VL_MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 96}


def _tiny(architecture: str, model_type: str | None = None, **config: Any) -> TinyModel:
    return TinyModel(architecture, {**BASE, "model_type": model_type or architecture, **config})


TINY: dict[str, TinyModel] = {
    "llama": _tiny("llama"),
    "llama3": _tiny("llama", rope_scaling=LLAMA3_SCALING, tie_word_embeddings=True),
    "llama_biased": _tiny("llama", attention_bias=True, mlp_bias=True),
    "mistral": _tiny("llama", "mistral", sliding_window=20),
    "qwen2": _tiny("qwen2"),
    "mimo": _tiny("qwen2", "mimo", attention_bias=True),
    "qwen2_windowed": _tiny("qwen2", use_sliding_window=True, sliding_window=20, max_window_layers=1),
    "qwen3": _tiny("qwen3", head_dim=32, tie_word_embeddings=True),
    "qwen3_yarn": _tiny("qwen3", rope_scaling=YARN_SCALING),
    "gemma3": _tiny(
        "gemma3",
        "gemma3_text",
        num_hidden_layers=7,
        num_key_value_heads=1,
        head_dim=32,
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=32,
        sliding_window=20,
        sliding_window_pattern=6,
        rope_theta=1_000_000.0,
        rope_local_base_freq=10_000.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        tie_word_embeddings=True,
    ),
    "phi3": _tiny("phi3", sliding_window=20, pad_token_id=0),
    "phi3_long": _tiny("phi3", **PHI4, original_max_position_embeddings=64),
    "phi3_short": _tiny("phi3", **PHI4, original_max_position_embeddings=128),  # more than a golden has
    "qwen3moe": _tiny("qwen3moe", "qwen3_moe", **EXPERTS, norm_topk_prob=True, moe_intermediate_size=32),
    "qwen3moe_mixed": _tiny("qwen3moe", "qwen3_moe", **EXPERTS, mlp_only_layers=[1], moe_intermediate_size=32),
    "mixtral": _tiny("llama", "mixtral", **EXPERTS, sliding_window=None),
    "gemma": _tiny("gemma", **GEMMA),
    "gemma2": _tiny(
        "gemma2",
        **GEMMA,
        num_hidden_layers=3,
        query_pre_attn_scalar=32,
        sliding_window=20,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=2.0,
    ),
    "olmo2": _tiny("olmo2", pad_token_id=0),
    "smollm3": _tiny("smollm3", num_hidden_layers=5, pad_token_id=0, tie_word_embeddings=True),
    "granite": _tiny("granite", **tiny_mamba.SCALES),
    "ministral3": _tiny("mistral3", "ministral3", rope_parameters=MINISTRAL_ROPE, pad_token_id=0),
    "mistral4": _tiny("mistral4", **tiny_mistral4.CONFIG, rope_parameters=MINISTRAL_ROPE),
    "deepseek2": _tiny("deepseek2", "deepseek_v2", **tiny_mistral4.LITE),
    "deepseek3": _tiny("deepseek2", "deepseek_v3", **tiny_mistral4.DEEPSEEK),
    "deepseek2_groups": _tiny(
        "deepseek2",
        "deepseek_v2",
        **{**tiny_mistral4.DEEPSEEK, "norm_topk_prob": False, "scoring_func": "softmax", **tiny_mistral4.GROUPS},
        topk_method="group_limited_greedy",
    ),
    "deepseek3_groups": _tiny(
        "deepseek2", "deepseek_v3", **{**tiny_mistral4.DEEPSEEK, **tiny_mistral4.GROUPS}, topk_method="noaux_tc"
    ),
    "glm4lite": _tiny("deepseek2", "glm4_moe_lite", **tiny_mistral4.DEEPSEEK | {"v_head_dim": 64}),
    "olmo3": _tiny(
        "olmo2", "olmo3", num_hidden_layers=5, rope_parameters=OLMO3_ROPE, sliding_window=20, pad_token_id=0
    ),
    "glm4": _tiny("glm4", partial_rotary_factor=0.5, attention_bias=True, pad_token_id=0),
    "seed_oss": _tiny("seed_oss", attention_bias=True, head_dim=32, pad_token_id=0, **NO_DROPOUT),
    "hunyuan": _tiny("hunyuan-dense", "hunyuan_v1_dense", rope_scaling=HUNYUAN_ROPE, tie_word_embeddings=True),
    "cohere": _tiny("command-r", "cohere", **COHERE),
    "cohere2": _tiny("cohere2", **COHERE, num_hidden_layers=5, sliding_window=20),
    "stablelm": _tiny("stablelm", **STABLELM, use_qkv_bias=True),
    "stablelm_parallel": _tiny("stablelm", **STABLELM, use_parallel_residual=True),
    "cohere_plus": _tiny("command-r", "cohere", **COHERE, use_qk_norm=True),
    "stablelm_12b": _tiny(
        "stablelm", **STABLELM | {"num_key_value_heads": 2}, use_parallel_residual=True, qk_layernorm=True
    ),
    "glm4moe": _tiny("glm4moe", "glm4_moe", **GLM_MOE, attention_bias=True, use_qk_norm=True),
    "nemotron": _tiny("nemotron", norm_eps=1e-5, partial_rotary_factor=0.5, hidden_act="relu2"),
    "gemma3n": _tiny("gemma3n", "gemma3n_text", **tiny_gemma3n.BASE, vocab_size_per_layer_input=VOCAB - 40),
    "gemma3n_second": _tiny(
        "gemma3n", "gemma3n_text", **tiny_gemma3n.BASE | tiny_gemma3n.SECOND, vocab_size_per_layer_input=VOCAB
    ),
    "gemma3n_deep": _tiny(
        "gemma3n", "gemma3n_text", **tiny_gemma3n.BASE | tiny_gemma3n.DEEP, vocab_size_per_layer_input=VOCAB
    ),
    "gemma4": _tiny("gemma4", "gemma4_text", **tiny_gemma4.BASE | tiny_gemma4.SMALL, vocab_size_per_layer_input=VOCAB),
    "gemma4_dense": _tiny("gemma4", "gemma4_text", **tiny_gemma4.BASE | tiny_gemma4.DENSE),
    "gemma4_experts": _tiny("gemma4", "gemma4_text", **tiny_gemma4.BASE | tiny_gemma4.EXPERTS),
    "qwen35": _tiny("qwen35", "qwen3_5_text", **tiny_hybrid.CONFIG),
    "qwen35moe": _tiny("qwen35moe", "qwen3_5_moe_text", **tiny_hybrid.CONFIG, **tiny_hybrid.MIXTURE),
    "qwen3next": _tiny("qwen3next", "qwen3_next", **tiny_hybrid.CONFIG, **tiny_hybrid.MIXTURE, **tiny_hybrid.NEXT),
    "gpt_oss": _tiny(
        "gpt-oss",
        "gpt_oss",
        **EXPERTS,
        num_hidden_layers=3,
        attention_bias=True,
        sliding_window=20,
        rope_scaling={**YARN_SCALING, "truncate": False},
        pad_token_id=0,
    ),
    "lfm2": _tiny("lfm2", **tiny_lfm2.CONFIG),
    "granite4": _tiny(
        "granitehybrid", "granitemoehybrid", **tiny_mamba.HYBRID | tiny_mamba.EXPERTS | tiny_mamba.SHARED
    ),
    "granite4_dense": _tiny(
        "granitehybrid",
        "granitemoehybrid",
        **tiny_mamba.HYBRID | tiny_mamba.ONE_GROUP | tiny_mamba.DENSE,
    ),
    "granite4_attention": _tiny(
        "granite",
        "granitemoehybrid",
        **tiny_mamba.SCALES | tiny_mamba.DENSE,
        layer_types=["attention"] * 2,
        position_embedding_type="rope",
    ),
    "granitemoe": _tiny("granitemoe", **tiny_mamba.SCALES | tiny_mamba.EXPERTS),
    "granitemoe_shared": _tiny(
        "granitemoe",
        "granitemoeshared",
        **tiny_mamba.SCALES | tiny_mamba.EXPERTS | tiny_mamba.SHARED,
    ),
    "bamba": _tiny("granitehybrid", "bamba", **tiny_mamba.BAMBA),
    "falcon_h1": _tiny("falcon-h1", "falcon_h1", **tiny_mamba.FALCON),
    "falcon_h1_plain": _tiny("falcon-h1", "falcon_h1", **{**tiny_mamba.FALCON, "mamba_rms_norm": False}),
    "nemotron_h": _tiny("nemotron_h", **tiny_mamba.NEMOTRON),
    "lfm2moe": _tiny("lfm2moe", "lfm2_moe", **tiny_lfm2.CONFIG | tiny_lfm2.MIXTURE),
    "qwen2moe": _tiny("qwen2moe", "qwen2_moe", **QWEN2_MOE),
    "qwen2vl": _tiny("qwen2vl", "qwen2_vl_text", rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]}),
    "qwen25vl": _tiny("qwen2vl", "qwen2_5_vl_text", rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]}),
    "qwen3vl": _tiny("qwen3vl", "qwen3_vl_text", head_dim=32, rope_parameters=QWEN3_VL_ROPE),
    "qwen3vlmoe": _tiny("qwen3vlmoe", "qwen3_vl_moe_text", **QWEN3_VL_MOE, head_dim=32, rope_parameters=QWEN3_VL_ROPE),
    # Shapes of real models: SmolLM2-135M's heads and widths; and one whose every matrix k-quants can pack.
    "smollm2": _tiny(
        "llama",
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        tie_word_embeddings=True,
    ),
    "llama_256": _tiny("llama", hidden_size=256, intermediate_size=512, head_dim=64),
    "qwen3_256": _tiny("qwen3", hidden_size=256, intermediate_size=512, head_dim=128),
    "gemma3_256": _tiny(
        "gemma3",
        "gemma3_text",
        num_hidden_layers=6,
        hidden_size=256,
        intermediate_size=512,
        head_dim=64,
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=64,
        sliding_window=20,
        sliding_window_pattern=6,
        tie_word_embeddings=True,
    ),
}


_WITH_STATES = (*tiny_hybrid.HYBRIDS, "lfm2", "lfm2moe", "granitehybrid", "falcon-h1", "nemotron_h")
HYBRIDS = [name for name, spec in TINY.items() if spec.architecture in _WITH_STATES]
MIXTURES = [name for name, spec in TINY.items() if tiny_mixtures.count(spec.config)]
GEMMAS = ("gemma", "gemma2", "gemma3", "nemotron")  # architectures whose norms multiply by 1 + w
LAYER_NORMS = ("command-r", "cohere2", "stablelm", "nemotron")
INTERLEAVED = ("llama", "smollm3", "granite", "mistral3")  # whose q and k are reordered in GGUF
