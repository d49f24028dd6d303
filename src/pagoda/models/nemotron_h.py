"""Nemotron-H, dense: each layer is Mamba-2, attention that sees no positions, or a feed-forward without a gate.

config.json says which by a letter a layer (M, *, -) or by name. In GGUF files attention is where there are KV heads,
and a feed-forward where its width is not 0. Mixtures of experts are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pagoda.errors import FormatError, UnsupportedError
from pagoda.models.family import Family, ModelFile
from pagoda.models.layers import Block, Decoder
from pagoda.models.mamba import MambaReader, mamba_tensors
from pagoda.models.names import TENSORS
from pagoda.models.reader import LayerKind, Sizes, read_each, read_kv_heads, read_sizes
from pagoda.models.source import Settings

Kind = Literal["mamba", "attention", "mlp"]

_LAYER = "backbone.layers.{i}"
NAMES = {
    "embedding": ("token_embd", "backbone.embeddings"),
    "output_norm": ("output_norm", "backbone.norm_f"),
    "attn_norm": ("blk.{i}.attn_norm", f"{_LAYER}.norm"),
    "attn_output": ("blk.{i}.attn_output", f"{_LAYER}.mixer.o_proj"),
    **{f"attn_{of}": (f"blk.{{i}}.attn_{of}", f"{_LAYER}.mixer.{of}_proj") for of in ("q", "k", "v")},
    **{f"ffn_{of}": (f"blk.{{i}}.ffn_{of}", f"{_LAYER}.mixer.{of}_proj") for of in ("up", "down")},
}
KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("M", "mamba", "linear_attention"), "mamba"),
    **dict.fromkeys(("*", "attention", "full_attention"), "attention"),
    **dict.fromkeys(("-", "mlp"), "mlp"),
}
EXPERTS = ("E", "moe")
PLANNED: Mapping[Kind, str] = {"mamba": "linear_attention", "attention": "full_attention", "mlp": "mlp"}
MAX_LAYERS = 1 << 12


def build(file: ModelFile) -> Decoder:
    kv_heads, attends = read_kv_heads(file)
    widths = read_each(file, "ffn_size", len(attends), low=0)
    if any(each and width for each, width in zip(attends, widths, strict=True)):
        raise FormatError("a layer has both KV heads and a feed-forward")
    sizes = read_sizes(file, num_kv_heads=kv_heads, ffn_size=max(widths))
    return _Reader(file, sizes, attends, widths).decoder([LayerKind(None)] * sizes.num_layers)


class _Reader(MambaReader):
    def __init__(self, file: ModelFile, sizes: Sizes, attends: list[bool], widths: list[int]) -> None:
        recurs = [not (each or width) for each, width in zip(attends, widths, strict=True)]
        super().__init__(file, sizes, attends, recurs=recurs)
        self.widths = widths

    def block(self, layer: int, kind: LayerKind) -> Block:
        norm = self.norm("attn_norm", layer)
        if self.widths[layer]:
            return Block(None, None, norm, self.feed_forward(layer, self.widths[layer]))
        return Block(norm, self.attention(layer, kind), None, None, recurrent=self.recurrent(layer))


def _config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """With sizes layer by layer, in the words that other families have for Mamba-2."""
    kinds = layer_kinds(config)
    said = Settings(config)
    heads, width = (said.integer(key, high=1 << 22) for key in ("num_key_value_heads", "intermediate_size"))
    return {
        **config,
        "num_hidden_layers": len(kinds),
        "layer_types": [PLANNED[kind] for kind in kinds],
        "num_key_value_heads": [heads if kind == "attention" else 0 for kind in kinds],
        "intermediate_size": [width if kind == "mlp" else 0 for kind in kinds],
        "head_dim": config.get("head_dim") or config.get("attention_head_dim"),
        "hidden_act": config.get("mlp_hidden_act"),
        "rms_norm_eps": config.get("layer_norm_epsilon"),
        "mamba_n_heads": config.get("mamba_num_heads"),
        "mamba_d_head": config.get("mamba_head_dim"),
        "mamba_n_groups": config.get("n_groups"),
        "mamba_d_state": config.get("ssm_state_size"),
        "mamba_d_conv": config.get("conv_kernel"),
        "mamba_conv_bias": config.get("use_conv_bias"),
        "mamba_proj_bias": config.get("use_bias"),
    }


def layer_kinds(config: Mapping[str, Any]) -> list[Kind]:
    """What each layer is. FormatError where config.json does not say it; UnsupportedError for mixtures of experts."""
    named = config.get("layers_block_type") or config.get("layer_types")
    letters = config.get("hybrid_override_pattern")
    stated = letters if isinstance(letters, str) else named
    if not isinstance(stated, (str, list)) or not 0 < len(stated) <= MAX_LAYERS:
        raise FormatError("neither hybrid_override_pattern nor layers_block_type says what the layers are")
    for kind in stated:
        if kind in EXPERTS:
            raise UnsupportedError("mixtures of experts of Nemotron-H are not supported")
        if kind not in KINDS:
            raise FormatError(f"a layer is said to be {kind!r}, must be of {', '.join(KINDS)}")
    return [KINDS[kind] for kind in stated]


FAMILY = Family(
    name="nemotron_h",
    gguf="nemotron_h",
    hf_class="NemotronHForCausalLM",
    build=build,
    not_covered="training; conversion; mixtures of experts",
    tensors=TENSORS | mamba_tensors(f"{_LAYER}.mixer") | NAMES,
    adapt_config=_config,
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "mlp_hidden_act": "relu2",
        "layer_norm_epsilon": 1e-5,
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
        "n_groups": 8,
        "ssm_state_size": 128,
        "conv_kernel": 4,
        "use_conv_bias": True,
        "use_bias": False,
        "tie_word_embeddings": False,
    },
    usual_context=4096,
    left_out={"mtp.": "the head that predicts several tokens (MTP)"},
    activation="relu2",
    gated_ffn=False,
    is_converted=False,
    is_trained=False,
    windows=False,
)
