"""MiMo-7B: Qwen2 with a head that predicts several tokens (MTP), whose projection takes the hidden state first."""

from __future__ import annotations

from dataclasses import replace

from pagoda.models import qwen2
from pagoda.models.family import ModelFile
from pagoda.models.layers import Decoder
from pagoda.models.mtp import MtpHead
from pagoda.models.mtp_reader import read_head
from pagoda.models.reader import DecoderReader, LayerKind, read_sizes
from pagoda.models.rope import read_rope


def head(file: ModelFile, decoder: Decoder) -> MtpHead:
    sizes = read_sizes(file)
    return read_head(DecoderReader(file, sizes), LayerKind(read_rope(file, sizes.head_dim)), decoder)


FAMILY = replace(
    qwen2.FAMILY,
    name="mimo",
    hf_class="MiMoForCausalLM",
    head=head,
    head_names={
        "model.mtp_layers.0.input_proj.": "eh_proj.",
        "model.mtp_layers.0.token_layernorm.": "enorm.",
        "model.mtp_layers.0.hidden_layernorm.": "hnorm.",
        "model.mtp_layers.0.final_layernorm.": "shared_head.norm.",
        "model.mtp_layers.0.": "",
        "model.mtp_layers.": "others.",
    },
    hidden_first=True,
    defaults={"num_key_value_heads": 8},
    is_converted=False,
    is_trained=False,
    not_covered="conversion; training; GGUF files of its own (they are Qwen2's, without the head)",
)
