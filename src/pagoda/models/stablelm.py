"""StableLM 3B and StableLM 2: Llama with layer norms, of whose heads a quarter is turned. StableLM 2 12B has attention
and feed-forward side by side, and a layer norm of each head of queries and keys, with weights of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pagoda.formats.gguf_writer import Value, boolean
from pagoda.models.family import Family, ModelFile, joined
from pagoda.models.layers import Decoder, Norm
from pagoda.models.names import TENSORS
from pagoda.models.reader import DecoderReader, LayerKind, read_sizes
from pagoda.models.rope import read_rope
from pagoda.models.source import Checkpoint, Settings


def build(file: ModelFile) -> Decoder:
    sizes = read_sizes(file)
    reader = _Reader(file, sizes)
    layers = range(sizes.num_layers)
    reader.parallel = not any(file.has_tensor("ffn_norm", layer) for layer in layers)
    reader.qkv_bias = any(file.has_tensor(role, i, suffix="bias") for i in layers for role in ("attn_q", "attn_k"))
    return reader.decoder([LayerKind(read_rope(file, sizes.head_dim))] * sizes.num_layers)


class _Reader(DecoderReader):
    def qk_norm(self, role: str, layer: int, size: int) -> Norm | None:
        """Hugging Face folders have a tensor a head."""
        heads, head_dim = size // self.sizes.head_dim, self.sizes.head_dim
        if not self.file.is_gguf:
            if not self.file.settings.flag("qk_layernorm"):
                return None
            each = [self.file.tensor(role, (head_dim,), layer, expert=head) for head in range(heads)]
            return Norm(joined(f"{each[0].name}+", each), self.sizes.norm_eps, centered=True)
        if not any(self.file.has_tensor(one, layer) for one in ("attn_q_norm", "attn_k_norm")):
            return None
        weight = self.file.tensor(role, (heads, head_dim), layer)
        return Norm(replace(weight, shape=(size,)), self.sizes.norm_eps, centered=True)


def _extra_config(checkpoint: Checkpoint, decoder: Decoder) -> dict[str, Any]:
    block = decoder.blocks[0]
    return {
        "attention_bias": False,  # which would have one in the output, too
        "use_qkv_bias": decoder.attention.q.bias is not None,
        "use_parallel_residual": block.parallel,
        "qk_layernorm": decoder.attention.q_norm is not None,
    }


def _extra_values(settings: Settings, decoder: Decoder) -> dict[str, Value]:
    return {"use_parallel_residual": boolean(decoder.blocks[0].parallel)}


FAMILY = Family(
    name="stablelm",
    gguf="stablelm",
    hf_class="StableLmForCausalLM",
    build=build,
    compared=("llama.cpp 0.3.36: greedy tokens",),
    not_covered="training",
    tensors=TENSORS
    | {
        "attn_q_norm": ("blk.{i}.attn_q_norm", "model.layers.{i}.self_attn.q_layernorm.norms.{e}"),
        "attn_k_norm": ("blk.{i}.attn_k_norm", "model.layers.{i}.self_attn.k_layernorm.norms.{e}"),
    },
    defaults={"partial_rotary_factor": 0.25},
    usual_context=4096,
    extra_config=_extra_config,
    extra_values=_extra_values,
    layer_norm=True,
    is_trained=False,
    norm_bias=True,
    partial_rotary=True,
    windows=False,
)
