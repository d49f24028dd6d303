"""What files call things: our names on the left, then GGUF's and Hugging Face's.

Families state their differences from these tables (`TENSORS | {...}`); adding a spelling is a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

Spellings = Mapping[str, tuple[str, str]]  # role → GGUF's name and Hugging Face's, as in TENSORS
GGUF, HUGGING_FACE = 0, 1  # columns of the tables

# Sizes and settings: GGUF keys stand after "<architecture>.", Hugging Face keys are those of config.json.
FIELDS: dict[str, tuple[str, str]] = {
    "num_layers": ("block_count", "num_hidden_layers"),
    "hidden_size": ("embedding_length", "hidden_size"),
    "ffn_size": ("feed_forward_length", "intermediate_size"),
    "num_heads": ("attention.head_count", "num_attention_heads"),
    "num_kv_heads": ("attention.head_count_kv", "num_key_value_heads"),
    "head_dims": ("", "head_dims"),  # layer by layer
    "head_dim": ("attention.key_length", "head_dim"),
    "max_context": ("context_length", "max_position_embeddings"),
    "layer_norm_eps": ("attention.layer_norm_epsilon", "layer_norm_eps"),
    "norm_eps": ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    "window": ("attention.sliding_window", "sliding_window"),
    "window_pattern": ("attention.sliding_window_pattern", "sliding_window_pattern"),
    "kv_shared": ("attention.shared_kv_layers", "num_kv_shared_layers"),
    "inputs_size": ("embedding_length_per_layer_input", "hidden_size_per_layer_input"),
    "streams": ("altup.num_inputs", "altup_num_inputs"),
    "active_stream": ("altup.active_idx", "altup_active_idx"),
    "num_experts_used": ("expert_used_count", "num_experts_per_tok"),
    "logit_scale": ("logit_scale", "logit_scale"),
    "logit_softcap": ("final_logit_softcapping", "final_logit_softcapping"),
    "attention_softcap": ("attn_logit_softcapping", "attn_logit_softcapping"),
}

# Tensors, without ".weight" and ".bias"; {i} is the layer, {e} the expert where each has a tensor of its own. GGUF
# stacks the matrices of all experts of a layer.
TENSORS: dict[str, tuple[str, str]] = {
    "embedding": ("token_embd", "model.embed_tokens"),
    "output_norm": ("output_norm", "model.norm"),
    "output": ("output", "lm_head"),
    "attn_norm": ("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm"),
    "attn_q": ("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj"),
    "attn_k": ("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj"),
    "attn_v": ("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
    "attn_qkv": ("blk.{i}.attn_qkv", "model.layers.{i}.self_attn.qkv_proj"),  # instead of the three
    "attn_output": ("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
    "attn_q_norm": ("blk.{i}.attn_q_norm", "model.layers.{i}.self_attn.q_norm"),
    "attn_k_norm": ("blk.{i}.attn_k_norm", "model.layers.{i}.self_attn.k_norm"),
    "ffn_norm": ("blk.{i}.ffn_norm", "model.layers.{i}.post_attention_layernorm"),
    "ffn_gate": ("blk.{i}.ffn_gate", "model.layers.{i}.mlp.gate_proj"),
    "ffn_up": ("blk.{i}.ffn_up", "model.layers.{i}.mlp.up_proj"),
    "ffn_down": ("blk.{i}.ffn_down", "model.layers.{i}.mlp.down_proj"),
    "ffn_router": ("blk.{i}.ffn_gate_inp", "model.layers.{i}.mlp.gate"),
    "ffn_gate_exps": ("blk.{i}.ffn_gate_exps", "model.layers.{i}.mlp.experts.{e}.gate_proj"),
    "ffn_up_exps": ("blk.{i}.ffn_up_exps", "model.layers.{i}.mlp.experts.{e}.up_proj"),
    "ffn_down_exps": ("blk.{i}.ffn_down_exps", "model.layers.{i}.mlp.experts.{e}.down_proj"),
    "ffn_gate_up_exps": ("blk.{i}.ffn_gate_up_exps", "model.layers.{i}.mlp.experts.gate_up_proj"),  # instead of the two
    "ffn_down_stack": ("", "model.layers.{i}.mlp.experts.down_proj"),  # beside it in Hugging Face folders
    "rope_factors": ("rope_freqs", ""),  # Llama 3's scaling, a number a rotary pair
    "rope_factors_long": ("rope_factors_long", ""),  # longrope's, beyond the original context
    "rope_factors_short": ("rope_factors_short", ""),  # and within
}

# Tensors that hold nothing which is not computed from the settings; old checkpoints save them.
REDUNDANT_SUFFIXES = ("rotary_emb.inv_freq",)


@dataclass(frozen=True, slots=True)
class Named:
    """A tensor of a file: its role in `TENSORS`, and its name there and in the other kind of file.

    Where only the other kind has a tensor an expert, `other` holds `{e}`; where only this one, `expert` is its number.
    """

    role: str
    name: str
    other: str
    expert: int | None = None


def translate(names: Iterable[str], spellings: Spellings, column: int) -> Iterator[Named]:
    """Those of a file's tensor names that have one in the other kind of file; `column` is the file's own."""
    patterns = [(role, _pattern(pair[column]), pair[1 - column]) for role, pair in spellings.items() if all(pair)]
    for name in names:
        for role, pattern, other in patterns:
            if match := pattern.fullmatch(name):
                found = {"e": "{e}", **match.groupdict()}
                expert = int(found["e"]) if found["e"].isdecimal() else None
                yield Named(role, name, f"{other}.{{suffix}}".format(**found), expert)
                break


def _pattern(spelling: str) -> re.Pattern[str]:
    numbered = re.sub(r"\\\{([ie])\\\}", r"(?P<\1>\\d+)", re.escape(spelling))
    return re.compile(rf"{numbered}\.(?P<suffix>weight|bias)")
