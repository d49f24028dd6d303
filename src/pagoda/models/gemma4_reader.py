"""How files say what Gemma 4 has (`gemma4.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from pagoda.backends.specs import AttentionSpec, ExpertsSpec, RopeSpec
from pagoda.errors import FormatError, UnsupportedError
from pagoda.models.experts import read_layer
from pagoda.models.family import SENSES, Family, ModelFile, ones, scaled
from pagoda.models.gemma2 import POST_NORMS
from pagoda.models.gemma4 import Beside, Gemma4, Gemma4Block, PerLayer, PerLayerInputs
from pagoda.models.layers import Attention, Decoder, FeedForward, Linear, Norm
from pagoda.models.names import TENSORS
from pagoda.models.reader import (
    DecoderReader,
    LayerKind,
    Sizes,
    read_activation,
    read_each,
    read_norm_eps,
    read_window,
    sliding_layers,
)
from pagoda.models.rope import context_limit, read_local_rope, read_rope
from pagoda.models.source import Settings
from pagoda.types import RawTensor

LOCAL_THETA = 10_000.0
ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": LOCAL_THETA},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
_BLK, _LAYER = "blk.{i}", "model.layers.{i}"
NAMES = {
    "layer_scale": (f"{_BLK}.layer_output_scale", f"{_LAYER}.layer_scalar"),
    "inputs_table": ("per_layer_token_embd", "model.embed_tokens_per_layer"),
    "inputs_projection": ("per_layer_model_proj", "model.per_layer_model_projection"),
    "inputs_norm": ("per_layer_proj_norm", "model.per_layer_projection_norm"),
    "inputs_gate": (f"{_BLK}.inp_gate", f"{_LAYER}.per_layer_input_gate"),
    "inputs_output": (f"{_BLK}.proj", f"{_LAYER}.per_layer_projection"),
    "inputs_post_norm": (f"{_BLK}.post_norm", f"{_LAYER}.post_per_layer_input_norm"),
    "ffn_router": (f"{_BLK}.ffn_gate_inp", f"{_LAYER}.router.proj"),
    "router_scale": (f"{_BLK}.ffn_gate_inp", f"{_LAYER}.router"),
    "expert_scales": (f"{_BLK}.ffn_down_exps", f"{_LAYER}.router"),
    "expert_norm": (f"{_BLK}.pre_ffw_norm_2", f"{_LAYER}.pre_feedforward_layernorm_2"),
    "ffn_post_norm_1": (f"{_BLK}.post_ffw_norm_1", f"{_LAYER}.post_feedforward_layernorm_1"),
    "expert_post_norm": (f"{_BLK}.post_ffw_norm_2", f"{_LAYER}.post_feedforward_layernorm_2"),
    "ffn_gate_up_exps": (f"{_BLK}.ffn_gate_up_exps", f"{_LAYER}.experts.gate_up_proj"),
    "ffn_down_stack": ("", f"{_LAYER}.experts.down_proj"),
}


@dataclass(frozen=True, slots=True)
class Layer:
    """What differs between layers. kv_layer: whose keys and values it reads; None: it has its own."""

    slides: bool
    kind: LayerKind
    head_dim: int
    num_kv_heads: int
    ffn_size: int
    kv_layer: int | None


def build(file: ModelFile) -> Decoder:
    if file.settings.get("use_bidirectional_attention") == "all":
        raise UnsupportedError("use_bidirectional_attention: embedding models are not supported")
    layers = read_layers(file)
    return _Reader(file, read_common(file, layers), layers).whole()


def read_common(file: ModelFile, layers: Sequence[Layer]) -> Sizes:
    """The sizes of all layers, or where they differ of the first."""
    return Sizes(
        num_layers=len(layers),
        hidden_size=file.integer("hidden_size", high=1 << 20),
        ffn_size=layers[0].ffn_size,
        num_heads=file.integer("num_heads", high=1 << 12),
        num_kv_heads=layers[0].num_kv_heads,
        head_dim=layers[0].head_dim,
        max_context=context_limit(file),
        norm_eps=read_norm_eps(file),
    )


def read_layers(file: ModelFile, usual_own: int | None = None) -> list[Layer]:
    """usual_own: how many layers have keys of their own where files do not say; None: all.

    FormatError where a layer's kind has no layer of its own to read from.
    """
    num_layers = file.integer("num_layers", high=1 << 12)
    slides = sliding_layers(file, num_layers)
    usual = 0 if usual_own is None else max(num_layers - usual_own, 0)
    shared = file.integer("kv_shared", usual, low=0, high=num_layers)
    first = num_layers - shared
    head_dims, kv_heads = _head_dims(file, slides), read_each(file, "num_kv_heads", num_layers)
    widths = read_each(file, "ffn_size", num_layers)
    window = read_window(file, context_limit(file))
    ropes = _ropes(file, dict(zip(slides, head_dims, strict=True)))
    layers = []
    for i, sliding in enumerate(slides):
        own = [j for j in range(first) if slides[j] == sliding]
        if i >= first and not own:
            raise FormatError(f"layer {i} reads the keys of an earlier layer of its kind, of which there is none")
        kind = LayerKind(ropes[sliding], window if sliding else None)
        layers.append(Layer(sliding, kind, head_dims[i], kv_heads[i], widths[i], own[-1] if i >= first else None))
    return layers


def _head_dims(file: ModelFile, slides: list[bool]) -> list[int]:
    if not file.is_gguf:
        return read_each(file, "head_dims", len(slides))
    full = file.integer("head_dim", low=2, high=1 << 12)
    local = file.integer("attention.key_length_swa", full, low=2, high=1 << 12)
    return [local if sliding else full for sliding in slides]


def _ropes(file: ModelFile, head_dims: Mapping[bool, int]) -> dict[bool, RopeSpec]:
    """The rotary embedding of sliding layers (True), and that of those that see everything."""
    found = {}
    if True in head_dims:
        found[True] = read_local_rope(file, head_dims[True], "rope_local_base_freq", LOCAL_THETA)
    if False in head_dims:
        found[False] = read_rope(file, head_dims[False])
    return found


class Reader(DecoderReader):
    """Reads what Gemmas with embeddings of layers' own and shared keys have in common."""

    def __init__(self, file: ModelFile, sizes: Sizes, layers: list[Layer]) -> None:
        activation = read_activation(file, "hidden_activation", "gelu_tanh")
        super().__init__(file, sizes, activation=activation, attention_scale=1.0)
        self.layers = layers
        size = 0 if not file.has_field("inputs_size") else file.integer("inputs_size", low=0, high=1 << 16)
        self.inputs_size = size
        full = [i for i, layer in enumerate(layers) if not layer.slides and layer.kv_layer is None]
        stated = not file.is_gguf and file.settings.flag("attention_k_eq_v")
        self.keys_are_values = stated or (file.is_gguf and not any(file.has_tensor("attn_v", i) for i in full))
        self.has_scales = not file.is_gguf or any(file.has_tensor("layer_scale", i) for i in range(len(layers)))

    def attention(self, layer: int, kind: LayerKind) -> Attention:
        of = self.layers[layer]
        hidden, d = self.sizes.hidden_size, of.head_dim
        q_size, kv_size = self.sizes.num_heads * d, of.num_kv_heads * d
        if self.sizes.num_heads % of.num_kv_heads:
            raise FormatError(f"{self.sizes.num_heads} query heads cannot share {of.num_kv_heads} KV heads evenly")
        owns, has_values = of.kv_layer is None, of.slides or not self.keys_are_values
        if not owns:  # older checkpoints have them all the same
            for role in ("attn_k", "attn_v", "attn_k_norm"):
                self.file.skip(self.file.tensor_name(role, layer))
        return Attention(
            q=self.linear("attn_q", q_size, hidden, layer, bias=self.qkv_bias),
            k=self.linear("attn_k", kv_size, hidden, layer, bias=self.qkv_bias) if owns else None,
            v=self.linear("attn_v", kv_size, hidden, layer, bias=self.qkv_bias) if owns and has_values else None,
            output=self.linear("attn_output", hidden, q_size, layer, bias=self.output_bias),
            rope=kind.rope,
            spec=AttentionSpec(self.sizes.num_heads, of.num_kv_heads, d, scale=1.0, window=kind.window),
            q_norm=self.rms_norm("attn_q_norm", layer, d),
            k_norm=self.rms_norm("attn_k_norm", layer, d) if owns else None,
            v_norm=Norm(ones(d), self.sizes.norm_eps) if owns else None,
            kv_layer=of.kv_layer,
        )

    def ffn(self, layer: int) -> FeedForward:
        f, e = self.layers[layer].ffn_size, self.sizes.hidden_size
        gate, up = (self.linear(role, f, e, layer, bias=False) for role in ("ffn_gate", "ffn_up"))
        return FeedForward(gate, up, self.linear("ffn_down", e, f, layer, bias=False), self.activation)

    def inputs(self) -> PerLayerInputs:
        size, hidden = self.inputs_size, self.sizes.hidden_size
        width = size * self.sizes.num_layers
        norm = scaled(self.file.tensor("inputs_norm", (size,)), sqrt(0.5))
        return PerLayerInputs(
            table=self.file.tensor("inputs_table", (None, width)),
            scale=sqrt(size / 2),
            projection=Linear(self.file.tensor("inputs_projection", (width, hidden))),
            norm=Norm(norm, self.sizes.norm_eps * hidden),  # of what is divided by sqrt(hidden)
        )

    def own_input(self, layer: int) -> PerLayer:
        size, hidden = self.inputs_size, self.sizes.hidden_size
        return PerLayer(
            gate=self.linear("inputs_gate", size, hidden, layer, bias=False),
            projection=self.linear("inputs_output", hidden, size, layer, bias=False),
            norm=self.rms_norm("inputs_post_norm", layer),
        )


