"""Mistral Small 4, text: latent attention (`latent.py`), with a mixture of experts beside a shared one. YaRN, and
queries that grow with their position, as in Ministral 3.
"""

from __future__ import annotations

from typing import Any

from pagoda.models.experts import shared_expert
from pagoda.models.family import SENSES, Family
from pagoda.models.latent import LATENT_TENSORS, build_latent
from pagoda.models.names import TENSORS
from pagoda.models.source import Settings
from pagoda.text.builtin_templates import LLAMA2


def _config(config: Any) -> Any:
    """The turned share of a head stands for itself in other keys."""
    rope = Settings(config).section("rope_parameters")
    if rope is None:
        return config
    return {**config, "rope_parameters": {**config["rope_parameters"], "partial_rotary_factor": None}}


FAMILY = Family(
    name="mistral4",
    gguf="mistral4",
    hf_class="Mistral4ForCausalLM",
    build=build_latent,
    not_covered="conversion; training",
    usual_context=1_048_576,
    tensors=TENSORS | LATENT_TENSORS | shared_expert("mlp.shared_experts"),
    adapt_config=_config,
    defaults={
        "num_attention_heads": 32,
        "kv_lora_rank": 256,
        "q_lora_rank": 1024,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 64,
        "v_head_dim": 128,
        "intermediate_size": 12_288,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 128,
        "num_experts_per_tok": 4,
        "n_shared_experts": 1,
        "topk_group": 1,
    },
    gguf_norm_topk=False,
    is_converted=False,
    is_trained=False,
    left_out=SENSES,
    adjacent_pairs=True,
    chat_template=LLAMA2,
    windows=False,
)
