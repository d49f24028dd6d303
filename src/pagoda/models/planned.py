"""Families that Pagoda plans for but does not serve: their shapes, without a forward pass.

Where a family's config.json has words of its own, `adapt_config` says the same in Llama's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pagoda.models.family import Family
from pagoda.models.source import Settings

Config = Mapping[str, Any]


def _llama4(config: Config) -> Config:
    """Experts in every so manieth layer beside a shared one, a wider feed-forward in the others; layers without rotary
    embedding see everything, the others their chunk."""
    rotary = config.get("no_rope_layers")  # 1: has it, for all that it is called
    types = (
        ["chunked_attention" if turned else "full_attention" for turned in rotary] if isinstance(rotary, list) else []
    )
    return {
        "layer_types": types or None,
        "sliding_window_pattern": config.get("no_rope_layer_interval"),
        "decoder_sparse_step": config.get("interleave_moe_layer_step"),
        "n_shared_experts": 1,
        **config,
        "moe_intermediate_size": config.get("intermediate_size"),
        "intermediate_size": config.get("intermediate_size_mlp"),
    }


def _gpt2(config: Config) -> Config:
    width = config.get("n_embd")
    return {
        "hidden_size": width,
        "num_hidden_layers": config.get("n_layer"),
        "num_attention_heads": config.get("n_head"),
        "max_position_embeddings": config.get("n_positions"),
        "intermediate_size": config.get("n_inner") or (4 * width if isinstance(width, int) else None),
        "mlp_bias": True,
        **config,
    }


def _nemotron_nas(config: Config) -> Config:
    """Blocks found by search: each has its own KV heads and feed-forward, or none, or one matrix instead."""
    blocks = config.get("block_configs")
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        return config
    if not isinstance(heads, int) or not isinstance(width, int) or heads < 1:
        return config
    attention = [Settings(block).section("attention") or Settings({}) for block in blocks]
    ffn = [Settings(block).section("ffn") or Settings({}) for block in blocks]
    group = [0 if a.flag("no_op") else a.integer("n_heads_in_group", 0, low=0, high=heads) for a in attention]
    return {
        **config,
        "num_attention_heads": [
            heads if each or a.flag("replace_with_linear") else 0 for each, a in zip(group, attention, strict=True)
        ],
        "num_key_value_heads": [heads // each if each else 0 for each in group],
        "intermediate_size": [
            0 if f.flag("no_op") or f.get("ffn_mult") is None else _nas_width(f.number("ffn_mult"), width) for f in ffn
        ],
        "head_dim": width // heads,
    }


def _nemotron_nas_tensors(settings: Settings) -> Iterator[tuple[str, tuple[int, ...]]]:
    """One matrix instead of a feed-forward."""
    width = settings.integer("hidden_size", high=1 << 24)
    for layer, block in enumerate(
        settings.sequence("block_configs", settings.integer("num_hidden_layers", high=1 << 12))
    ):
        ffn = Settings(block).section("ffn")
        if ffn is not None and ffn.flag("replace_with_linear"):
            yield f"blk.{layer}.ffn_linear.weight", (width, width)


def _nas_width(multiplier: float, width: int) -> int:
    """Two thirds of a plain feed-forward's width, up to a multiple of 256."""
    return -(-int(2 * multiplier * width / 3) // 256) * 256


TIED = {"tie_word_embeddings": True}

PLANNED: tuple[Family, ...] = (
    Family(
        name="phimoe",
        gguf="phimoe",
        hf_class="PhimoeForCausalLM",
        qkv_bias=True,
        output_bias=True,
        norm_bias=True,
        head_bias=True,
    ),
    Family(
        name="llama4",
        gguf="llama4",
        hf_class="Llama4ForCausalLM",
        defaults={
            "attention_chunk_size": 8192,
            "intermediate_size_mlp": 16_384,
            "num_local_experts": 16,
            "num_experts_per_tok": 1,
        },
        adapt_config=_llama4,
        window_pattern=4,
    ),
    Family(
        name="gpt2",
        gguf="gpt2",
        hf_class="GPT2LMHeadModel",
        defaults=TIED,
        adapt_config=_gpt2,
        fused=True,
        qkv_bias=True,
        output_bias=True,
        norm_bias=True,
        gated_ffn=False,
        learned_positions=True,
        windows=False,
    ),
    Family(
        name="nemotron-nas",
        gguf="deci",
        hf_class="DeciLMForCausalLM",
        adapt_config=_nemotron_nas,
        extra_tensors=_nemotron_nas_tensors,
        windows=False,
    ),
)
