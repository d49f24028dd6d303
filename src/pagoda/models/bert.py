"""BERT and its kin, which read a text in both directions: MiniLM, BGE, E5, cross-encoders; RoBERTa and XLM-R too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pagoda.backends.specs import Activation, AttentionSpec
from pagoda.errors import FormatError, UnsupportedError
from pagoda.formats.quantized import as_floats
from pagoda.models.encoder import Encoder, EncoderBlock
from pagoda.models.family import Family, ModelFile
from pagoda.models.layers import LayerNorm, Linear
from pagoda.models.source import Checkpoint
from pagoda.types import FloatArray, RawTensor

_LAYER = "encoder.layer.{i}"
TENSORS: dict[str, tuple[str, str]] = {
    "embedding": ("token_embd", "embeddings.word_embeddings"),
    "positions": ("position_embd", "embeddings.position_embeddings"),
    "token_types": ("token_types", "embeddings.token_type_embeddings"),
    "embedding_norm": ("token_embd_norm", "embeddings.LayerNorm"),
    "attn_q": ("blk.{i}.attn_q", f"{_LAYER}.attention.self.query"),
    "attn_k": ("blk.{i}.attn_k", f"{_LAYER}.attention.self.key"),
    "attn_v": ("blk.{i}.attn_v", f"{_LAYER}.attention.self.value"),
    "attn_output": ("blk.{i}.attn_output", f"{_LAYER}.attention.output.dense"),
    "attn_norm": ("blk.{i}.attn_output_norm", f"{_LAYER}.attention.output.LayerNorm"),
    "ffn_up": ("blk.{i}.ffn_up", f"{_LAYER}.intermediate.dense"),
    "ffn_down": ("blk.{i}.ffn_down", f"{_LAYER}.output.dense"),
    "ffn_norm": ("blk.{i}.layer_output_norm", f"{_LAYER}.output.LayerNorm"),
}

BERT = Family(name="bert", gguf="bert", hf_class="BertModel", tensors=TENSORS, usual_context=512)
ROBERTA = Family(name="roberta", gguf="bert", hf_class="RobertaModel", tensors=TENSORS, usual_context=514)
XLM_ROBERTA = Family(name="xlm-roberta", gguf="bert", hf_class="XLMRobertaModel", tensors=TENSORS, usual_context=514)
ENCODERS = (BERT, ROBERTA, XLM_ROBERTA)

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
}
PREFIXES = ("bert.", "roberta.")  # where a model with a head keeps the encoder
OLD_NORM_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
UNUSED = ("pooler.", "classifier.", "cls.", "lm_head.", "embeddings.position_ids")  # heads of tasks that are not served


@dataclass(frozen=True, slots=True)
class _Plain:
    """A checkpoint whose tensors go by the names of a bare encoder."""

    kind: str
    architecture: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, RawTensor]


def is_encoder(checkpoint: Checkpoint) -> bool:
    """Whether the files hold a model that this module reads."""
    names = {family.gguf if checkpoint.kind == "gguf" else family.name for family in ENCODERS}
    return checkpoint.architecture in names


def load_encoder(checkpoint: Checkpoint) -> Encoder:
    """The encoder, its tensors still as they lie in the file. Heads that are not served are left out.

    UnsupportedError for an architecture that is no encoder or that needs what `encoder.py` does not cover;
    FormatError for settings that cannot be, and tensors that are missing or of the wrong shape.
    """
    if not is_encoder(checkpoint):
        raise UnsupportedError(f"architecture {checkpoint.architecture!r} is not an encoder that Pagoda knows")
    is_gguf = checkpoint.kind == "gguf"
    family = BERT if is_gguf else next(family for family in ENCODERS if family.name == checkpoint.architecture)
    file = ModelFile(checkpoint if is_gguf else _plain(checkpoint), family)
    encoder = _Reader(file).encoder(0 if family is BERT else _padding_id(file) + 1)
    for name in checkpoint.tensors if is_gguf else _plain(checkpoint).tensors:
        if name.startswith(UNUSED):
            file.skip(name)
    file.check_all_read()
    return encoder


@dataclass(frozen=True, slots=True)
class ClassificationHead:
    """out(tanh(dense(x))), as cross-encoders make scores of the first token's hidden state."""

    dense: FloatArray  # [E, E]
    dense_bias: FloatArray  # [E]
    out: FloatArray  # [N, E]
    out_bias: FloatArray  # [N]

    @property
    def size(self) -> int:
        return len(self.out)

    def scores(self, vector: FloatArray) -> FloatArray:
        hidden = np.tanh(self.dense.astype(np.float64) @ vector + self.dense_bias)
        return np.asarray(self.out @ hidden + self.out_bias, np.float32)


# where a head's two layers stand: BERT's pooler and classifier, RoBERTa's, and GGUF's
HEADS = (("pooler.dense", "classifier"), ("classifier.dense", "classifier.out_proj"), ("cls", "cls.output"))


