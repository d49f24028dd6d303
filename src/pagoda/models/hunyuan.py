"""Hunyuan, dense: Llama with norms of each query and key head, after they are turned. Its rotary embedding is stretched
by a fixed `alpha`, which GGUF files hold as a larger theta.
"""

from __future__ import annotations

from pagoda.models import llama
from pagoda.models.family import Family
from pagoda.models.names import TENSORS

FAMILY = Family(
    name="hunyuan_v1_dense",
    gguf="hunyuan-dense",
    hf_class="HunYuanDenseV1ForCausalLM",
    build=llama.build,
    compared=("llama.cpp 0.3.36: greedy tokens",),
    tensors=TENSORS
    | {
        "attn_q_norm": ("blk.{i}.attn_q_norm", "model.layers.{i}.self_attn.query_layernorm"),
        "attn_k_norm": ("blk.{i}.attn_k_norm", "model.layers.{i}.self_attn.key_layernorm"),
    },
    defaults={"rms_norm_eps": 1e-5},
    qk_norm=True,
    norms_last=True,
    windows=False,
)
