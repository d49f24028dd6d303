"""Families that Pagoda plans for but does not serve: their shapes, without a forward pass."""

from __future__ import annotations

from pagoda.models.family import Family

PLANNED: tuple[Family, ...] = (
    Family(
        name="gemma2",
        gguf="gemma2",
        hf_class="Gemma2ForCausalLM",
        defaults={"tie_word_embeddings": True},
        post_norms=True,
        window_pattern=2,
    ),
    Family(
        name="qwen2_moe",
        gguf="qwen2moe",
        hf_class="Qwen2MoeForCausalLM",
        defaults={"num_experts": 60, "num_experts_per_tok": 4},
        qkv_bias=True,
        windows=False,
    ),
    Family(
        name="phimoe",
        gguf="phimoe",
        hf_class="PhimoeForCausalLM",
        qkv_bias=True,
        output_bias=True,
        norm_bias=True,
        head_bias=True,
    ),
    Family(name="deepseek_v2", gguf="deepseek2", hf_class="DeepseekV2ForCausalLM"),
    Family(name="deepseek_v3", gguf="deepseek2", hf_class="DeepseekV3ForCausalLM"),
    Family(
        name="smollm3",
        gguf="smollm3",
        hf_class="SmolLM3ForCausalLM",
        defaults={"tie_word_embeddings": True},
        windows=False,
    ),
    Family(
        name="granite",
        gguf="granite",
        hf_class="GraniteForCausalLM",
        defaults={"tie_word_embeddings": True},
        windows=False,
    ),
    Family(
        name="cohere2",
        gguf="cohere2",
        hf_class="Cohere2ForCausalLM",
        defaults={"tie_word_embeddings": True},
        window_pattern=4,
    ),
    Family(name="gpt_oss", gguf="gpt-oss", hf_class="GptOssForCausalLM", window_pattern=2),
    Family(name="llama4", gguf="llama4", hf_class="Llama4ForCausalLM", window_pattern=4),
    Family(
        name="gemma3n",
        gguf="gemma3n",
        hf_class="Gemma3nForCausalLM",
        defaults={"tie_word_embeddings": True},
        post_norms=True,
        qk_norm=True,
        window_pattern=5,
    ),
)
