"""Falcon-H1: in each layer attention and Mamba-2 side by side, and multipliers of what almost every matrix makes.

GGUF files hold weights that are multiplied already, and a norm's tensor without a suffix. Here a product is multiplied;
what goes into attention is in the scale of its scores, and what goes through the convolution in its taps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np

from pagoda.errors import UnsupportedError
from pagoda.formats.blocks import dequantize
from pagoda.models.family import Family, ModelFile
from pagoda.models.layers import AnyNorm, Attention, Decoder, Experts, FeedForward, Norm
from pagoda.models.mamba import MAMBA_DEFAULTS, MambaReader, mamba_head_dim, mamba_tensors
from pagoda.models.names import TENSORS
from pagoda.models.reader import LayerKind, Sizes, read_sizes
from pagoda.models.recurrent import Mamba
from pagoda.models.rope import read_rope
from pagoda.models.source import Settings
from pagoda.types import FloatArray, RawTensor

_LAYER = "model.layers.{i}"
NAMES = {
    "ffn_norm": ("blk.{i}.ffn_norm", f"{_LAYER}.pre_ff_layernorm"),
    "output_norm": ("output_norm", "model.final_layernorm"),
    **{f"ffn_{of}": (f"blk.{{i}}.ffn_{of}", f"{_LAYER}.feed_forward.{of}_proj") for of in ("gate", "up", "down")},
}
BIASES = ("attention_bias", "projectors_bias", "mlp_bias", "mamba_proj_bias")


@dataclass(frozen=True, slots=True)
class Multipliers:
    """Of config.json; what GGUF files need: none."""

    embedding: float = 1.0
    logits: float = 1.0
    attention_in: float = 1.0
    attention_out: float = 1.0
    key: float = 1.0
    mamba_in: float = 1.0
    mamba_out: float = 1.0
    mamba_parts: tuple[float, ...] = (1.0,) * 5  # gate, x, b, c, dt
    ffn_gate: float = 1.0
    ffn_down: float = 1.0


def build(file: ModelFile) -> Decoder:
    sizes, by = read_sizes(file), read_multipliers(file)
    reader = _Reader(file, sizes, by)
    kinds = [LayerKind(read_rope(file, sizes.head_dim))] * sizes.num_layers
    return reader.decoder(kinds, embedding_scale=by.embedding, logit_scale=by.logits)


def read_multipliers(file: ModelFile) -> Multipliers:
    """UnsupportedError for matrices with biases, which are not multiplied alike."""
    if file.is_gguf:
        return Multipliers()
    for key in BIASES:
        if file.settings.flag(key):
            raise UnsupportedError(f"{key}: Falcon-H1 with biases is not supported")
    parts = _each(file, "ssm_multipliers", 5)
    gate, down = _each(file, "mlp_multipliers", 2)
    return Multipliers(
        embedding=_one(file, "embedding_multiplier"),
        logits=_one(file, "lm_head_multiplier"),
        attention_in=_one(file, "attention_in_multiplier"),
        attention_out=_one(file, "attention_out_multiplier"),
        key=_one(file, "key_multiplier"),
        mamba_in=_one(file, "ssm_in_multiplier"),
        mamba_out=_one(file, "ssm_out_multiplier"),
        mamba_parts=parts,
        ffn_gate=gate,
        ffn_down=down,
    )


def _one(file: ModelFile, key: str) -> float:
    return file.settings.number(key, 1.0)


def _each(file: ModelFile, key: str, count: int) -> tuple[float, ...]:
    if file.settings.get(key) is None:
        return (1.0,) * count
    return tuple(float(number) for number in file.settings.numbers(key, count))


class _Reader(MambaReader):
    def __init__(self, file: ModelFile, sizes: Sizes, by: Multipliers) -> None:
        everywhere = [True] * sizes.num_layers
        scale = by.attention_in**2 * by.key / sqrt(sizes.head_dim)
        super().__init__(file, sizes, everywhere, recurs=everywhere, attention_scale=scale)
        self.by = by
        self.norm_first = not file.is_gguf and file.settings.flag("mamba_norm_before_gate", True)

    def norm(self, role: str, layer: int | None = None) -> AnyNorm:
        if role != "ffn_norm" or not self.file.is_gguf:
            return super().norm(role, layer)
        weight = self.file.tensor(role, (self.sizes.hidden_size,), layer, suffix="")
        return Norm(weight, self.sizes.norm_eps)

    def attention(self, layer: int, kind: LayerKind) -> Attention | None:
        attention = super().attention(layer, kind)
        assert attention is not None
        scale = self.by.attention_in * self.by.attention_out
        return replace(attention, output=replace(attention.output, scale=scale))

    def mamba(self, layer: int) -> Mamba:
        plain, by, spec = super().mamba(layer), self.by, self.scan
        gate, x, b, c, dt = (by.mamba_in * part for part in by.mamba_parts)
        shared = spec.num_groups * spec.state_dim
        taps = np.repeat(np.array([x, b, c], np.float32), [spec.inner_size, shared, shared])
        return replace(
            plain,
            gate=replace(plain.gate, scale=gate),
            conv=_multiplied(plain.conv, taps),
            dt=replace(plain.dt, scale=dt),
            output=replace(plain.output, scale=by.mamba_out),
            norm_first=self.norm_first,
        )

    def mamba_norm(self, layer: int) -> Norm | None:
        file = self.file
        there = file.has_tensor("mamba_norm", layer) if file.is_gguf else file.settings.flag("mamba_rms_norm")
        return super().mamba_norm(layer) if there else None

    def ffn(self, layer: int) -> FeedForward | Experts | None:
        plain = super().ffn(layer)
        assert isinstance(plain, FeedForward)
        assert plain.gate is not None
        gate, down = replace(plain.gate, scale=self.by.ffn_gate), replace(plain.down, scale=self.by.ffn_down)
        return replace(plain, gate=gate, down=down)


def _multiplied(raw: RawTensor, rows: FloatArray) -> RawTensor:
    """Each row times its number, in float32; `raw` itself where all are 1."""
    if (rows == 1).all():
        return raw
    values = dequantize(raw.data, raw.type, raw.shape) * rows[:, None]
    return RawTensor(raw.name, "F32", raw.shape, values.view(np.uint8).reshape(-1))


def _config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What of each layer is there, for plans."""
    said = Settings(config)
    kinds = ["hybrid"] * said.integer("num_hidden_layers", high=1 << 12)
    return {**config, "layer_types": kinds, "mamba_d_head": mamba_head_dim(said)}


FAMILY = Family(
    name="falcon_h1",
    gguf="falcon-h1",
    hf_class="FalconH1ForCausalLM",
    build=build,
    compared=("llama.cpp 0.3.36: files of its converter",),
    not_covered="training; conversion",
    tensors=TENSORS | mamba_tensors(f"{_LAYER}.mamba") | NAMES,
    adapt_config=_config,
    defaults={
        **MAMBA_DEFAULTS,
        "mamba_d_ssm": 1024,
        "mamba_rms_norm": False,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
    usual_context=8192,
    multiplied=True,
    is_converted=False,
    is_trained=False,
    windows=False,
)
