"""Phi-3, Phi-3.5 and Phi-4, also mini: Mistral with q, k and v in one matrix, gate and up in another; rotary embeddings
that may turn a part of each head only, stretched by longrope.

GGUF files hold the rows as Hugging Face's do, and longrope's factors as two tensors.
"""

from __future__ import annotations

from pagoda.models import mistral
from pagoda.models.family import Family
from pagoda.models.names import TENSORS
from pagoda.text.builtin_templates import PHI3

FAMILY = Family(
    name="phi3",
    gguf="phi3",
    hf_class="Phi3ForCausalLM",
    build=mistral.build,
    usual_context=4096,
    tensors=TENSORS | {"ffn_up": ("blk.{i}.ffn_up", "model.layers.{i}.mlp.gate_up_proj")},
    defaults={"original_max_position_embeddings": 4096},
    chat_template=PHI3,
    fused=True,
    partial_rotary=True,
    compared=("llama.cpp 0.3.36: greedy tokens",),
)
