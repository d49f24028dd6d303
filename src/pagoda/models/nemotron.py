"""Nemotron 3 and 4, Minitron: layer norms that multiply by 1 + w, which GGUF files hold as that sum; a feed-forward of
squared ReLU without a gate; half of each head turned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pagoda.models import llama
from pagoda.models.family import Family
from pagoda.models.layers import Decoder
from pagoda.models.source import Checkpoint


def _eps(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**config, "layer_norm_eps": config.get("norm_eps", 1e-5)}


def _extra_config(checkpoint: Checkpoint, decoder: Decoder) -> dict[str, Any]:
    return {"norm_eps": decoder.output_norm.eps, "hidden_act": "relu2"}


FAMILY = Family(
    name="nemotron",
    gguf="nemotron",
    hf_class="NemotronForCausalLM",
    build=llama.build,
    compared=("llama.cpp 0.3.36: greedy tokens",),
    not_covered="training",
    adapt_config=_eps,
    defaults={"partial_rotary_factor": 0.5},
    usual_context=4096,
    norm_offset=1.0,
    extra_config=_extra_config,
    layer_norm=True,
    is_trained=False,
    norm_bias=True,
    gated_ffn=False,
    activation="relu2",
    partial_rotary=True,
    windows=False,
)
