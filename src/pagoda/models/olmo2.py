"""OLMo 2: a Llama that norms what attention and feed-forward give, not what they read; and queries and keys over all
heads together, before they are turned.
"""

from __future__ import annotations

from pagoda.models import llama
from pagoda.models.family import Family
from pagoda.models.names import TENSORS

FAMILY = Family(
    name="olmo2",
    gguf="olmo2",
    hf_class="Olmo2ForCausalLM",
    build=llama.build,
    tensors={role: names for role, names in TENSORS.items() if role not in ("attn_norm", "ffn_norm")}
    | {
        "attn_post_norm": ("blk.{i}.post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
        "ffn_post_norm": ("blk.{i}.post_ffw_norm", "model.layers.{i}.post_feedforward_layernorm"),
    },
    defaults={"rms_norm_eps": 1e-5},
    pre_norms=False,
    post_norms=True,
    whole_qk_norm=True,
    windows=False,
    compared=("llama.cpp 0.3.36: greedy tokens",),
)
