"""Ministral 3, and the text model of Mistral 3: Mistral with YaRN. From its original context on, queries are scaled by
their position, too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pagoda.backends.specs import QueryGrowth
from pagoda.errors import UnsupportedError
from pagoda.formats.gguf_writer import Value, f32
from pagoda.models import mistral
from pagoda.models.family import SENSES, Family, ModelFile
from pagoda.models.layers import Attention, Block, Decoder
from pagoda.models.rope import MAX_LENGTH
from pagoda.models.source import Checkpoint, Settings
from pagoda.text.builtin_templates import LLAMA2

GGUF_BETA = "attention.temperature_scale"
GGUF_ORIGINAL = "rope.scaling.original_context_length"


def build(file: ModelFile) -> Decoder:
    decoder = mistral.build(file)
    growth = read_growth(file)
    if growth is None or (file.max_context or decoder.max_context) <= growth.length:
        return decoder
    return replace(decoder, blocks=tuple(_growing(block, growth) for block in decoder.blocks))


def read_growth(file: ModelFile) -> QueryGrowth | None:
    """How queries grow with their position; None: they do not."""
    beta, original = _beta(file)
    return QueryGrowth(beta, original) if beta else None


def _growing(block: Block, growth: QueryGrowth) -> Block:
    attention = block.attention
    assert isinstance(attention, Attention)
    return replace(block, attention=replace(attention, spec=replace(attention.spec, growth=growth)))


def _beta(file: ModelFile) -> tuple[float, int]:
    """→ (by how much queries grow with their position, from where on)"""
    if file.is_gguf:
        return file.optional_number(GGUF_BETA) or 0.0, file.integer(GGUF_ORIGINAL, MAX_LENGTH, high=MAX_LENGTH)
    rope = _rope(file.settings)
    original = rope.integer("original_max_position_embeddings", MAX_LENGTH, high=MAX_LENGTH)
    return rope.number("llama_4_scaling_beta", 0.0, low=0.0), original


def _rope(settings: Settings) -> Settings:
    return settings.section("rope_parameters") or settings.section("rope_scaling") or Settings({})


def _extra_config(checkpoint: Checkpoint, decoder: Decoder) -> dict[str, Any]:
    raise UnsupportedError("a GGUF file of Ministral 3 cannot be written as a folder yet")


def _extra_values(settings: Settings, decoder: Decoder) -> dict[str, Value]:
    return {GGUF_BETA: f32(_rope(settings).number("llama_4_scaling_beta", 0.0, low=0.0))}


FAMILY = Family(
    name="ministral3",
    gguf="mistral3",
    hf_class="Ministral3ForCausalLM",
    build=build,
    defaults={"rms_norm_eps": 1e-5},
    usual_context=262_144,
    interleaved=True,
    left_out=SENSES,
    extra_config=_extra_config,
    extra_values=_extra_values,
    chat_template=LLAMA2,
    compared=("llama.cpp 0.3.36: greedy tokens",),
)
