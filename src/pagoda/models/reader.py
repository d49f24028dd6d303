"""Reading a decoder: the sizes, then the parts that `layers.py` is made of. What families share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import sqrt

from pagoda.backends.specs import Activation, AttentionSpec, RopeSpec
from pagoda.errors import FormatError, UnsupportedError
from pagoda.models.experts import read_experts, read_layer
from pagoda.models.family import ModelFile, zeros
from pagoda.models.layers import (
    AnyNorm,
    Attention,
    Block,
    Decoder,
    Experts,
    FeedForward,
    LayerNorm,
    Linear,
    Norm,
    Recurrent,
)
from pagoda.models.rope import MAX_LENGTH, context_limit
from pagoda.models.source import Settings
from pagoda.types import RawTensor

MAX_VOCAB = 1 << 24

# config.json spells activations in several ways; GGUF does not name them.
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "relu2": "relu2",
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Checked against each other here, and against the tensors as they are read."""

    num_layers: int
    hidden_size: int
    ffn_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_context: int
    norm_eps: float

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What differs between the layers of one model."""

    rope: RopeSpec | None
    window: int | None = None


def read_sizes(file: ModelFile, *, num_kv_heads: int | None = None, ffn_size: int | None = None) -> Sizes:
    """FormatError for settings that no model could have. What is given was read already."""
    hidden_size = file.integer("hidden_size", high=1 << 20)
    num_heads = file.integer("num_heads", high=1 << 12)
    if num_kv_heads is None:
        num_kv_heads = file.integer("num_kv_heads", num_heads, high=num_heads)
    if num_heads % num_kv_heads:
        raise FormatError(f"{num_heads} query heads cannot share {num_kv_heads} KV heads evenly")
    return Sizes(
        num_layers=file.integer("num_layers", high=1 << 12),
        hidden_size=hidden_size,
        ffn_size=file.integer("ffn_size", high=1 << 22) if ffn_size is None else ffn_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_read_head_dim(file, hidden_size, num_heads),
        max_context=context_limit(file),
        norm_eps=read_norm_eps(file),
    )


def without_extra(file: ModelFile, sizes: Sizes) -> Sizes:
    """Without the layers that predict several tokens (MTP), which come last and are left out: GGUF counts them."""
    if not file.is_gguf:
        file.skip_layers(sizes.num_layers, file.integer("num_nextn_predict_layers", 0, low=0, high=1 << 12))
        return sizes
    extra = file.integer("nextn_predict_layers", 0, low=0, high=sizes.num_layers - 1)
    file.skip_layers(sizes.num_layers - extra, extra)
    return replace(sizes, num_layers=sizes.num_layers - extra)


def read_each(file: ModelFile, field: str, num_layers: int, *, low: int = 1) -> list[int]:
    """One number a layer; files may state a single one for all."""
    key = file.key(field)
    if not file.settings.is_sequence(key):
        return [file.integer(field, low=low, high=1 << 22)] * num_layers
    return [Settings({key: n}).integer(key, low=low, high=1 << 22) for n in file.settings.sequence(key, num_layers)]


def read_kv_heads(file: ModelFile) -> tuple[int, list[bool]]:
    """The KV heads of layers with attention, and which layers have it: those that state some.

    FormatError where none has; UnsupportedError where their numbers differ.
    """
    found = read_each(file, "num_kv_heads", file.integer("num_layers", high=1 << 12), low=0)
    kinds = set(found) - {0}
    if not kinds:
        raise FormatError("no layer has attention")
    if len(kinds) > 1:
        raise UnsupportedError(f"{file.key('num_kv_heads')} differs between layers with attention: {sorted(kinds)}")
    return kinds.pop(), [heads > 0 for heads in found]


def read_norm_eps(file: ModelFile) -> float:
    told_otherwise = file.is_gguf and not file.has_field("norm_eps") and file.has_field("layer_norm_eps")
    if file.family.layer_norm or told_otherwise:
        return file.number("layer_norm_eps", None if file.is_gguf else 1e-5, high=1.0)
    return file.number("norm_eps", None if file.is_gguf else 1e-6, high=1.0)


def _read_head_dim(file: ModelFile, hidden_size: int, num_heads: int) -> int:
    if not file.has_field("head_dim") and hidden_size % num_heads:
        raise FormatError(f"a hidden size of {hidden_size} does not divide into {num_heads} heads")
    head_dim = file.integer("head_dim", hidden_size // num_heads, low=2, high=1 << 12)
    if head_dim % 2:
        raise FormatError(f"{file.key('head_dim')} is {head_dim}, must be even")
    if file.is_gguf and file.integer("attention.value_length", head_dim, high=1 << 12) != head_dim:
        raise UnsupportedError("keys and values of different head sizes are not supported")
    return head_dim


def read_window(file: ModelFile, max_context: int) -> int | None:
    """The sliding window; None where there is none or it never ends before the context does."""
    window = file.integer("window", max_context, low=0, high=MAX_LENGTH)
    return window if 0 < window < max_context else None


def read_layer_types(file: ModelFile, num_layers: int) -> list[bool] | None:
    """Which layers slide, by config.json's `layer_types`; None where it has none."""
    if file.is_gguf or file.settings.get("layer_types") is None:
        return None
    types = file.settings.sequence("layer_types", num_layers)
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedError(f"layer type {kind!r} is not supported")
    return [kind == "sliding_attention" for kind in types]


