"""GLM-4.5, 4.6 and 4.7: from a layer on a mixture of experts beside a shared one, picked by corrected sigmoids; half of
each head is turned. Large ones normalize heads of queries and keys. The layer that predicts several tokens (MTP) is
a head beside the model.
"""

from __future__ import annotations

from pagoda.models.experts import shared_expert
from pagoda.models.family import Family, ModelFile
from pagoda.models.layers import Decoder, Norm
from pagoda.models.mtp import MtpHead
from pagoda.models.mtp_reader import read_head
from pagoda.models.names import TENSORS
from pagoda.models.reader import DecoderReader, LayerKind, read_sizes, without_extra
from pagoda.models.rope import read_rope


def build(file: ModelFile) -> Decoder:
    reader, kind = _open(file)
    return reader.decoder([kind] * reader.sizes.num_layers)


def head(file: ModelFile, decoder: Decoder) -> MtpHead:
    return read_head(*_open(file), decoder)


def _open(file: ModelFile) -> tuple[DecoderReader, LayerKind]:
    sizes = without_extra(file, read_sizes(file))
    return _Reader(file, sizes), LayerKind(read_rope(file, sizes.head_dim))


class _Reader(DecoderReader):
    def qk_norm(self, role: str, layer: int, size: int) -> Norm | None:
        stated = not self.file.is_gguf and self.file.settings.flag("use_qk_norm")
        if not stated and not any(self.file.has_tensor(one, layer) for one in ("attn_q_norm", "attn_k_norm")):
            return None
        return self.rms_norm(role, layer, self.sizes.head_dim)


FAMILY = Family(
    name="glm4_moe",
    gguf="glm4moe",
    hf_class="Glm4MoeForCausalLM",
    build=build,
    head=head,
    compared=("llama.cpp 0.3.36: greedy tokens",),
    not_covered="conversion; training",
    tensors=TENSORS
    | shared_expert("mlp.shared_experts")
    | {
        "ffn_norm": ("blk.{i}.post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
        "expert_corrections": ("blk.{i}.exp_probs_b", "model.layers.{i}.mlp.gate.e_score_correction_bias"),
    },
    defaults={
        "rms_norm_eps": 1e-5,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "partial_rotary_factor": 0.5,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 1,
    },
    usual_context=131_072,
    is_converted=False,
    is_trained=False,
    attention_bias_of_output=False,
    scoring="sigmoid",
    partial_rotary=True,
    windows=False,
)
