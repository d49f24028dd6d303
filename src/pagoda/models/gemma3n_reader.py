"""How files say what Gemma 3n has (`gemma3n.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import isfinite, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from pagoda.errors import FormatError
from pagoda.formats.quantized import as_floats
from pagoda.models import gemma4_reader
from pagoda.models.family import SENSES, Family, ModelFile, floats, scaled
from pagoda.models.gemma2 import POST_NORMS
from pagoda.models.gemma3n import AltUp, Gemma3n, Gemma3nBlock, Laurel, Streams
from pagoda.models.gemma4_reader import NAMES, Layer, read_common, read_layers, rounded
from pagoda.models.layers import Decoder, FeedForward, Linear, Norm
from pagoda.models.names import TENSORS
from pagoda.models.reader import LayerKind, Sizes
from pagoda.models.source import Settings
from pagoda.types import RawTensor

_BLK, _LAYER = "blk.{i}", "model.layers.{i}"
ALTUP_NAMES = {
    "spread": ("altup_proj", "model.altup_projections.{e}"),
    "merge": ("altup_unembd_proj", "model.altup_unembed_projections.{e}"),
    "altup_norm": (f"{_BLK}.altup_router_norm", f"{_LAYER}.altup.router_norm"),
    "altup_router": (f"{_BLK}.altup_router", f"{_LAYER}.altup.modality_router"),
    "altup_predict": (f"{_BLK}.altup_predict_coef", f"{_LAYER}.altup.prediction_coefs"),
    "altup_correct": (f"{_BLK}.altup_correct_coef", f"{_LAYER}.altup.correction_coefs"),
    "altup_scale": (f"{_BLK}.altup_correct_scale", f"{_LAYER}.altup.correct_output_scale"),
    "laurel_left": (f"{_BLK}.laurel_l", f"{_LAYER}.laurel.linear_left"),
    "laurel_right": (f"{_BLK}.laurel_r", f"{_LAYER}.laurel.linear_right"),
    "laurel_norm": (f"{_BLK}.laurel_post_norm", f"{_LAYER}.laurel.post_laurel_norm"),
}
SPARSE_LAYERS, SPARSITY = 10, 0.95  # where files do not say: the first layers of models of more
OWN_KV = 20  # layers with keys of their own, where GGUF does not say


def build(file: ModelFile) -> Decoder:
    layers = read_layers(file, OWN_KV if file.is_gguf else None)
    return _Reader(file, read_common(file, layers), layers).whole()


class _Reader(gemma4_reader.Reader):
    def __init__(self, file: ModelFile, sizes: Sizes, layers: list[Layer]) -> None:
        super().__init__(file, sizes, layers)
        self.count = self.file.integer("streams", 4, low=2, high=64)
        self.active = self.file.integer("active_stream", 0, low=0, high=self.count - 1)
        self.has_altup_scales = self.file.is_gguf or self.file.settings.flag("altup_correct_scale", True)
        self.deviations = read_deviations(self.file, self.sizes.num_layers)

    def whole(self) -> Gemma3n:
        hidden = self.sizes.hidden_size
        ends = {role: self.file.expert_tensors(role, self.count - 1, (hidden, hidden)) for role in ("spread", "merge")}
        per_layer = self.inputs()
        plain = self.decoder([layer.kind for layer in self.layers])
        assert isinstance(plain.output_norm, Norm)
        fields = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
        fields["embedding_scale"] = rounded(sqrt(hidden), plain.embedding)
        fields["output_norm"] = replace(plain.output_norm, eps=plain.output_norm.eps * self.count**2)
        return Gemma3n(**fields, streams=Streams(**ends), per_layer=per_layer)

    def block(self, layer: int, kind: LayerKind) -> Gemma3nBlock:
        plain = super().block(layer, kind)
        fields = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
        return Gemma3nBlock(
            **fields,
            altup=self._altup(layer),
            laurel=self._laurel(layer),
            per_layer=self.own_input(layer),
            per_layer_scale=self._altup_scale(layer),
        )

    def ffn(self, layer: int) -> FeedForward:
        return replace(super().ffn(layer), deviations=self.deviations[layer])

    def _altup(self, layer: int) -> AltUp:
        n, hidden = self.count, self.sizes.hidden_size
        return AltUp(
            router_norm=Norm(scaled(self.file.tensor("altup_norm", (hidden,), layer), 2 / hidden), self.sizes.norm_eps),
            router=self.linear("altup_router", n, hidden, layer, bias=False),
            predict=_of_tanh(self.file.tensor("altup_predict", (n * n, n), layer), np.eye(n).reshape(-1)),
            correct=_of_tanh(self.file.tensor("altup_correct", (n, n), layer), np.ones(n)),
            active=self.active,
            count=n,
        )

    def _altup_scale(self, layer: int) -> RawTensor | None:
        """As a table of one row."""
        suffix, hidden = "weight" if self.file.is_gguf else "", self.sizes.hidden_size
        scale = self.file.tensor("altup_scale", (hidden,), layer, suffix=suffix)
        return replace(scale, shape=(1, hidden)) if self.has_altup_scales else None

    def _laurel(self, layer: int) -> Laurel:
        hidden = self.sizes.hidden_size
        rank = self.file.tensor("laurel_left", (None, hidden), layer).shape[0]
        return Laurel(
            left=self.linear("laurel_left", rank, hidden, layer, bias=False),
            right=self.linear("laurel_right", hidden, rank, layer, bias=False),
            norm=self.rms_norm("laurel_norm", layer),
        )


def _of_tanh(raw: RawTensor, bias: npt.NDArray[np.float64]) -> Linear:
    """A linear for which f(sigmoid(2 z)) = weight @ tanh(z) + bias, since tanh(z) = 2 sigmoid(2 z) - 1."""
    weight = as_floats(raw)
    return Linear(scaled(raw, 2.0), floats(f"{raw.name}.bias", bias - weight.sum(-1)))


def read_deviations(file: ModelFile, num_layers: int) -> list[float | None]:
    """How many standard deviations above the mean a layer's gates count from; None: all count.

    config.json states the share of a Gaussian's numbers that lies below, GGUF the deviations, minus infinity for none.
    """
    usual = [SPARSITY if layer < SPARSE_LAYERS < num_layers else 0.0 for layer in range(num_layers)]
    if file.is_gguf and file.has_field("activation_sparsity_scale"):
        stated = file.settings.numbers(file.key("activation_sparsity_scale"), num_layers)
        return [float(n) if isfinite(n) else None for n in stated]
    shares = usual
    if not file.is_gguf and file.has_field("activation_sparsity_pattern"):
        shares = [float(n) for n in file.settings.numbers("activation_sparsity_pattern", num_layers)]
    if not all(0 <= share < 1 for share in shares):
        raise FormatError(f"activation_sparsity_pattern is {shares}, must be from 0 to below 1")
    return [NormalDist().inv_cdf(share) if share else None for share in shares]


def _config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """With what may differ between layers stated layer by layer."""
    said = Settings(config)
    num_layers = said.integer("num_hidden_layers", high=1 << 12)
    head_dim = said.integer("head_dim", 256, low=2, high=1 << 12)
    return {**config, "head_dims": [head_dim] * num_layers}


def _extra_tensors(settings: Settings) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Embeddings of layers' own, what mixes streams, and products of low rank."""
    layers, hidden = settings.integer("num_hidden_layers", high=1 << 12), settings.integer("hidden_size", high=1 << 24)
    keys = ("hidden_size_per_layer_input", "altup_num_inputs", "laurel_rank", "vocab_size_per_layer_input")
    own, streams, rank, vocab = (settings.integer(key, high=1 << 24) for key in keys)
    yield "per_layer_token_embd.weight", (vocab, layers * own)
    yield "per_layer_model_proj.weight", (layers * own, hidden)
    yield "per_layer_proj_norm.weight", (own,)
    yield "altup_proj.weight", (streams - 1, hidden, hidden)
    yield "altup_unembd_proj.weight", (streams - 1, hidden, hidden)
    for layer in range(layers):
        for name, shape in {
            "altup_correct_coef": (streams, streams),
            "altup_correct_scale": (hidden,),
            "altup_predict_coef": (streams * streams, streams),
            "altup_router": (streams, hidden),
            "altup_router_norm": (hidden,),
            "laurel_l": (rank, hidden),
            "laurel_r": (hidden, rank),
            "laurel_post_norm": (hidden,),
            "inp_gate": (own, hidden),
            "proj": (hidden, own),
            "post_norm": (hidden,),
        }.items():
            yield f"blk.{layer}.{name}.weight", shape


FAMILY = Family(
    name="gemma3n",
    gguf="gemma3n",
    hf_class="Gemma3nForCausalLM",
    model_type="gemma3n_text",
    build=build,
    compared=("llama.cpp 0.3.36: files of its converter",),
    not_covered="training; conversion",
    usual_context=32_768,
    tensors=TENSORS | POST_NORMS | NAMES | ALTUP_NAMES,
    adapt_config=_config,
    defaults={
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "sliding_window": 512,
        "num_kv_shared_layers": 15,
        "rope_theta": 1_000_000.0,
        "final_logit_softcapping": 30.0,
        "vocab_size_per_layer_input": 262_144,
        "hidden_size_per_layer_input": 256,
        "altup_num_inputs": 4,
        "laurel_rank": 64,
        "tie_word_embeddings": True,
    },
    gguf_defaults={"attention.sliding_window": 512, "final_logit_softcapping": 30.0},
    is_converted=False,
    is_trained=False,
    left_out=SENSES,
    extra_tensors=_extra_tensors,
    qk_norm=True,
    post_norms=True,
    window_pattern=5,
    rope_tables=2,
)
