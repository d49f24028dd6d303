"""Granite 3, dense: Llama whose embeddings, scores, residual sums and logits are scaled.

What is added to the residual stream is scaled by r. The stream is kept divided by r here, which is the same: embeddings
are divided by r, what is added is not scaled, and RMS norms, which take any scale out, have an epsilon of eps / r².
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pagoda.formats.gguf_writer import Value, f32
from pagoda.models.family import Family, ModelFile
from pagoda.models.layers import Decoder
from pagoda.models.reader import DecoderReader, LayerKind, Sizes, read_sizes
from pagoda.models.rope import read_rope
from pagoda.models.source import Checkpoint, Settings

# config.json's keys, and GGUF's.
SCALES = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
}


@dataclass(frozen=True, slots=True)
class Scales:
    """Of a file; attention None: as is usual."""

    embedding: float
    residual: float
    attention: float | None
    logits: float

    def stream(self, sizes: Sizes) -> Sizes:
        """The sizes with the epsilon that norms of the residual stream need here."""
        return replace(sizes, norm_eps=sizes.norm_eps / self.residual**2)

    def decoder(self, reader: DecoderReader, kinds: Sequence[LayerKind]) -> Decoder:
        return reader.decoder(kinds, embedding_scale=self.embedding / self.residual, logit_scale=1 / self.logits)


def read_scales(file: ModelFile) -> Scales:
    embedding, residual, attention, logits = (_scale(file, key) for key in SCALES)
    return Scales(embedding, residual, attention or None, logits)


def build(file: ModelFile) -> Decoder:
    sizes, scales = read_sizes(file), read_scales(file)
    kind = LayerKind(read_rope(file, sizes.head_dim))
    reader = DecoderReader(file, scales.stream(sizes), attention_scale=scales.attention)
    return scales.decoder(reader, [kind] * sizes.num_layers)


def _scale(file: ModelFile, key: str) -> float:
    """1 where the file does not say; of attention 0, which stands for what is usual, where GGUF does not."""
    usual = 0.0 if file.is_gguf and key == "attention_multiplier" else 1.0
    found = file.optional_number(SCALES[key] if file.is_gguf else key)
    return usual if found is None else found


def _extra_config(checkpoint: Checkpoint, decoder: Decoder) -> dict[str, Any]:
    scales = {key: checkpoint.metadata.get(f"granite.{name}", 1.0) for key, name in SCALES.items()}
    return {**scales, "attention_multiplier": decoder.attention.spec.scale}


def _extra_values(settings: Settings, decoder: Decoder) -> dict[str, Value]:
    return {name: f32(settings.number(key, 1.0)) for key, name in SCALES.items()}


FAMILY = Family(
    name="granite",
    gguf="granite",
    hf_class="GraniteForCausalLM",
    build=build,
    defaults={"tie_word_embeddings": True},
    interleaved=True,
    extra_config=_extra_config,
    extra_values=_extra_values,
    windows=False,
    compared=("llama.cpp 0.3.36: greedy tokens",),
)
