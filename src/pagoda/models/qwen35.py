"""Qwen3.5 and 3.6, text, and Qwen3-Next: three layers in four are gated delta nets, which keep a state instead of keys
and values; the others are attention whose output is gated. Dense, or with a mixture of experts beside a shared one.

Norms multiply by 1 + w, but for those of delta nets' heads; GGUF files hold that sum, and -exp(A_log) as `ssm_a`. Where
there are more value heads than key heads, GGUF files have them in another order (`DeltaSpec.tiled`). The head that
predicts several tokens (MTP) has attention. The vision model is left out.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pagoda.backends.specs import DeltaSpec
from pagoda.errors import FormatError
from pagoda.models.experts import shared_expert
from pagoda.models.family import Family, ModelFile, negative_exp
from pagoda.models.layers import Attention, Decoder, Linear, Norm
from pagoda.models.mtp import MtpHead
from pagoda.models.mtp_reader import read_head
from pagoda.models.names import TENSORS
from pagoda.models.reader import DecoderReader, LayerKind, Sizes, read_sizes, without_extra
from pagoda.models.recurrent import MAX_HEADS, MAX_SIZE, DeltaNet, gguf_heads
from pagoda.models.rope import read_rope
from pagoda.types import RawTensor

_LINEAR = "model.layers.{i}.linear_attn"
DELTA_TENSORS = {
    "ffn_norm": ("blk.{i}.post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
    "attn_qkv": ("blk.{i}.attn_qkv", f"{_LINEAR}.in_proj_qkv"),
    "delta_gate": ("blk.{i}.attn_gate", f"{_LINEAR}.in_proj_z"),
    "delta_alpha": ("blk.{i}.ssm_alpha", f"{_LINEAR}.in_proj_a"),
    "delta_beta": ("blk.{i}.ssm_beta", f"{_LINEAR}.in_proj_b"),
    "delta_output": ("blk.{i}.ssm_out", f"{_LINEAR}.out_proj"),
    "delta_conv": ("blk.{i}.ssm_conv1d", f"{_LINEAR}.conv1d"),
    "delta_norm": ("blk.{i}.ssm_norm", f"{_LINEAR}.norm"),
    "delta_decay": ("blk.{i}.ssm_a", f"{_LINEAR}.A_log"),
    "delta_dt_bias": ("blk.{i}.ssm_dt.bias", f"{_LINEAR}.dt_bias"),
}
HEAD_NAMES = {  # as a layer after the last has them, the first one's
    "mtp.fc.": "eh_proj.",
    "mtp.pre_fc_norm_embedding.": "enorm.",
    "mtp.pre_fc_norm_hidden.": "hnorm.",
    "mtp.norm.": "shared_head.norm.",
    "mtp.layers.0.": "",
    "mtp.": "others.",
}
SHARED_EXPERT_TENSORS = shared_expert("mlp.shared_expert", "mlp.shared_expert_gate")


def build(file: ModelFile) -> Decoder:
    reader, kind = _open(file)
    return reader.decoder([kind] * reader.sizes.num_layers)


def head(file: ModelFile, decoder: Decoder) -> MtpHead:
    reader, kind = _open(file)
    reader.recurs.append(False)
    return read_head(reader, kind, decoder)


def _open(file: ModelFile) -> tuple[HybridReader, LayerKind]:
    sizes = without_extra(file, read_sizes(file)) if file.is_gguf else read_sizes(file)
    reader_class = PackedReader if "delta_ba" in file.family.tensors else HybridReader
    reader = reader_class(file, sizes, read_delta(file), recurrent_layers(file, sizes.num_layers))
    return reader, LayerKind(read_rope(file, sizes.head_dim))


def recurrent_layers(file: ModelFile, num_layers: int) -> list[bool]:
    """Which layers have a state. FormatError where no layer has attention."""
    found = _recurrent_layers(file, num_layers)
    if all(found):
        raise FormatError("no layer has attention")
    return found


def _recurrent_layers(file: ModelFile, num_layers: int) -> list[bool]:
    """Layer by layer where the file says so, else all but the last of each `full_attention_interval`."""
    if file.is_gguf:
        key = file.key("attention.recurrent_layers")
        if file.settings.is_sequence(key):  # also of blocks that are left out
            count = file.integer("num_layers", high=1 << 12)
            return [bool(recurrent) for recurrent in file.settings.sequence(key, count)[:num_layers]]
    elif file.settings.get("layer_types") is not None:
        types = file.settings.sequence("layer_types", num_layers)
        for kind in types:
            if kind not in ("linear_attention", "full_attention"):
                raise file.settings.error("layer_types", kind, "must be of linear_attention and full_attention")
        return [kind == "linear_attention" for kind in types]
    interval = file.integer("full_attention_interval", 4, high=1 << 12)
    return [bool((layer + 1) % interval) for layer in range(num_layers)]


def read_delta(file: ModelFile) -> DeltaSpec:
    """The heads of the delta nets. FormatError where value heads cannot share key heads evenly."""
    if file.is_gguf:
        v_heads, k_heads, k_dim, v_dim = gguf_heads(file)
    else:
        k_heads, v_heads = (file.integer(f"linear_num_{of}_heads", high=MAX_HEADS) for of in ("key", "value"))
        k_dim, v_dim = (file.integer(f"linear_{of}_head_dim", high=MAX_SIZE) for of in ("key", "value"))
    if v_heads % k_heads:
        raise FormatError(f"{v_heads} value heads cannot share {k_heads} key heads evenly")
    return DeltaSpec(k_heads, v_heads, k_dim, v_dim, tiled=file.is_gguf and file.family.tiled_heads)


class HybridReader(DecoderReader):
    """Reads delta nets in the layers that recur, gated attention in the others."""

    def __init__(self, file: ModelFile, sizes: Sizes, delta: DeltaSpec, recurs: list[bool]) -> None:
        super().__init__(file, sizes)
        self.delta = delta
        self.recurs = recurs
        self.taps = file.integer("ssm.conv_kernel" if file.is_gguf else "linear_conv_kernel_dim", low=2, high=64)

    def attention(self, layer: int, kind: LayerKind) -> Attention | None:
        return None if self.recurs[layer] else super().attention(layer, kind)

    def recurrent(self, layer: int) -> DeltaNet | None:
        return self.delta_net(layer) if self.recurs[layer] else None

    def queries(self, layer: int) -> tuple[Linear, Linear]:
        """Queries and their gate: of each head the rows of the one, then those of the other."""
        s = self.sizes
        both = self.file.tensor("attn_q", (2 * s.q_size, s.hidden_size), layer)
        return Linear(both.run(0, 2, s.num_heads)), Linear(both.run(1, 2, s.num_heads))

    def qkv(self, layer: int) -> tuple[Linear, Linear, Linear]:
        s = self.sizes
        k, v = (self.linear(role, s.kv_size, s.hidden_size, layer, bias=False) for role in ("attn_k", "attn_v"))
        return self.queries(layer)[0], k, v

    def gate(self, layer: int) -> Linear:
        return self.queries(layer)[1]

    @property
    def value_size(self) -> int:
        return self.delta.num_v_heads * self.delta.v_dim

    @property
    def mixed_size(self) -> int:
        """The columns of queries, keys and values together."""
        return 2 * self.delta.num_k_heads * self.delta.k_dim + self.value_size

    def delta_net(self, layer: int) -> DeltaNet:
        spec, hidden = self.delta, self.sizes.hidden_size
        qkv, gate = self.qkv_gate(layer)
        alpha, beta = self.alpha_beta(layer)
        return DeltaNet(
            qkv=qkv,
            gate=gate,
            alpha=alpha,
            beta=beta,
            output=self.linear("delta_output", hidden, self.value_size, layer, bias=False),
            conv=self.conv("delta_conv", self.mixed_size, self.taps, layer),
            decay=self.decay(layer),
            dt_bias=self.file.tensor("delta_dt_bias", (spec.num_v_heads,), layer, suffix=""),
            norm=Norm(self.file.tensor("delta_norm", (spec.v_dim,), layer), self.sizes.norm_eps),
            spec=spec,
        )

    def qkv_gate(self, layer: int) -> tuple[Linear, Linear]:
        hidden = self.sizes.hidden_size
        qkv = self.linear("attn_qkv", self.mixed_size, hidden, layer, bias=False)
        return qkv, self.linear("delta_gate", self.value_size, hidden, layer, bias=False)

    def alpha_beta(self, layer: int) -> tuple[Linear, Linear]:
        rows, columns = self.delta.num_v_heads, self.sizes.hidden_size
        alpha, beta = (self.linear(f"delta_{of}", rows, columns, layer, bias=False) for of in ("alpha", "beta"))
        return alpha, beta

    def decay(self, layer: int) -> RawTensor:
        raw = self.file.tensor("delta_decay", (self.delta.num_v_heads,), layer, suffix="")
        return raw if self.file.is_gguf else negative_exp(raw)


class PackedReader(HybridReader):
    """Qwen3-Next: of each key head, the rows of beta, then those of alpha of its value heads; in Hugging Face folders
    also those of q, k, v and the gate, in one matrix."""

    def alpha_beta(self, layer: int) -> tuple[Linear, Linear]:
        spec = self.delta
        both = self.file.tensor("delta_ba", (2 * spec.num_v_heads, self.sizes.hidden_size), layer)
        return Linear(both.run(1, 2, spec.num_k_heads)), Linear(both.run(0, 2, spec.num_k_heads))

    def qkv_gate(self, layer: int) -> tuple[Linear, Linear]:
        if self.file.is_gguf:
            return super().qkv_gate(layer)
        spec, hidden = self.delta, self.sizes.hidden_size
        whole = self.file.tensor("delta_qkvz", (self.mixed_size + self.value_size, hidden), layer)
        heads = whole.data.reshape(spec.num_k_heads, -1)  # the rows of each key head
        values = self.value_size // spec.num_k_heads
        stops = np.cumsum([spec.k_dim, spec.k_dim, values, values]) * whole.num_bytes // whole.shape[0]
        q, k, v, z = np.split(heads, stops[:-1], axis=1)
        qkv = np.concatenate([part.reshape(-1) for part in (q, k, v)])
        mixed = replace(whole, name=f"{whole.name}[qkv]", shape=(self.mixed_size, hidden), data=qkv, part_of=whole.name)
        gate = replace(whole, name=f"{whole.name}[z]", shape=(self.value_size, hidden), data=z, part_of=whole.name)
        return Linear(mixed), Linear(gate)


DENSE = Family(
    name="qwen3_5",
    gguf="qwen35",
    hf_class="Qwen3_5ForCausalLM",
    model_type="qwen3_5_text",
    build=build,
    usual_context=32_768,
    tensors=TENSORS | DELTA_TENSORS,
    defaults={
        "partial_rotary_factor": 0.25,
        "head_dim": 256,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
    },
    norm_offset=1.0,
    left_out={"model.visual.": "the vision model"},
    head=head,
    head_names={f"{outer}{name}": of_layer for outer in ("", "model.") for name, of_layer in HEAD_NAMES.items()},
    qk_norm=True,
    gated_queries=True,
    tiled_heads=True,
    partial_rotary=True,
    windows=False,
)

MIXTURE = replace(
    DENSE,
    name="qwen3_5_moe",
    gguf="qwen35moe",
    hf_class="Qwen3_5MoeForCausalLM",
    model_type="qwen3_5_moe_text",
    tensors=TENSORS | DELTA_TENSORS | SHARED_EXPERT_TENSORS,
    defaults={
        **DENSE.defaults,
        "num_key_value_heads": 2,
        "intermediate_size": 512,  # of no layer: all have experts
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "num_experts_per_tok": 8,
        "num_experts": 256,
    },
    gguf_defaults={"feed_forward_length": 512},
)

NEXT = replace(
    MIXTURE,
    name="qwen3_next",
    gguf="qwen3next",
    hf_class="Qwen3NextForCausalLM",
    model_type="",
    tensors=TENSORS
    | DELTA_TENSORS
    | SHARED_EXPERT_TENSORS
    | {
        "delta_ba": ("blk.{i}.ssm_ba", f"{_LINEAR}.in_proj_ba"),
        "delta_qkvz": ("", f"{_LINEAR}.in_proj_qkvz"),
    },
    defaults={**MIXTURE.defaults, "num_experts_per_tok": 10, "num_experts": 512},
    tiled_heads=False,
)
