"""Mistral Small 4, text: keys and values of all heads come out of one vector of low rank (multi-head latent attention,
arXiv 2405.04434), with a mixture of experts beside a shared one. YaRN, and queries that grow with their position, as in
Ministral 3.

Keys and values are kept for each head, as they come out of the low rank; the vector itself would take a fraction. Files
have the turned part of a head behind the other, and one of keys for all heads: here it comes first, and the rows of
matrices are reordered for that. Values must be as wide as keys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from pagoda.backends.base import Handle, Ops
from pagoda.backends.specs import AttentionSpec
from pagoda.errors import UnsupportedError
from pagoda.formats.quantized import QuantizedTensor, as_floats
from pagoda.models.experts import shared_expert
from pagoda.models.family import SENSES, Family, ModelFile, floats
from pagoda.models.layers import Attention, Decoder, Linear, Norm, same_row
from pagoda.models.ministral3 import read_growth
from pagoda.models.names import TENSORS
from pagoda.models.reader import DecoderReader, LayerKind, Sizes, read_norm_eps
from pagoda.models.rope import context_limit, read_rope, yarn_attention_factor
from pagoda.models.source import Settings
from pagoda.text.builtin_templates import LLAMA2
from pagoda.types import RawTensor

_BLK, _ATTENTION = "blk.{i}", "model.layers.{i}.self_attn"
NAMES = {
    "q_down": (f"{_BLK}.attn_q_a", f"{_ATTENTION}.q_a_proj"),
    "q_down_norm": (f"{_BLK}.attn_q_a_norm", f"{_ATTENTION}.q_a_layernorm"),
    "q_up": (f"{_BLK}.attn_q_b", f"{_ATTENTION}.q_b_proj"),
    "kv_down": (f"{_BLK}.attn_kv_a_mqa", f"{_ATTENTION}.kv_a_proj_with_mqa"),
    "kv_down_norm": (f"{_BLK}.attn_kv_a_norm", f"{_ATTENTION}.kv_a_layernorm"),
    "kv_up": (f"{_BLK}.attn_kv_b", f"{_ATTENTION}.kv_b_proj"),
    "k_up": (f"{_BLK}.attn_k_b", ""),
    "v_up": (f"{_BLK}.attn_v_b", ""),
}
LATENT_EPS = 1e-6  # of norms of low rank, whatever files say of the others
GGUF_YARN_UNIT = 0.1  # by which the converter multiplies what it calls yarn_log_multiplier
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Latent:
    """The sizes of latent attention; heads are `rotary` turned numbers, then `plain` ones."""

    rotary: int
    plain: int
    rank: int
    q_rank: int  # 0: queries come out of the input itself


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention(Attention):
    """Attention whose q, k and v read vectors of low rank."""

    q_down: Linear | None  # (q_rank, E)
    q_down_norm: Norm | None
    kv_down: Linear  # (rank, E)
    kv_down_norm: Norm
    rotary: Linear  # (D, E): the turned part of keys, which all heads share, and zeros

    @property
    def linears(self) -> dict[str, Linear]:
        own = {"q_down": self.q_down, "kv_down": self.kv_down, "rotary": self.rotary}
        return {**super().linears, **{name: linear for name, linear in own.items() if linear is not None}}

    def forward(self, ops: Ops, layer: int, x: Handle) -> Handle:
        assert self.k is not None
        assert self.v is not None
        assert self.rope is not None
        heads = self.spec.num_heads
        asked = x
        if self.q_down is not None and self.q_down_norm is not None:
            asked = self.q_down_norm.forward(ops, self.q_down.forward(ops, x))
        latent = self.kv_down_norm.forward(ops, self.kv_down.forward(ops, x))
        each = same_row(ops, floats(f"ones.1.{heads}", np.ones((1, heads))))
        shared = ops.mix_streams(self.rotary.forward(ops, x), each, 1)  # [T, H * D]: the same for all heads
        k = ops.rope(ops.add(self.k.forward(ops, latent), shared), heads, self.rope)
        q = ops.rope(self.q.forward(ops, asked), heads, self.rope)
        return self.output.forward(ops, ops.attention(layer, q, k, self.v.forward(ops, latent), self.spec))


def build(file: ModelFile) -> Decoder:
    latent, sizes = _read_sizes(file)
    rope = read_rope(file, latent.rotary)
    scale = 1 / sqrt(sizes.head_dim) * _stretch(file) ** 2
    kind = LayerKind(replace(rope, scale=1.0) if file.is_gguf else rope)
    return _Reader(file, sizes, latent, scale).decoder([kind] * sizes.num_layers)


def _read_sizes(file: ModelFile) -> tuple[Latent, Sizes]:
    heads, gguf = file.integer("num_heads", high=1 << 12), file.is_gguf
    rotary = file.integer("rope.dimension_count" if gguf else "qk_rope_head_dim", low=2, high=1 << 12)
    if gguf:
        head_dim = file.integer("attention.key_length_mla", low=rotary + 1, high=1 << 12)
    else:
        head_dim = rotary + file.integer("qk_nope_head_dim", high=1 << 12)
    value_dim = file.integer("attention.value_length_mla" if gguf else "v_head_dim", head_dim, high=1 << 12)
    if value_dim != head_dim:
        raise UnsupportedError(f"keys of {head_dim} numbers and values of {value_dim} are not supported")
    if not gguf and not file.settings.flag("rope_interleave", True):
        raise UnsupportedError(
            "rope_interleave false: rotary pairs that lie apart are not supported in latent attention"
        )
    rank = file.integer("attention.kv_lora_rank" if gguf else "kv_lora_rank", high=1 << 20)
    q_key = "attention.q_lora_rank" if gguf else "q_lora_rank"
    q_rank = file.integer(q_key, 0, low=0, high=1 << 20) if file.has_field(q_key) else 0
    sizes = Sizes(
        num_layers=file.integer("num_layers", high=1 << 12),
        hidden_size=file.integer("hidden_size", high=1 << 20),
        ffn_size=file.integer("ffn_size", high=1 << 22),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        max_context=context_limit(file),
        norm_eps=read_norm_eps(file),
    )
    return Latent(rotary, head_dim - rotary, rank, q_rank), sizes


def _stretch(file: ModelFile) -> float:
    """What YaRN multiplies queries and keys with, each."""
    if file.is_gguf:
        factor = file.optional_number("rope.scaling.factor") or 1.0
        return yarn_attention_factor(
            factor, (file.optional_number("rope.scaling.yarn_log_multiplier") or 0.0) / GGUF_YARN_UNIT
        )
    rope = file.settings.section("rope_parameters") or file.settings.section("rope_scaling") or Settings({})
    if rope.text("rope_type", rope.text("type", "default")) == "default" or not rope.get("mscale_all_dim"):
        return 1.0
    return yarn_attention_factor(rope.number("factor"), rope.number("mscale_all_dim"))


class _Reader(DecoderReader):
    def __init__(self, file: ModelFile, sizes: Sizes, latent: Latent, attention_scale: float) -> None:
        super().__init__(file, sizes, attention_scale=attention_scale)
        self.latent = latent

    def attention(self, layer: int, kind: LayerKind) -> LatentAttention:
        s, of, file = self.sizes, self.latent, self.file
        down, up, norm = self._queries(layer)
        both = file.tensor("kv_down", (of.rank + of.rotary, s.hidden_size), layer)
        k, v = self._keys_values(layer)
        return LatentAttention(
            q=up,
            k=k,
            v=v,
            output=self.linear("attn_output", s.hidden_size, s.q_size, layer, bias=False),
            rope=kind.rope,
            spec=AttentionSpec(s.num_heads, s.num_heads, s.head_dim, self.attention_scale, growth=read_growth(file)),
            q_down=down,
            q_down_norm=norm,
            kv_down=Linear(both.part(0, of.rank)),
            kv_down_norm=Norm(file.tensor("kv_down_norm", (of.rank,), layer), LATENT_EPS),
            rotary=Linear(_with_zeros(both.part(of.rank, of.rank + of.rotary), of.plain)),
        )

    def _queries(self, layer: int) -> tuple[Linear | None, Linear, Norm | None]:
        s, rank, file = self.sizes, self.latent.q_rank, self.file
        if not rank:
            return None, Linear(self._turned_first(file.tensor("attn_q", (s.q_size, s.hidden_size), layer))), None
        down = self.linear("q_down", rank, s.hidden_size, layer, bias=False)
        norm = Norm(file.tensor("q_down_norm", (rank,), layer), LATENT_EPS)
        return down, Linear(self._turned_first(file.tensor("q_up", (s.q_size, rank), layer))), norm

    def _turned_first(self, raw: RawTensor) -> RawTensor:
        """The matrix with each head's rows reordered: its turned part, which files have last, comes first."""
        heads = np.arange(raw.shape[0]).reshape(self.sizes.num_heads, -1)
        return _picked(raw, np.roll(heads, self.latent.rotary, axis=1).reshape(-1))

    def _keys_values(self, layer: int) -> tuple[Linear, Linear]:
        """Of all heads (H * D, rank), the turned parts of keys zero."""
        s, of, file = self.sizes, self.latent, self.file
        if file.is_gguf and file.has_tensor("k_up", layer):
            stack = file.tensor("k_up", (s.num_heads, of.rank, of.plain), layer)
            upright = as_floats(stack).swapaxes(1, 2)
            v = file.tensor("v_up", (s.num_heads, s.head_dim, of.rank), layer)
            v = replace(v, shape=(s.q_size, of.rank))
        else:
            both = file.tensor("kv_up", (s.num_heads * (of.plain + s.head_dim), of.rank), layer)
            rows = np.arange(both.shape[0]).reshape(s.num_heads, -1)
            v = _picked(both, rows[:, of.plain :].reshape(-1))
            upright = as_floats(_picked(both, rows[:, : of.plain].reshape(-1))).reshape(s.num_heads, of.plain, of.rank)
            stack = both
        k = np.pad(upright, ((0, 0), (of.rotary, 0), (0, 0))).reshape(s.q_size, of.rank)
        keys = replace(floats(f"{stack.name}[keys]", k), part_of=stack.part_of or stack.name)
        return Linear(keys), Linear(v)


