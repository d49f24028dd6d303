"""Mixtral: Mistral with a mixture of experts in each layer. GGUF calls it a Llama."""

from __future__ import annotations

from pagoda.models import mistral
from pagoda.models.family import Family
from pagoda.models.names import TENSORS
from pagoda.text.builtin_templates import LLAMA2

_LAYER = "model.layers.{i}.block_sparse_moe"

FAMILY = Family(
    name="mixtral",
    gguf="llama",
    gguf_key="expert_count",
    hf_class="MixtralForCausalLM",
    build=mistral.build,
    usual_context=131_072,
    tensors=TENSORS
    | {
        "ffn_router": ("blk.{i}.ffn_gate_inp", f"{_LAYER}.gate"),
        "ffn_gate_exps": ("blk.{i}.ffn_gate_exps", f"{_LAYER}.experts.{{e}}.w1"),
        "ffn_up_exps": ("blk.{i}.ffn_up_exps", f"{_LAYER}.experts.{{e}}.w3"),
        "ffn_down_exps": ("blk.{i}.ffn_down_exps", f"{_LAYER}.experts.{{e}}.w2"),
    },
    defaults={"num_local_experts": 8, "num_experts_per_tok": 2, "rope_theta": 1_000_000.0},
    interleaved=True,
    chat_template=LLAMA2,
    compared=("llama.cpp 0.3.36: greedy tokens",),
)