class _Reader(Reader):
    """Reads what only Gemma 4 has, too."""

    def whole(self) -> Gemma4:
        plain = self.decoder([layer.kind for layer in self.layers])
        scale = rounded(sqrt(self.sizes.hidden_size), plain.embedding)
        fields = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
        return Gemma4(**{**fields, "embedding_scale": scale}, per_layer=self.of_layers)

    def block(self, layer: int, kind: LayerKind) -> Gemma4Block:
        if layer == 0:  # before it is checked that everything was read
            self.of_layers = self.inputs() if self.inputs_size else None
        plain = super().block(layer, kind)
        fields = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
        return Gemma4Block(
            **fields,
            beside=self._beside(layer) if self.experts is not None else None,
            per_layer=self.own_input(layer) if self.inputs_size else None,
            scale=self._layer_scale(layer),
        )

    def _layer_scale(self, layer: int) -> float:
        if not self.has_scales:
            return 1.0
        raw = self.file.tensor("layer_scale", (1,), layer, suffix="weight" if self.file.is_gguf else "")
        return float(_floats(raw)[0])

    def _beside(self, layer: int) -> Beside:
        assert self.experts is not None
        hidden, eps, suffixes = self.sizes.hidden_size, self.sizes.norm_eps, ("scale", "scale")
        if not self.file.is_gguf:
            suffixes = ("scale", "per_expert_scale")
        scale = self.file.tensor("router_scale", (hidden,), layer, suffix=suffixes[0])
        experts = read_layer(self.file, layer, self.experts, hidden, self.activation)
        return Beside(
            post_norm=self.rms_norm("ffn_post_norm_1", layer),
            router_norm=Norm(scaled(scale, hidden**-0.5), eps),
            router=experts.router,
            scales=self.file.tensor("expert_scales", (self.experts.count,), layer, suffix=suffixes[1]),
            expert_norm=self.rms_norm("expert_norm", layer),
            gate=experts.gate,
            up=experts.up,
            down=experts.down,
            expert_post_norm=self.rms_norm("expert_post_norm", layer),
            spec=ExpertsSpec(self.experts.used, normalize=True, activation=self.activation),
        )


