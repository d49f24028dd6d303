"""Reading a dense decoder: the sizes, then the parts that `layers.py` is made of. What families share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from pagoda.backends.base import Activation, AttentionSpec, RopeSpec
from pagoda.errors import FormatError, UnsupportedError
from pagoda.models.layers import Attention, Block, Decoder, FeedForward, Linear, Norm
from pagoda.models.rope import MAX_LENGTH
from pagoda.models.source import ModelFile
from pagoda.types import RawTensor

MAX_VOCAB = 1 << 24

# config.json spells activations in several ways; GGUF does not name them.
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
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

    rope: RopeSpec
    window: int | None = None


def read_sizes(file: ModelFile) -> Sizes:
    """FormatError for settings that no model could have."""
    if file.is_gguf and file.integer("expert_count", 0, low=0, high=1 << 16):
        raise UnsupportedError("mixtures of experts are not supported")
    hidden_size = file.integer("hidden_size", high=1 << 20)
    num_heads = file.integer("num_heads", high=1 << 12)
    num_kv_heads = file.integer("num_kv_heads", num_heads, high=num_heads)
    if num_heads % num_kv_heads:
        raise FormatError(f"{num_heads} query heads cannot share {num_kv_heads} KV heads evenly")
    return Sizes(
        num_layers=file.integer("num_layers", high=1 << 12),
        hidden_size=hidden_size,
        ffn_size=file.integer("ffn_size", high=1 << 22),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_read_head_dim(file, hidden_size, num_heads),
        max_context=file.integer("max_context", high=MAX_LENGTH),
        norm_eps=file.number("norm_eps", None if file.is_gguf else 1e-6, high=1.0),
    )


def _read_head_dim(file: ModelFile, hidden_size: int, num_heads: int) -> int:
    if not file.has_field("head_dim") and hidden_size % num_heads:
        raise FormatError(f"a hidden size of {hidden_size} does not divide into {num_heads} heads")
    head_dim = file.integer("head_dim", hidden_size // num_heads, low=2, high=1 << 12)
    if head_dim % 2:
        raise FormatError(f"{file.key('head_dim')} is {head_dim}, must be even")
    if file.is_gguf and file.integer("attention.value_length", head_dim, high=1 << 12) != head_dim:
        raise UnsupportedError("keys and values of different head sizes are not supported")
    return head_dim


def read_window(file: ModelFile, max_context: int, default: int | None = None) -> int | None:
    """The sliding window; None where there is none or it never ends before the context does."""
    window = file.integer("window", default or max_context, low=0, high=MAX_LENGTH)
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


def read_activation(file: ModelFile, key: str, default: Activation) -> Activation:
    if file.is_gguf:
        return default
    name = file.settings.text(key, default)
    if name not in ACTIVATIONS and name != default:
        raise UnsupportedError(f"activation {name!r} is not supported; supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS.get(name, default)


class DenseReader:
    """Reads the parts of a dense decoder; a family sets what differs from Llama's."""

    def __init__(
        self,
        file: ModelFile,
        sizes: Sizes,
        *,
        activation: Activation = "silu",
        attention_scale: float | None = None,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        post_norms: bool = False,
    ) -> None:
        self.file = file
        self.sizes = sizes
        self.activation = activation
        self.attention_scale = 1 / sqrt(sizes.head_dim) if attention_scale is None else attention_scale
        config = not file.is_gguf
        self.qkv_bias = qkv_bias or (config and file.settings.flag("attention_bias"))
        self.output_bias = config and not qkv_bias and file.settings.flag("attention_bias")
        self.ffn_bias = config and file.settings.flag("mlp_bias")
        self.qk_norm = qk_norm
        self.post_norms = post_norms

    def decoder(self, kinds: Sequence[LayerKind], *, embedding_scale: float = 1.0) -> Decoder:
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
        )
        self.file.check_all_read()
        return decoder

    def block(self, layer: int, kind: LayerKind) -> Block:
        return Block(
            attn_norm=self.norm("attn_norm", layer),
            attention=self.attention(layer, kind),
            ffn_norm=self.norm("ffn_norm", layer),
            ffn=self.ffn(layer),
            attn_post_norm=self.norm("attn_post_norm", layer) if self.post_norms else None,
            ffn_post_norm=self.norm("ffn_post_norm", layer) if self.post_norms else None,
        )

    def attention(self, layer: int, kind: LayerKind) -> Attention:
        s = self.sizes
        return Attention(
            q=self.linear("attn_q", s.q_size, s.hidden_size, layer, bias=self.qkv_bias),
            k=self.linear("attn_k", s.kv_size, s.hidden_size, layer, bias=self.qkv_bias),
            v=self.linear("attn_v", s.kv_size, s.hidden_size, layer, bias=self.qkv_bias),
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
            q_norm=self.norm("attn_q_norm", layer, s.head_dim) if self.qk_norm else None,
            k_norm=self.norm("attn_k_norm", layer, s.head_dim) if self.qk_norm else None,
        )

    def ffn(self, layer: int) -> FeedForward:
        s = self.sizes
        return FeedForward(
            gate=self.linear("ffn_gate", s.ffn_size, s.hidden_size, layer, bias=self.ffn_bias),
            up=self.linear("ffn_up", s.ffn_size, s.hidden_size, layer, bias=self.ffn_bias),
            down=self.linear("ffn_down", s.hidden_size, s.ffn_size, layer, bias=self.ffn_bias),
            activation=self.activation,
        )

    def linear(self, role: str, rows: int, columns: int, layer: int, *, bias: bool) -> Linear:
        """`bias` says that there must be one; one that is in the file is used anyway."""
        weight = self.file.tensor(role, (rows, columns), layer)
        if bias or self.file.has_tensor(role, layer, suffix="bias"):
            return Linear(weight, self.file.tensor(role, (rows,), layer, suffix="bias"))
        return Linear(weight)

    def norm(self, role: str, layer: int | None = None, size: int | None = None) -> Norm:
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
