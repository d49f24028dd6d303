"""Command R, R7B and A, Aya: attention and feed-forward side by side on one layer norm, logits times a constant.

Command R7B and A slide in three layers of four, and do not turn queries and keys in the fourth. Command R+ has a layer
norm of each head of queries and keys, with weights of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pagoda.formats.gguf_writer import Value, f32
from pagoda.models.family import Family, ModelFile
from pagoda.models.layers import Decoder, Norm
from pagoda.models.reader import DecoderReader, LayerKind, read_sizes, read_window, sliding_layers
from pagoda.models.rope import read_rope
from pagoda.models.source import Checkpoint, Settings

LOGIT_SCALE = 0.0625


def build(file: ModelFile) -> Decoder:
    sizes = read_sizes(file)
    turned = LayerKind(read_rope(file, sizes.head_dim), read_window(file, sizes.max_context))
    kinds = [turned] * sizes.num_layers
    if file.family.window_pattern:
        full = LayerKind(None)
        kinds = [turned if sliding else full for sliding in sliding_layers(file, sizes.num_layers)]
    scale = file.optional_number("logit_scale")
    return _Reader(file, sizes).decoder(kinds, logit_scale=LOGIT_SCALE if scale is None else scale)


class _Reader(DecoderReader):
    def qk_norm(self, role: str, layer: int, size: int) -> Norm | None:
        stated = not self.file.is_gguf and self.file.settings.flag("use_qk_norm")
        if not stated and not any(self.file.has_tensor(one, layer) for one in ("attn_q_norm", "attn_k_norm")):
            return None
        weight = self.file.tensor(role, (size // self.sizes.head_dim, self.sizes.head_dim), layer)
        return Norm(replace(weight, shape=(size,)), self.sizes.norm_eps, centered=True)


def _context(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first Command R states the context of its training code as `max_position_embeddings`."""
    longest = config.get("model_max_length")
    return config if longest is None else {**config, "max_position_embeddings": longest}


def _extra_config(checkpoint: Checkpoint, decoder: Decoder) -> dict[str, Any]:
    return {"logit_scale": decoder.logit_scale, "use_qk_norm": decoder.attention.q_norm is not None}


def _extra_values(settings: Settings, decoder: Decoder) -> dict[str, Value]:
    return {"logit_scale": f32(decoder.logit_scale)}


FAMILY = Family(
    name="cohere",
    gguf="command-r",
    hf_class="CohereForCausalLM",
    build=build,
    compared=("llama.cpp 0.3.36: greedy tokens",),
    not_covered="training of Command R+",
    adapt_config=_context,
    defaults={"tie_word_embeddings": True, "rope_theta": 500_000.0},
    usual_context=8192,
    extra_config=_extra_config,
    extra_values=_extra_values,
    adjacent_pairs=True,
    layer_norm=True,
    parallel=True,
    windows=False,
)

SECOND = Family(
    name="cohere2",
    gguf="cohere2",
    hf_class="Cohere2ForCausalLM",
    build=build,
    compared=("llama.cpp 0.3.36: greedy tokens",),
    defaults={"tie_word_embeddings": True, "sliding_window": 4096},
    usual_context=8192,
    extra_config=_extra_config,
    extra_values=_extra_values,
    adjacent_pairs=True,
    layer_norm=True,
    parallel=True,
    window_pattern=4,
)
