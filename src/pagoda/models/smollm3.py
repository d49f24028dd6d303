"""SmolLM3: Llama whose every fourth layer does not see positions: its queries and keys are not turned."""

from __future__ import annotations

from typing import Any

from pagoda.errors import UnsupportedError
from pagoda.formats.gguf_writer import Value
from pagoda.models.family import Family, ModelFile
from pagoda.models.layers import Decoder
from pagoda.models.reader import DecoderReader, LayerKind, read_sizes
from pagoda.models.rope import read_rope
from pagoda.models.source import Checkpoint, Settings

INTERVAL = 4  # GGUF has no key for it


def build(file: ModelFile) -> Decoder:
    sizes = read_sizes(file)
    if not file.is_gguf and file.settings.flag("use_sliding_window"):
        raise UnsupportedError("use_sliding_window: sliding windows of SmolLM3 are not supported")
    rope = read_rope(file, sizes.head_dim)
    kinds = [LayerKind(rope if turned else None) for turned in _turned(file, sizes.num_layers)]
    return DecoderReader(file, sizes).decoder(kinds)


def _turned(file: ModelFile, num_layers: int) -> list[bool]:
    """Which layers see positions: config.json's `no_rope_layers` has a 1 for them, for all that it is called."""
    if not file.is_gguf and file.settings.get("no_rope_layers") is not None:
        return [bool(turned) for turned in file.settings.sequence("no_rope_layers", num_layers)]
    interval = INTERVAL
    if not file.is_gguf:
        interval = file.settings.integer("no_rope_layer_interval", INTERVAL, high=1 << 12)
    return [bool((layer + 1) % interval) for layer in range(num_layers)]


def _extra_config(checkpoint: Checkpoint, decoder: Decoder) -> dict[str, Any]:
    turned = [int(attention.rope is not None) for attention in decoder.attentions.values()]
    return {"no_rope_layers": turned, "use_sliding_window": False, "sliding_window": None}


def _extra_values(settings: Settings, decoder: Decoder) -> dict[str, Value]:
    if any((attention.rope is None) != ((i + 1) % INTERVAL == 0) for i, attention in decoder.attentions.items()):
        raise UnsupportedError("GGUF files of SmolLM3 have every fourth layer without positions; this one has others")
    return {}


FAMILY = Family(
    name="smollm3",
    gguf="smollm3",
    hf_class="SmolLM3ForCausalLM",
    build=build,
    defaults={"rope_theta": 2_000_000.0, "tie_word_embeddings": True},
    usual_context=32_768,
    interleaved=True,
    extra_config=_extra_config,
    extra_values=_extra_values,
    windows=False,
    compared=("llama.cpp 0.3.36: greedy tokens",),
)
