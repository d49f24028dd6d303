"""Granite 4, dense or with a mixture of experts beside a shared one: most layers are Mamba-2, and its attention sees no
positions, but in models without such layers. Granite 3's mixtures of experts; and Bamba, which has no scales.

Scales are Granite's (`granite.py`). Hugging Face folders hold gates and ups in one matrix, of experts as of the shared
one. In GGUF files layers of Mamba have no KV heads, and `rope.scaling.finetuned` says whether attention sees positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pagoda.models.family import Family, ModelFile
from pagoda.models.granite import read_scales
from pagoda.models.layers import Decoder, Experts, FeedForward
from pagoda.models.mamba import MAMBA_DEFAULTS, MambaReader, mamba_head_dim, mamba_tensors
from pagoda.models.names import TENSORS
from pagoda.models.reader import LayerKind, Sizes, read_kv_heads, read_sizes
from pagoda.models.rope import read_rope
from pagoda.models.source import Settings

MAX_SIZE = 1 << 22

_LAYER = "model.layers.{i}"
_EXPERTS = f"{_LAYER}.block_sparse_moe"
_SHARED = f"{_LAYER}.shared_mlp"
NAMES = {
    "ffn_router": ("blk.{i}.ffn_gate_inp", f"{_EXPERTS}.router.layer"),
    "ffn_gate_up_exps": ("blk.{i}.ffn_gate_up_exps", f"{_EXPERTS}.input_linear.weight"),
    "ffn_down_stack": ("", f"{_EXPERTS}.output_linear.weight"),
    "ffn_gate_shexp": ("blk.{i}.ffn_gate_shexp", ""),
    "ffn_up_shexp": ("blk.{i}.ffn_up_shexp", f"{_SHARED}.input_linear"),
    "ffn_down_shexp": ("blk.{i}.ffn_down_shexp", f"{_SHARED}.output_linear"),
    **{f"ffn_{of}": (f"blk.{{i}}.ffn_{of}", "") for of in ("gate", "up", "down")},  # of dense models
}
BAMBA_NAMES = {
    "ffn_norm": ("blk.{i}.ffn_norm", f"{_LAYER}.pre_ff_layernorm"),
    "output_norm": ("output_norm", "model.final_layernorm"),
    **{f"ffn_{of}": (f"blk.{{i}}.ffn_{of}", f"{_LAYER}.feed_forward.{of}_proj") for of in ("gate", "up", "down")},
}


def build(file: ModelFile) -> Decoder:
    kv_heads, attends = read_kv_heads(file)
    sizes, scales = read_sizes(file, num_kv_heads=kv_heads), read_scales(file)
    reader = _Reader(file, scales.stream(sizes), attends, attention_scale=scales.attention)
    rope = read_rope(file, sizes.head_dim) if _sees_positions(file) else None
    return scales.decoder(reader, [LayerKind(rope)] * sizes.num_layers)


def _build_bamba(file: ModelFile) -> Decoder:
    if file.is_gguf:  # where scales would be stated
        return build(file)
    kv_heads, attends = read_kv_heads(file)
    sizes = read_sizes(file, num_kv_heads=kv_heads)
    kind = LayerKind(read_rope(file, sizes.head_dim))
    return MambaReader(file, sizes, attends).decoder([kind] * sizes.num_layers)


def _sees_positions(file: ModelFile) -> bool:
    if file.is_gguf:
        return file.settings.flag(file.key("rope.scaling.finetuned"), True)
    return file.settings.text("position_embedding_type", "nope") == "rope"


class _Reader(MambaReader):
    """The shared expert alone is the feed-forward where there are no others."""

    def __init__(
        self, file: ModelFile, sizes: Sizes, attends: Sequence[bool], *, attention_scale: float | None = None
    ) -> None:
        super().__init__(file, sizes, attends, attention_scale=attention_scale)
        self.fused_ffn = not file.is_gguf

    def ffn(self, layer: int) -> FeedForward | Experts | None:
        if self.experts is None:
            return self.feed_forward(layer, self.sizes.ffn_size, "" if self.file.is_gguf else "_shexp")
        if not self.file.is_gguf:
            self.file.tensor("ffn_gate_up_exps", (None, None, None), layer, suffix="")  # must be there
        ffn = super().ffn(layer)
        assert isinstance(ffn, Experts)
        key = "expert_shared_feed_forward_length" if self.file.is_gguf else "shared_intermediate_size"
        size = self.file.integer(key, 0, low=0, high=MAX_SIZE)
        return replace(ffn, shared=self.feed_forward(layer, size, "_shexp")) if size else ffn


def _with_kinds(config: Mapping[str, Any], types: list[str]) -> Mapping[str, Any]:
    """config.json with KV heads layer by layer, none for those that are not of attention."""
    attends = [kind.endswith("attention") and kind != "linear_attention" for kind in types]
    heads = config.get("num_key_value_heads") or config.get("num_attention_heads")
    return {
        **config,
        "layer_types": ["full_attention" if each else "linear_attention" for each in attends],
        "num_key_value_heads": [heads if each else 0 for each in attends],
        "mamba_d_head": mamba_head_dim(Settings(config)) if not all(attends) else None,
    }


def _config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    said = Settings({**config, "layer_types": config.get("layer_types") or config.get("layers_block_type")})
    num_layers = said.integer("num_hidden_layers", high=1 << 12)
    types = ["linear_attention"] * num_layers
    if said.get("layer_types") is not None:
        types = said.sequence("layer_types", num_layers)
    for kind in types:
        if kind not in ("mamba", "linear_attention", "attention", "full_attention"):
            raise said.error("layer_types", kind, "must be of mamba and attention")
    dense = not config.get("num_local_experts")
    width = config.get("shared_intermediate_size" if dense else "intermediate_size")
    return {**_with_kinds(config, types), "intermediate_size": width}


def _bamba_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    said = Settings(config)
    attends = said.get("attn_layer_indices") if said.is_sequence("attn_layer_indices") else []
    num_layers = said.integer("num_hidden_layers", high=1 << 12)
    return _with_kinds(config, ["attention" if i in attends else "mamba" for i in range(num_layers)])


def _mixture_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    heads = config.get("num_key_value_heads") or config.get("num_attention_heads")
    return {**config, "position_embedding_type": "rope", "num_key_value_heads": heads}


NOT_COVERED = "training; conversion"
COMPARED = ("llama.cpp 0.3.36: files of its converter",)

FAMILY = Family(
    name="granitemoehybrid",
    gguf="granitehybrid",
    hf_class="GraniteMoeHybridForCausalLM",
    build=build,
    compared=COMPARED,
    not_covered=NOT_COVERED,
    tensors=TENSORS | mamba_tensors(f"{_LAYER}.mamba") | NAMES,
    adapt_config=_config,
    defaults={
        **MAMBA_DEFAULTS,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 1024,
        "intermediate_size": 11_008,
        "tie_word_embeddings": False,
    },
    interleaved=True,
    is_converted=False,
    is_trained=False,
    windows=False,
)

MIXTURE = Family(
    name="granitemoe",
    gguf="granitemoe",
    hf_class="GraniteMoeForCausalLM",
    build=build,
    compared=COMPARED,
    not_covered=NOT_COVERED,
    tensors=TENSORS | NAMES,
    adapt_config=_mixture_config,
    defaults={"num_local_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": False},
    interleaved=True,
    is_converted=False,
    is_trained=False,
    windows=False,
)

SHARED = replace(
    MIXTURE,
    name="granitemoeshared",
    gguf_key="expert_shared_feed_forward_length",
    hf_class="GraniteMoeSharedForCausalLM",
    defaults={**MIXTURE.defaults, "shared_intermediate_size": 1024},
)

BAMBA = Family(
    name="bamba",
    gguf="granitehybrid",
    gguf_key="rope.scaling.finetuned",  # its attention sees positions
    hf_class="BambaForCausalLM",
    build=_build_bamba,
    not_covered=f"{NOT_COVERED}; GGUF files, which reorder queries and keys as if heads were turned whole",
    tensors=TENSORS | mamba_tensors(f"{_LAYER}.mamba") | BAMBA_NAMES,
    adapt_config=_bamba_config,
    defaults={**MAMBA_DEFAULTS, "num_key_value_heads": 8, "partial_rotary_factor": 0.5, "tie_word_embeddings": False},
    usual_context=262_144,
    interleaved=True,
    is_converted=False,
    is_trained=False,
    partial_rotary=True,
    windows=False,
)
