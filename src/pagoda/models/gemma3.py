"""Gemma 3, text: Gemma 2 with five sliding-window layers to each global one, which have rotary embeddings of their own,
and with norms of heads instead of the soft cap of scores.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

from pagoda.errors import UnsupportedError
from pagoda.models import gemma2
from pagoda.models.family import SENSES, Family, ModelFile
from pagoda.models.layers import Decoder
from pagoda.models.names import TENSORS
from pagoda.models.reader import LayerKind, Sizes, read_sizes, read_window, sliding_layers
from pagoda.models.rope import read_local_rope, read_rope
from pagoda.models.source import Checkpoint

LAYERS_27B = 62
LOCAL_THETA = 10_000.0  # of sliding-window layers


def build(file: ModelFile) -> Decoder:
    _refuse(file)
    sizes = read_sizes(file)
    kinds = _layer_kinds(file, sizes)
    return gemma2.reader(file, sizes, LAYERS_27B).decoder(kinds, embedding_scale=sqrt(sizes.hidden_size))


def _refuse(file: ModelFile) -> None:
    if file.settings.get("use_bidirectional_attention"):
        raise UnsupportedError("use_bidirectional_attention: embedding models are not supported")


def _layer_kinds(file: ModelFile, sizes: Sizes) -> list[LayerKind]:
    full = LayerKind(read_rope(file, sizes.head_dim))
    if file.is_gguf and not file.has_field("window"):
        return [full] * sizes.num_layers
    local = LayerKind(
        read_local_rope(file, sizes.head_dim, "rope_local_base_freq", LOCAL_THETA), read_window(file, sizes.max_context)
    )
    return [local if sliding else full for sliding in sliding_layers(file, sizes.num_layers)]


def _extra_config(checkpoint: Checkpoint, decoder: Decoder) -> dict[str, Any]:
    local = float(checkpoint.metadata.get("gemma3.rope.freq_base_swa", LOCAL_THETA))
    return {**gemma2.extra_config(checkpoint, decoder), "rope_local_base_freq": local}


FAMILY = Family(
    name="gemma3",
    gguf="gemma3",
    hf_class="Gemma3ForCausalLM",
    model_type="gemma3_text",
    build=build,
    usual_context=131_072,
    tensors=TENSORS | gemma2.POST_NORMS,
    defaults={
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "rope_theta": 1_000_000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    norm_offset=1.0,
    extra_config=_extra_config,
    left_out=SENSES,
    qk_norm=True,
    post_norms=True,
    window_pattern=6,
    rope_tables=2,
)
