"""Multi-head latent attention (arXiv 2405.04434): keys and values of all heads come out of one vector of low rank.

That vector c is what is kept of a token, behind the turned part of keys, which heads share as well. A query q meets a
head's key W c as W^T q meets c (section 2.1.2), so all heads attend to the same vectors, and the sum that they come to
becomes the head's value afterwards. What is kept is key and value at once. Files have the turned part of a head behind
the other: here it comes first, and the rows of matrices are reordered for that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
import numpy.typing as npt

from pagoda.backends.base import Handle, Ops
from pagoda.backends.specs import AttentionSpec
from pagoda.errors import UnsupportedError
from pagoda.formats.quantized import QuantizedTensor, as_floats
from pagoda.models.family import ModelFile, floats, floats_of
from pagoda.models.layers import Attention, Decoder, Linear, Norm
from pagoda.models.ministral3 import read_growth
from pagoda.models.mtp import MtpHead
from pagoda.models.mtp_reader import read_head
from pagoda.models.reader import DecoderReader, LayerKind, Sizes, read_norm_eps, without_extra
from pagoda.models.rope import context_limit, read_rope, yarn_attention_factor
from pagoda.models.source import Settings
from pagoda.types import RawTensor

_BLK, _ATTENTION = "blk.{i}", "model.layers.{i}.self_attn"
LATENT_TENSORS = {
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
    """The sizes of latent attention; heads of queries are `rotary` turned numbers, then `plain` ones."""

    rotary: int
    plain: int
    values: int  # numbers of a head's values
    rank: int
    q_rank: int  # 0: queries come out of the input itself

    @property
    def query_dim(self) -> int:
        return self.rotary + self.plain

    @property
    def kept(self) -> int:
        """Numbers of what is kept of a token: the turned part of keys, then the vector of low rank."""
        return self.rotary + self.rank


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention(Attention):
    """Attention of all heads to vectors of low rank c.

    q (H * (rotary + plain), …); k (kept, E): the turned part of keys, then zeros; v (kept, E): zeros, then c.
    """

    latent: Latent
    q_down: Linear | None  # (q_rank, E)
    q_down_norm: Norm | None
    q_out: RawTensor  # [H, rank, plain]: what takes queries to the low rank
    latent_norm: Norm
    v_up: RawTensor  # [H, values, rank]

    @property
    def linears(self) -> dict[str, Linear]:
        return super(LatentAttention, self).linears | ({} if self.q_down is None else {"q_down": self.q_down})

    def turned_first(self, rows: Rows) -> Rows:
        """Rows of all heads of queries as files order them, in the order of `q`."""
        return turned_first(rows, self.spec.num_heads, self.latent.rotary)

    def forward(self, ops: Ops, layer: int, x: Handle) -> Handle:
        assert self.k is not None
        assert self.v is not None
        assert self.rope is not None
        of, heads = self.latent, self.spec.num_heads
        asked = x
        if self.q_down is not None and self.q_down_norm is not None:
            asked = self.q_down_norm.forward(ops, self.q_down.forward(ops, x))
        q = ops.head_linear(self.q.forward(ops, asked), self.q_out, kept=of.rotary)
        latents = self.latent_norm.forward(ops, self.v.forward(ops, x))
        k, q = ops.rope(ops.add(self.k.forward(ops, x), latents), 1, self.rope), ops.rope(q, heads, self.rope)
        attended = ops.attention(layer, q, k, None, self.spec)  # [T, H * rank]
        return self.output.forward(ops, ops.head_linear(attended, self.v_up))


def build_latent(file: ModelFile) -> Decoder:
    """A decoder all of whose layers attend so."""
    reader, kind = _open(file)
    return reader.decoder([kind] * reader.sizes.num_layers)


def latent_head(file: ModelFile, decoder: Decoder) -> MtpHead:
    """The head of such a decoder, whose layer attends so, too."""
    return read_head(*_open(file), decoder)


def _open(file: ModelFile) -> tuple[DecoderReader, LayerKind]:
    latent, sizes = _read_sizes(file)
    rope = read_rope(file, latent.rotary)
    scale = 1 / sqrt(latent.query_dim) * _stretch(file) ** 2
    kind = LayerKind(replace(rope, scale=1.0) if file.is_gguf else rope)
    return _Reader(file, sizes, latent, scale), kind


def _read_sizes(file: ModelFile) -> tuple[Latent, Sizes]:
    heads, gguf = file.integer("num_heads", high=1 << 12), file.is_gguf
    rotary = file.integer("rope.dimension_count" if gguf else "qk_rope_head_dim", low=2, high=1 << 12)
    apart = "_mla" if gguf and file.has_field("attention.key_length_mla") else ""  # where others are of the low rank
    if gguf:
        head_dim = file.integer(f"attention.key_length{apart}", low=rotary + 1, high=1 << 12)
    else:
        head_dim = rotary + file.integer("qk_nope_head_dim", high=1 << 12)
    values = file.integer(f"attention.value_length{apart}" if gguf else "v_head_dim", head_dim, high=1 << 12)
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
        num_kv_heads=1,
        head_dim=rotary + rank,
        max_context=context_limit(file),
        norm_eps=read_norm_eps(file),
    )
    return Latent(rotary, head_dim - rotary, values, rank, q_rank), without_extra(file, sizes)


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
        q_out, v_up = self._from_latents(layer)
        spec = AttentionSpec(
            s.num_heads, 1, of.kept, self.attention_scale, growth=read_growth(file), values_from=of.rotary
        )
        return LatentAttention(
            q=up,
            k=Linear(_with_zeros(both.part(of.rank, of.rank + of.rotary), behind=of.rank)),
            v=Linear(_with_zeros(both.part(0, of.rank), before=of.rotary)),
            output=self.linear("attn_output", s.hidden_size, s.num_heads * of.values, layer, bias=False),
            rope=kind.rope,
            spec=spec,
            latent=of,
            q_down=down,
            q_down_norm=norm,
            q_out=q_out,
            latent_norm=self._latent_norm(layer),
            v_up=v_up,
        )

    def _queries(self, layer: int) -> tuple[Linear | None, Linear, Norm | None]:
        s, of, file = self.sizes, self.latent, self.file
        wide = s.num_heads * of.query_dim
        if not of.q_rank:
            return None, Linear(self._turned_first(file.tensor("attn_q", (wide, s.hidden_size), layer))), None
        down = self.linear("q_down", of.q_rank, s.hidden_size, layer, bias=False)
        norm = Norm(file.tensor("q_down_norm", (of.q_rank,), layer), LATENT_EPS)
        return down, Linear(self._turned_first(file.tensor("q_up", (wide, of.q_rank), layer))), norm

    def _turned_first(self, raw: RawTensor) -> RawTensor:
        """The matrix with each head's rows reordered: its turned part, which files have last, comes first."""
        return _picked(raw, turned_first(np.arange(raw.shape[0]), self.sizes.num_heads, self.latent.rotary))

    def _latent_norm(self, layer: int) -> Norm:
        """Of a vector with zeros before it, which its mean counts."""
        of = self.latent
        weight, share = self.file.tensor("kv_down_norm", (of.rank,), layer), of.rank / of.kept
        padded = np.pad(as_floats(weight) * np.float32(sqrt(share)), (of.rotary, 0))
        return Norm(replace(floats(f"{weight.name}+", padded), part_of=weight.name), LATENT_EPS * share)

    def _from_latents(self, layer: int) -> tuple[RawTensor, RawTensor]:
        """→ what makes queries ask for latents [H, rank, plain], what makes values of latents [H, values, rank]"""
        s, of, file = self.sizes, self.latent, self.file
        if file.is_gguf and any(file.has_tensor(role, layer) for role in ("k_up", "v_up")):
            keys = file.tensor("k_up", (s.num_heads, of.rank, of.plain), layer)
            values = file.tensor("v_up", (s.num_heads, of.values, of.rank), layer)
            return floats_of(keys, as_floats(keys)), floats_of(values, as_floats(values))
        both = file.tensor("kv_up", (s.num_heads * (of.plain + of.values), of.rank), layer)
        heads = as_floats(both).reshape(s.num_heads, -1, of.rank)
        return (
            floats_of(both, heads[:, : of.plain].swapaxes(1, 2), "[keys]"),
            floats_of(both, heads[:, of.plain :], "[values]"),
        )


def turned_first(rows: Rows, heads: int, rotary: int) -> Rows:
    """Rows of so many heads, the last `rotary` of each before the others."""
    return np.roll(rows.reshape(heads, -1), rotary, axis=1).reshape(-1)


def _picked(raw: RawTensor, rows: Rows) -> RawTensor:
    """The matrix of these rows of `raw`, in this order."""
    if isinstance(raw, QuantizedTensor):
        return raw.picked(rows)
    name, part_of = f"{raw.name}[{rows[0]}…]", raw.part_of or raw.name
    return replace(
        raw, name=name, shape=(len(rows), *raw.shape[1:]), data=raw.rows()[rows].reshape(-1), part_of=part_of
    )


def _with_zeros(raw: RawTensor, *, before: int = 0, behind: int = 0) -> RawTensor:
    """The matrix with so many rows of 0 above and below it. Bytes of 0 stand for 0 in every block type."""
    around = ((before, behind), (0, 0))
    if isinstance(raw, QuantizedTensor):
        return floats(f"{raw.name}+", np.pad(as_floats(raw), around))
    rows = np.pad(raw.rows(), around)
    return replace(raw, name=f"{raw.name}+", shape=(len(rows), raw.shape[1]), data=rows.reshape(-1))