def read_head(checkpoint: Checkpoint, encoder: Encoder) -> ClassificationHead | None:
    """The head of a cross-encoder; None where the files hold none. FormatError for one of the wrong shape."""
    tensors = checkpoint.tensors if checkpoint.kind == "gguf" else _plain(checkpoint).tensors
    for layers in HEADS:
        names = [f"{layer}.{suffix}" for layer in layers for suffix in ("weight", "bias")]
        if not all(name in tensors for name in names):
            continue
        head = ClassificationHead(*(as_floats(tensors[name]) for name in names))
        e, n = encoder.hidden_size, len(head.out_bias)
        shapes = (head.dense.shape, head.dense_bias.shape, head.out.shape)
        if shapes != ((e, e), (e,), (n, e)):
            raise FormatError(f"the classification head has shapes {shapes} for a hidden size of {e}")
        return head
    return None


def _plain(checkpoint: Checkpoint) -> _Plain:
    tensors = {}
    for name, tensor in checkpoint.tensors.items():
        plain = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)
        for old, new in OLD_NORM_NAMES.items():
            plain = plain.replace(old, new)
        tensors[plain] = tensor
    return _Plain(checkpoint.kind, checkpoint.architecture, checkpoint.metadata, tensors)


def _padding_id(file: ModelFile) -> int:
    """Positions of RoBERTa count from after the id of the padding token."""
    return file.settings.integer("pad_token_id", 1, low=0, high=1 << 16)


class _Reader:
    def __init__(self, file: ModelFile) -> None:
        self.file = file
        self.hidden_size = file.integer("hidden_size", high=1 << 16)
        self.ffn_size = file.integer("ffn_size", high=1 << 18)
        self.num_heads = file.integer("num_heads", high=1 << 10)
        self.eps = file.number("layer_norm_eps", 1e-12, low=0.0, high=1.0)
        if self.hidden_size % self.num_heads:
            raise FormatError(f"a hidden size of {self.hidden_size} does not divide into {self.num_heads} heads")

    def encoder(self, position_offset: int) -> Encoder:
        file = self.file
        self._check_supported()
        positions = file.tensor("positions", (None, self.hidden_size))
        longest = file.integer("max_context", positions.shape[0], high=1 << 20)
        max_context = min(longest, positions.shape[0] - position_offset)
        if max_context < 1:
            raise FormatError(f"{positions.shape[0]} positions leave none after the first {position_offset}")
        num_layers = file.integer("num_layers", high=1 << 10)
        return Encoder(
            embedding=file.tensor("embedding", (None, self.hidden_size)),
            positions=positions,
            position_offset=position_offset,
            token_types=self._token_types(),
            embedding_norm=self._norm("embedding_norm"),
            blocks=tuple(self._block(layer) for layer in range(num_layers)),
            max_context=max_context,
        )

    def _check_supported(self) -> None:
        kind = self.file.settings.get("position_embedding_type")
        if not self.file.is_gguf and kind not in (None, "absolute"):
            raise UnsupportedError(f"position_embedding_type {kind!r} is not supported; known is 'absolute'")
        if self.file.is_gguf and self.file.settings.get("bert.attention.causal") is True:
            raise UnsupportedError("bert.attention.causal is true: a BERT that sees the past alone is not supported")

    def _token_types(self) -> RawTensor | None:
        if not self.file.has_tensor("token_types"):
            return None
        return self.file.tensor("token_types", (None, self.hidden_size))

    def _activation(self) -> Activation:
        name = "gelu" if self.file.is_gguf else self.file.settings.text("hidden_act", "gelu")
        if name not in ACTIVATIONS:
            raise UnsupportedError(f"hidden_act {name!r} is not supported; known are {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    def _block(self, layer: int) -> EncoderBlock:
        e, f, head_dim = self.hidden_size, self.ffn_size, self.hidden_size // self.num_heads
        return EncoderBlock(
            q=self._linear("attn_q", e, e, layer),
            k=self._linear("attn_k", e, e, layer),
            v=self._linear("attn_v", e, e, layer),
            output=self._linear("attn_output", e, e, layer),
            attn_norm=self._norm("attn_norm", layer),
            up=self._linear("ffn_up", f, e, layer),
            down=self._linear("ffn_down", e, f, layer),
            ffn_norm=self._norm("ffn_norm", layer),
            spec=AttentionSpec(self.num_heads, self.num_heads, head_dim, head_dim**-0.5, causal=False),
            activation=self._activation(),
        )

    def _linear(self, role: str, rows: int, columns: int, layer: int) -> Linear:
        weight = self.file.tensor(role, (rows, columns), layer)
        return Linear(weight, self.file.tensor(role, (rows,), layer, suffix="bias"))

    def _norm(self, role: str, layer: int | None = None) -> LayerNorm:
        shape = (self.hidden_size,)
        weight, bias = (self.file.tensor(role, shape, layer, suffix=suffix) for suffix in ("weight", "bias"))
        return LayerNorm(weight, bias, self.eps)