def _picked(raw: RawTensor, rows: Rows) -> RawTensor:
    """The matrix of these rows of `raw`, in this order."""
    if isinstance(raw, QuantizedTensor):
        return raw.picked(rows)
    name, part_of = f"{raw.name}[{rows[0]}…]", raw.part_of or raw.name
    return replace(
        raw, name=name, shape=(len(rows), *raw.shape[1:]), data=raw.rows()[rows].reshape(-1), part_of=part_of
    )


def _with_zeros(raw: RawTensor, count: int) -> RawTensor:
    """The matrix and below it `count` rows of 0. Bytes of 0 stand for 0 in every block type."""
    if isinstance(raw, QuantizedTensor):
        return floats(f"{raw.name}+", np.pad(as_floats(raw), ((0, count), (0, 0))))
    data = np.pad(raw.rows(), ((0, count), (0, 0))).reshape(-1)
    return replace(raw, name=f"{raw.name}+", shape=(raw.shape[0] + count, raw.shape[1]), data=data)


def _config(config: Any) -> Any:
    """The turned share of a head stands for itself in other keys."""
    rope = Settings(config).section("rope_parameters")
    if rope is None:
        return config
    return {**config, "rope_parameters": {**config["rope_parameters"], "partial_rotary_factor": None}}


FAMILY = Family(
    name="mistral4",
    gguf="mistral4",
    hf_class="Mistral4ForCausalLM",
    build=build,
    not_covered="conversion; training",
    usual_context=1_048_576,
    tensors=TENSORS | NAMES | shared_expert("mlp.shared_experts"),
    adapt_config=_config,
    defaults={
        "num_attention_heads": 32,
        "kv_lora_rank": 256,
        "q_lora_rank": 1024,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 64,
        "v_head_dim": 128,
        "intermediate_size": 12_288,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 128,
        "num_experts_per_tok": 4,
        "n_shared_experts": 1,
    },
    gguf_norm_topk=False,
    is_converted=False,
    is_trained=False,
    left_out=SENSES,
    adjacent_pairs=True,
    chat_template=LLAMA2,
    windows=False,
)
