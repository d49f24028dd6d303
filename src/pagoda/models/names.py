"""What files call things: our names on the left, then GGUF's and Hugging Face's.

Families state their differences from these tables (`TENSORS | {...}`); adding a spelling is a row.
"""

from __future__ import annotations

# Sizes and settings: GGUF keys stand after "<architecture>.", Hugging Face keys are those of config.json.
FIELDS: dict[str, tuple[str, str]] = {
    "num_layers": ("block_count", "num_hidden_layers"),
    "hidden_size": ("embedding_length", "hidden_size"),
    "ffn_size": ("feed_forward_length", "intermediate_size"),
    "num_heads": ("attention.head_count", "num_attention_heads"),
    "num_kv_heads": ("attention.head_count_kv", "num_key_value_heads"),
    "head_dim": ("attention.key_length", "head_dim"),
    "max_context": ("context_length", "max_position_embeddings"),
    "norm_eps": ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    "window": ("attention.sliding_window", "sliding_window"),
    "window_pattern": ("attention.sliding_window_pattern", "sliding_window_pattern"),
    "logit_softcap": ("final_logit_softcapping", "final_logit_softcapping"),
    "attention_softcap": ("attn_logit_softcapping", "attn_logit_softcapping"),
}

# Tensors, without ".weight" and ".bias"; {i} is the layer.
TENSORS: dict[str, tuple[str, str]] = {
    "embedding": ("token_embd", "model.embed_tokens"),
    "output_norm": ("output_norm", "model.norm"),
    "output": ("output", "lm_head"),
    "attn_norm": ("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm"),
    "attn_q": ("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj"),
    "attn_k": ("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj"),
    "attn_v": ("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
    "attn_output": ("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
    "attn_q_norm": ("blk.{i}.attn_q_norm", "model.layers.{i}.self_attn.q_norm"),
    "attn_k_norm": ("blk.{i}.attn_k_norm", "model.layers.{i}.self_attn.k_norm"),
    "ffn_norm": ("blk.{i}.ffn_norm", "model.layers.{i}.post_attention_layernorm"),
    "ffn_gate": ("blk.{i}.ffn_gate", "model.layers.{i}.mlp.gate_proj"),
    "ffn_up": ("blk.{i}.ffn_up", "model.layers.{i}.mlp.up_proj"),
    "ffn_down": ("blk.{i}.ffn_down", "model.layers.{i}.mlp.down_proj"),
    "rope_factors": ("rope_freqs", ""),  # Llama 3's scaling, a number a rotary pair
}

# Tensors that hold nothing which is not computed from the settings; old checkpoints save them.
REDUNDANT_SUFFIXES = ("rotary_emb.inv_freq",)