def sliding_layers(file: ModelFile, num_layers: int) -> list[bool]:
    """Layer by layer where the file says so, else all but the last of each `pattern` layers."""
    types = read_layer_types(file, num_layers)
    if types is not None:
        return types
    key = file.key("window_pattern")
    if file.settings.is_sequence(key):
        return [bool(sliding) for sliding in file.settings.sequence(key, num_layers)]
    pattern = file.integer("window_pattern", file.family.window_pattern, high=1 << 12)
    return [bool((layer + 1) % pattern) for layer in range(num_layers)]


def read_activation(file: ModelFile, key: str, default: Activation) -> Activation:
    if file.is_gguf:
        return default
    name = file.settings.text(key, default)
    if name not in ACTIVATIONS and name != default:
        raise UnsupportedError(f"activation {name!r} is not supported; supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS.get(name, default)


class DecoderReader:
    """Reads the parts of a decoder, those that its `Family` says it has."""

    def __init__(
        self,
        file: ModelFile,
        sizes: Sizes,
        *,
        activation: Activation | None = None,
        attention_scale: float | None = None,
    ) -> None:
        self.file = file
        self.family = file.family
        self.sizes = sizes
        self.activation = activation or read_activation(file, "hidden_act", file.family.activation)
        self.attention_scale = 1 / sqrt(sizes.head_dim) if attention_scale is None else attention_scale
        attention_bias = not file.is_gguf and file.settings.flag("attention_bias")
        self.qkv_bias = self.family.qkv_bias or attention_bias
        self.output_bias = self.family.output_has_bias(attention_bias)
        self.experts = read_experts(file, sizes.num_layers, sizes.ffn_size)
        self.parallel = self.family.parallel
        self.fused_ffn = self.family.fused or self.family.fused_ffn
        self.ffn_bias = not file.is_gguf and file.settings.flag("mlp_bias")

    def decoder(self, kinds: Sequence[LayerKind], *, embedding_scale: float = 1.0, logit_scale: float = 1.0) -> Decoder:
        """The whole model, a `LayerKind` a layer. Raises if the file lacks a tensor or holds one too many."""
        embedding = self.file.tensor("embedding", (None, self.sizes.hidden_size))
        self._check_vocab(embedding)
        decoder = Decoder(
            embedding=embedding,
            blocks=tuple(self.block(i, kind) for i, kind in enumerate(kinds)),
            output_norm=self.norm("output_norm"),
            output=self.output(embedding),
            max_context=self.sizes.max_context,
            embedding_scale=embedding_scale,
            logit_softcap=self.file.optional_number("logit_softcap"),
            logit_scale=logit_scale,
        )
        self.file.check_all_read()
        return decoder

    def block(self, layer: int, kind: LayerKind) -> Block:
        return Block(
            attn_norm=self.norm("attn_norm", layer) if self.family.pre_norms else None,
            attention=self.attention(layer, kind),
            recurrent=self.recurrent(layer),
            ffn_norm=self.norm("ffn_norm", layer) if self.family.pre_norms and not self.parallel else None,
            ffn=self.ffn(layer),
            attn_post_norm=self.norm("attn_post_norm", layer) if self.family.post_norms else None,
            ffn_post_norm=self.norm("ffn_post_norm", layer) if self.family.post_norms else None,
            parallel=self.parallel,
        )

    def recurrent(self, layer: int) -> Recurrent | None:
        """What keeps a state, in attention's place or beside it."""
        return None

    def attention(self, layer: int, kind: LayerKind) -> Attention | None:
        s = self.sizes
        q, k, v = self.qkv(layer)
        return Attention(
            q=q,
            k=k,
            v=v,
            output=self.linear("attn_output", s.hidden_size, s.q_size, layer, bias=self.output_bias),
            rope=kind.rope,
            spec=AttentionSpec(
                num_heads=s.num_heads,
                num_kv_heads=s.num_kv_heads,
                head_dim=s.head_dim,
                scale=self.attention_scale,
                window=kind.window,
                softcap=self.file.optional_number("attention_softcap"),
            ),
            q_norm=self.qk_norm("attn_q_norm", layer, s.q_size),
            k_norm=self.qk_norm("attn_k_norm", layer, s.kv_size),
            whole_norms=self.family.whole_qk_norm,
            norms_last=self.family.norms_last,
            gate=self.gate(layer),
        )

    def gate(self, layer: int) -> Linear | None:
        """The gate of what attention gives."""
        return None

    def qk_norm(self, role: str, layer: int, size: int) -> Norm | None:
        if self.family.whole_qk_norm:
            return self.rms_norm(role, layer, size)
        return self.rms_norm(role, layer, self.sizes.head_dim) if self.family.qk_norm else None

    def qkv(self, layer: int) -> tuple[Linear, Linear, Linear]:
        """Queries, keys and values: of three matrices, or of one that holds all their rows."""
        s = self.sizes
        rows = (s.q_size, s.kv_size, s.kv_size)
        if self.file.has_tensor("attn_qkv", layer) or (self.family.fused and not self.file.has_tensor("attn_q", layer)):
            q, k, v = self.split(self.linear("attn_qkv", sum(rows), s.hidden_size, layer, bias=self.qkv_bias), rows)
        else:
            q, k, v = (
                self.linear(role, count, s.hidden_size, layer, bias=self.qkv_bias)
                for role, count in zip(("attn_q", "attn_k", "attn_v"), rows, strict=True)
            )
        return q, k, v

    def ffn(self, layer: int) -> FeedForward | Experts | None:
        if self.experts is not None and layer in self.experts.layers:
            return read_layer(self.file, layer, self.experts, self.sizes.hidden_size, self.activation)
        return self.feed_forward(layer, self.sizes.ffn_size)

    def feed_forward(self, layer: int, size: int, of: str = "") -> FeedForward:
        """Of `size` numbers; of: "_shexp" for a shared expert."""
        hidden, bias = self.sizes.hidden_size, self.ffn_bias
        gate: Linear | None
        if self.fused_ffn:
            gate, up = self.split(self.linear(f"ffn_up{of}", 2 * size, hidden, layer, bias=bias), (size, size))
        else:
            gate = self.linear(f"ffn_gate{of}", size, hidden, layer, bias=bias) if self.family.gated_ffn else None
            up = self.linear(f"ffn_up{of}", size, hidden, layer, bias=bias)
        return FeedForward(gate, up, self.linear(f"ffn_down{of}", hidden, size, layer, bias=bias), self.activation)

    def conv(self, role: str, columns: int, taps: int, layer: int) -> RawTensor:
        """A convolution of each column by itself, (C, taps); Hugging Face's has a dimension of 1 between."""
        shape = (columns, taps) if self.file.is_gguf else (columns, 1, taps)
        return replace(self.file.tensor(role, shape, layer), shape=(columns, taps))

    def split(self, fused: Linear, rows: Sequence[int]) -> list[Linear]:
        """The linears whose rows stand in one matrix, one after another; views of it."""
        stops = list(accumulate(rows))
        return [
            Linear(fused.weight.part(stop - n, stop), fused.bias and fused.bias.part(stop - n, stop))
            for n, stop in zip(rows, stops, strict=True)
        ]

    def linear(self, role: str, rows: int, columns: int, layer: int, *, bias: bool) -> Linear:
        """`bias` says that there must be one; one that is in the file is used anyway."""
        weight = self.file.tensor(role, (rows, columns), layer)
        if bias or self.file.has_tensor(role, layer, suffix="bias"):
            return Linear(weight, self.file.tensor(role, (rows,), layer, suffix="bias"))
        return Linear(weight)

    def norm(self, role: str, layer: int | None = None) -> AnyNorm:
        """Over a token's whole row, of the family's kind."""
        if not self.family.layer_norm:
            return self.rms_norm(role, layer)
        size = self.sizes.hidden_size
        weight = self.file.norm_weight(role, size, layer)
        if self.family.norm_bias:
            return LayerNorm(weight, self.file.tensor(role, (size,), layer, suffix="bias"), self.sizes.norm_eps)
        return LayerNorm(weight, zeros(f"{weight.name}.no_bias", size), self.sizes.norm_eps)

    def rms_norm(self, role: str, layer: int | None = None, size: int | None = None) -> Norm:
        return Norm(self.file.norm_weight(role, size or self.sizes.hidden_size, layer), self.sizes.norm_eps)

    def output(self, embedding: RawTensor) -> RawTensor:
        """The head: its own tensor, or the embedding where they are tied."""
        tied = None if self.file.is_gguf else self.file.settings.get("tie_word_embeddings")
        present = self.file.has_tensor("output")
        if tied is True and present:  # a copy that some tools write; the setting decides
            self.file.skip(self.file.tensor_name("output"))
        if tied is True or (tied is None and not present) or (self.file.is_gguf and not present):
            return embedding
        return self.file.tensor("output", embedding.shape)

    def _check_vocab(self, embedding: RawTensor) -> None:
        rows = embedding.shape[0]
        if not 0 < rows <= MAX_VOCAB:
            raise FormatError(f"tensor {embedding.name!r} has {rows} rows, must be from 1 to {MAX_VOCAB}")
        stated = rows if self.file.is_gguf else self.file.settings.integer("vocab_size", rows, high=MAX_VOCAB)
        if stated != rows:
            raise FormatError(f"tensor {embedding.name!r} has {rows} rows, but vocab_size is {stated}")
