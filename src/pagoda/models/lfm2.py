"""LFM2 and LFM2.5: gated short convolutions, and attention in some layers, with norms of query and key heads. Dense, or
from a layer on a mixture of experts, picked by corrected sigmoids.

Files say which layers have attention; in GGUF files those have KV heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pagoda.models.family import Family, ModelFile
from pagoda.models.layers import Attention, Decoder
from pagoda.models.names import TENSORS
from pagoda.models.reader import DecoderReader, LayerKind, Sizes, read_kv_heads, read_sizes
from pagoda.models.recurrent import ShortConv
from pagoda.models.rope import read_rope
from pagoda.models.source import Settings

_LAYER = "model.layers.{i}"
NAMES = {
    "output_norm": ("token_embd_norm", "model.embedding_norm"),
    "attn_norm": ("blk.{i}.attn_norm", f"{_LAYER}.operator_norm"),
    "attn_output": ("blk.{i}.attn_output", f"{_LAYER}.self_attn.out_proj"),
    "attn_q_norm": ("blk.{i}.attn_q_norm", f"{_LAYER}.self_attn.q_layernorm"),
    "attn_k_norm": ("blk.{i}.attn_k_norm", f"{_LAYER}.self_attn.k_layernorm"),
    "conv_input": ("blk.{i}.shortconv.in_proj", f"{_LAYER}.conv.in_proj"),
    "conv": ("blk.{i}.shortconv.conv", f"{_LAYER}.conv.conv"),
    "conv_output": ("blk.{i}.shortconv.out_proj", f"{_LAYER}.conv.out_proj"),
    "ffn_norm": ("blk.{i}.ffn_norm", f"{_LAYER}.ffn_norm"),
    "ffn_gate": ("blk.{i}.ffn_gate", f"{_LAYER}.feed_forward.w1"),
    "ffn_up": ("blk.{i}.ffn_up", f"{_LAYER}.feed_forward.w3"),
    "ffn_down": ("blk.{i}.ffn_down", f"{_LAYER}.feed_forward.w2"),
}
MAX_SIZE = 1 << 22


def build(file: ModelFile) -> Decoder:
    kv_heads, attends = read_kv_heads(file)
    sizes = read_sizes(file, num_kv_heads=kv_heads)
    reader = _Reader(file, sizes, attends)
    return reader.decoder([LayerKind(read_rope(file, sizes.head_dim))] * sizes.num_layers)


class _Reader(DecoderReader):
    def __init__(self, file: ModelFile, sizes: Sizes, attends: list[bool]) -> None:
        super().__init__(file, sizes)
        self.attends = attends
        self.taps = file.integer("shortconv.l_cache" if file.is_gguf else "conv_L_cache", low=2, high=64)

    def attention(self, layer: int, kind: LayerKind) -> Attention | None:
        return super().attention(layer, kind) if self.attends[layer] else None

    def recurrent(self, layer: int) -> ShortConv | None:
        if self.attends[layer]:
            return None
        size = self.sizes.hidden_size
        b, c, x = self.split(self.linear("conv_input", 3 * size, size, layer, bias=False), (size, size, size))
        output = self.linear("conv_output", size, size, layer, bias=False)
        return ShortConv(b, c, x, output, self.conv("conv", size, self.taps, layer))


def _config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """With KV heads layer by layer, and the width that the feed-forward really has. FormatError for what cannot be."""
    said = Settings(config)
    num_layers = said.integer("num_hidden_layers", high=1 << 12)
    everything = list(range(num_layers))
    attends = said.get("full_attn_idxs") if said.is_sequence("full_attn_idxs") else everything
    types = ["full_attention" if i in attends else "conv" for i in everything]
    if said.get("layer_types") is not None:
        types = said.sequence("layer_types", num_layers)
    heads = said.integer("num_key_value_heads", high=1 << 12)
    return {
        **config,
        "layer_types": None,
        "num_key_value_heads": [0 if kind == "conv" else heads for kind in types],
        "intermediate_size": _ffn_size(said),
        "rms_norm_eps": said.number("norm_eps", 1e-5),
        "tie_word_embeddings": said.flag("tie_embedding", said.flag("tie_word_embeddings", True)),
    }


def _ffn_size(config: Settings) -> int:
    stated = config.integer("intermediate_size", 12_288, high=MAX_SIZE)
    size = config.integer("block_ff_dim", stated, high=MAX_SIZE)
    if not config.flag("block_auto_adjust_ff_dim", True):
        return size
    size = int(config.number("block_ffn_dim_multiplier", 1.0) * (2 * size // 3))
    multiple = config.integer("block_multiple_of", 256, high=MAX_SIZE)
    return -(-size // multiple) * multiple


def _mixture_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Its dense layers are as wide as they say."""
    dense = Settings(config).integer("num_dense_layers", 2, low=0, high=1 << 12)
    return {**_config({**config, "block_auto_adjust_ff_dim": False}), "first_k_dense_replace": dense}


def _extra_tensors(settings: Settings) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of convolutions, but for the matrix that stands where attention's output does."""
    hidden = settings.integer("hidden_size", high=1 << 20)
    num_layers = settings.integer("num_hidden_layers", high=1 << 12)
    for layer, heads in enumerate(settings.sequence("num_key_value_heads", num_layers)):
        if not heads:
            yield f"blk.{layer}.shortconv.in_proj.weight", (3 * hidden, hidden)
            yield f"blk.{layer}.shortconv.conv.weight", (hidden, settings.integer("conv_L_cache", high=64))


FAMILY = Family(
    name="lfm2",
    gguf="lfm2",
    hf_class="Lfm2ForCausalLM",
    build=build,
    compared=("llama.cpp 0.3.36: greedy tokens",),
    not_covered="training; conversion",
    tensors=TENSORS | NAMES,
    adapt_config=_config,
    defaults={
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "conv_L_cache": 3,
        "rope_theta": 1_000_000.0,
    },
    usual_context=128_000,
    is_converted=False,
    extra_tensors=_extra_tensors,
    qk_norm=True,
    windows=False,
)

_FFN = "model.layers.{i}.feed_forward"
MIXTURE = replace(
    FAMILY,
    name="lfm2_moe",
    gguf="lfm2moe",
    hf_class="Lfm2MoeForCausalLM",
    tensors=TENSORS
    | NAMES
    | {
        "ffn_router": ("blk.{i}.ffn_gate_inp", f"{_FFN}.gate"),
        "expert_corrections": ("blk.{i}.exp_probs_b", f"{_FFN}.expert_bias"),
        "ffn_gate_exps": ("blk.{i}.ffn_gate_exps", f"{_FFN}.experts.{{e}}.w1"),
        "ffn_up_exps": ("blk.{i}.ffn_up_exps", f"{_FFN}.experts.{{e}}.w3"),
        "ffn_down_exps": ("blk.{i}.ffn_down_exps", f"{_FFN}.experts.{{e}}.w2"),
        "ffn_gate_up_exps": ("blk.{i}.ffn_gate_up_exps", f"{_FFN}.experts.gate_up_proj"),
        "ffn_down_stack": ("", f"{_FFN}.experts.down_proj"),
    },
    adapt_config=_mixture_config,
    defaults={
        **FAMILY.defaults,
        "intermediate_size": 7168,
        "moe_intermediate_size": 1792,
        "num_experts": 32,
        "num_experts_per_tok": 4,
    },
    scoring="sigmoid",
)
