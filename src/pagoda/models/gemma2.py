"""Gemma 2, and the parts that Gemmas share: norms that multiply by 1 + w, which GGUF files hold as that sum; GeGLU;
embeddings times sqrt(E). Gemma 2 alternates sliding and global layers, norms after each part too, and caps its scores
and logits softly. The first Gemma has neither: it is a row here.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

from pagoda.models.family import Family, ModelFile
from pagoda.models.layers import Decoder
from pagoda.models.names import TENSORS
from pagoda.models.reader import (
    DecoderReader,
    LayerKind,
    Sizes,
    read_activation,
    read_sizes,
    read_window,
    sliding_layers,
)
from pagoda.models.rope import read_rope
from pagoda.models.source import Checkpoint

POST_NORMS = {
    "attn_post_norm": ("blk.{i}.post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
    "ffn_norm": ("blk.{i}.ffn_norm", "model.layers.{i}.pre_feedforward_layernorm"),
    "ffn_post_norm": ("blk.{i}.post_ffw_norm", "model.layers.{i}.post_feedforward_layernorm"),
}
LAYERS_27B = 46


def build(file: ModelFile) -> Decoder:
    sizes = read_sizes(file)
    full = LayerKind(read_rope(file, sizes.head_dim))
    kinds = [full] * sizes.num_layers
    if file.family.windows:
        local = LayerKind(full.rope, read_window(file, sizes.max_context))
        kinds = [local if sliding else full for sliding in sliding_layers(file, sizes.num_layers)]
    return reader(file, sizes, LAYERS_27B).decoder(kinds, embedding_scale=sqrt(sizes.hidden_size))


def reader(file: ModelFile, sizes: Sizes, layers_27b: int) -> DecoderReader:
    """Attention is scaled by 1 / sqrt(query_pre_attn_scalar). GGUF does not hold it: it is the head size, but in 27B
    models, told by their number of layers, the hidden size over the heads."""
    if file.is_gguf:
        wide = sizes.num_layers == layers_27b
        scalar = sizes.hidden_size / sizes.num_heads if wide else float(sizes.head_dim)
    else:
        scalar = file.settings.number("query_pre_attn_scalar", float(sizes.head_dim), low=1e-3)
    activation = read_activation(file, "hidden_activation", "gelu_tanh")
    return DecoderReader(file, sizes, activation=activation, attention_scale=1 / sqrt(scalar))


def extra_config(checkpoint: Checkpoint, decoder: Decoder) -> dict[str, Any]:
    spec = decoder.attention.spec
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(spec.scale**-2),
        "final_logit_softcapping": decoder.logit_softcap,
        "attn_logit_softcapping": spec.softcap,
    }


FAMILY = Family(
    name="gemma2",
    gguf="gemma2",
    hf_class="Gemma2ForCausalLM",
    build=build,
    tensors=TENSORS | POST_NORMS,
    defaults={
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    gguf_defaults={
        "attention.sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    usual_context=8192,
    norm_offset=1.0,
    extra_config=extra_config,
    post_norms=True,
    window_pattern=2,
    compared=("llama.cpp 0.3.36: greedy tokens",),
)

FIRST = Family(
    name="gemma",
    gguf="gemma",
    hf_class="GemmaForCausalLM",
    build=build,
    defaults={"head_dim": 256, "tie_word_embeddings": True},
    usual_context=8192,
    norm_offset=1.0,
    windows=False,
    compared=("llama.cpp 0.3.36: greedy tokens",),
)
