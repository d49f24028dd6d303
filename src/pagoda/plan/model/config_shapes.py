"""From the settings in a config.json to the shape of such a model.

What differs from Llama stands in the architecture's `Family`. One that has none is planned as a Llama, and the shape
says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pagoda.errors import FormatError
from pagoda.models import llama
from pagoda.models.registry import known_family
from pagoda.plan.model.config_sizes import ConfigSizes, LayerSizes
from pagoda.plan.model.config_tensors import tensor_shapes
from pagoda.plan.model.shapes import AttentionShape, ModelShape

NESTED = "text_config"  # of models that also see or hear


def shape_from_config(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape of the model that config.json describes. FormatError if a size is missing or cannot be."""
    assumptions = []
    model_type = str(config.get("model_type", "llama"))
    nested = config.get(NESTED)
    if isinstance(nested, Mapping):
        assumptions.append("only the language part is counted, not the one that sees")
        config = {**{k: v for k, v in config.items() if k != NESTED}, **nested}
        model_type = str(nested.get("model_type", model_type))
    model_type = model_type.removesuffix("_text")
    family = known_family(model_type)
    if family is None:
        assumptions.append(f"the architecture {model_type!r} is unknown: its tensors are taken to be those of a Llama")
        family = replace(llama.FAMILY, windows=True)
    sizes = ConfigSizes(family.settings(config), family)
    return ModelShape(
        name=name,
        architecture=model_type,
        hidden_size=sizes.hidden,
        vocab_size=sizes.vocab,
        max_context=sizes.context,
        attention=_attention(sizes),
        tensors=tuple(tensor_shapes(sizes)),
        num_experts=sizes.experts,
        experts_used=sizes.experts_used,
        state_elements=sum(sizes.state for layer in sizes.layers if layer.recurs) + sizes.conv_state,
        assumptions=tuple(assumptions),
    )


def _attention(sizes: ConfigSizes) -> tuple[AttentionShape, ...]:
    """Layers of one kind together, those without a window first."""
    layers = [layer for layer in sizes.layers if layer.kind != "linear" and layer.kv_heads]
    if not layers:
        raise FormatError("no layer has attention")
    kinds = Counter(_kind(sizes, layer) for layer in layers)
    sharing = Counter(_kind(sizes, layer) for layer in layers if layer.shares_kv)
    latent = sizes.rank + sizes.rotary if sizes.latent else None
    return tuple(
        AttentionShape(count, *kind, latent, sharing[kind])
        for kind, count in sorted(kinds.items(), key=lambda item: item[0][-1] is not None)
    )


def _kind(sizes: ConfigSizes, layer: LayerSizes) -> tuple[int, int, int, int, int | None]:
    """→ (heads, KV heads, size of a key, of a value, window)"""
    value_dim = sizes.value_dim if sizes.latent else layer.key_dim
    return layer.heads, layer.kv_heads, layer.key_dim, value_dim, sizes.window_of(layer)