def _floats(raw: RawTensor) -> Any:
    return np.frombuffer(scaled(raw, 1.0).data, "<f4")


def rounded(scale: float, table: RawTensor) -> float:
    """The embedding's scale in the type of its weights, as the publisher's code computes with it."""
    if table.type == "F16":
        return float(np.float16(scale))
    if table.type == "BF16":  # to the nearest of 8 bits
        bits = np.float32(scale).view(np.uint32)
        return float(((bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32))
    return scale


def _config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """With what differs between layers stated layer by layer. FormatError for what cannot be."""
    said = Settings(config)
    num_layers = said.integer("num_hidden_layers", high=1 << 12)
    usual = ["sliding_attention" if (i + 1) % 6 and i + 1 < num_layers else "full_attention" for i in range(num_layers)]
    types = usual if said.get("layer_types") is None else said.sequence("layer_types", num_layers)
    head_dims, kv_heads = _stated_heads(said, types)
    first = num_layers - said.integer("num_kv_shared_layers", 0, low=0, high=num_layers)
    width, wide = said.integer("intermediate_size", high=1 << 22), said.flag("use_double_wide_mlp")
    experts = said.flag("enable_moe_block")
    return {
        **config,
        "layer_types": types,
        "head_dims": head_dims,
        "num_key_value_heads": kv_heads,
        "intermediate_size": [width * (2 if wide and i >= first else 1) for i in range(num_layers)],
        "rope_parameters": config.get("rope_parameters") or ROPES,
        "num_experts": config.get("num_experts") if experts else None,
        "num_experts_per_tok": config.get("top_k_experts") if experts else None,
    }


def _stated_heads(config: Settings, types: list[Any]) -> tuple[list[int], list[int]]:
    """→ (head size, KV heads) of each layer: `per_layer_config` is what transformers 5 makes of the other keys."""
    local, full = (
        config.integer(key, n, low=2, high=1 << 12) for key, n in (("head_dim", 256), ("global_head_dim", 512))
    )
    heads = fewer = config.integer("num_key_value_heads", 4, high=1 << 12)
    if config.flag("attention_k_eq_v"):
        fewer = config.integer("num_global_key_value_heads", heads, high=1 << 12)
    overrides = config.section("per_layer_config") or Settings({})
    stated = [overrides.section(str(i)) or Settings({}) for i in range(len(types))]
    kinds = [kind == "sliding_attention" for kind in types]
    head_dims = [
        one.integer("head_dim", local if sliding else full, low=2, high=1 << 12)
        for one, sliding in zip(stated, kinds, strict=True)
    ]
    kv_heads = [
        one.integer("num_key_value_heads", heads if sliding else fewer, high=1 << 12)
        for one, sliding in zip(stated, kinds, strict=True)
    ]
    return head_dims, kv_heads


def _extra_tensors(settings: Settings) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Embeddings of layers' own, and what belongs to experts but the matrices."""
    hidden, num_layers = (
        settings.integer("hidden_size", high=1 << 20),
        settings.integer("num_hidden_layers", high=1 << 12),
    )
    size = settings.integer("hidden_size_per_layer_input", 0, low=0, high=1 << 16)
    if size:
        width, vocab = size * num_layers, settings.integer("vocab_size", high=1 << 24)
        yield "per_layer_token_embd.weight", (vocab, width)
        yield "per_layer_model_proj.weight", (width, hidden)
        yield "per_layer_proj_norm.weight", (size,)
    for i in range(num_layers):
        yield f"blk.{i}.layer_output_scale.weight", (1,)
        if size:
            yield f"blk.{i}.inp_gate.weight", (size, hidden)
            yield f"blk.{i}.proj.weight", (hidden, size)
            yield f"blk.{i}.post_norm.weight", (hidden,)
        if settings.get("num_experts"):
            for norm in ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"):
                yield f"blk.{i}.{norm}.weight", (hidden,)
            yield f"blk.{i}.ffn_gate_inp.scale", (hidden,)
            yield f"blk.{i}.ffn_down_exps.scale", (settings.integer("num_experts", high=1 << 12),)


FAMILY = Family(
    name="gemma4",
    gguf="gemma4",
    hf_class="Gemma4ForCausalLM",
    model_type="gemma4_text",
    build=build,
    compared=("llama.cpp 0.3.36: greedy tokens",),
    not_covered="training; conversion",
    usual_context=131_072,
    tensors=TENSORS | POST_NORMS | NAMES,
    adapt_config=_config,
    defaults={
        "num_attention_heads": 8,
        "head_dim": 256,
        "sliding_window": 512,
        "hidden_size_per_layer_input": 256,
        "tie_word_embeddings": True,
    },
    is_converted=False,
    is_trained=False,
    left_out=SENSES,
    extra_tensors=_extra_tensors,
    dense_beside=True,
    qk_norm=True,
    post_norms=True,
    window_pattern=6,
    rope_tables=2,
)
