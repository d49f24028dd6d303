"""A model family as one value, and a checkpoint that is read as one of it.

A `Family` is all that Pagoda knows of a family: what files call it and its tensors, which parts its layers have, and
how they are built. Loading, converting, quantizing and planning read it here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pagoda.backends.specs import Activation, RopeStyle, Scoring
from pagoda.errors import FormatError, UnsupportedError
from pagoda.formats.blocks import dequantize
from pagoda.formats.gguf_writer import Value
from pagoda.models.layers import Decoder
from pagoda.models.mtp import MTP_TENSORS, MtpHead
from pagoda.models.names import FIELDS, REDUNDANT_SUFFIXES, TENSORS
from pagoda.models.source import Checkpoint, Settings
from pagoda.types import FloatArray, RawTensor

NESTED = "text_config"  # config.json's language part, of models that see or hear, too
OUTER = {"model.language_model.": "model.", "language_model.model.": "model.", "language_model.lm_head.": "lm_head."}
SENSES = {  # how names of tensors begin of what else such models have
    **{f"{model}vision_tower.": "the vision model" for model in ("", "model.")},
    **{f"{model}multi_modal_projector.": "the vision model's projector" for model in ("", "model.")},
    "model.embed_vision.": "the vision model's projector",
    "model.audio_tower.": "the audio model",
    "model.embed_audio.": "the audio model's projector",
}


@dataclass(frozen=True, slots=True)
class Family:
    """One row of `registry.py`. What is not stated is as in Llama."""

    name: str  # config.json's model_type, without the suffix `_text`
    gguf: str  # GGUF's general.architecture
    hf_class: str  # of config.json's `architectures`
    build: Callable[[ModelFile], Decoder] | None = None  # None: it is planned for, but not served
    model_type: str = ""  # where config.json's has a suffix
    gguf_key: str = ""  # where families share `gguf`: the metadata key that says, not 0, that a file is of this one

    # Files
    tensors: Mapping[str, tuple[str, str]] = field(default_factory=lambda: TENSORS)
    defaults: Mapping[str, Any] = field(default_factory=dict)  # config.json's keys that its files may leave out
    gguf_defaults: Mapping[str, Any] = field(default_factory=dict)  # and metadata's, without the architecture
    usual_context: int = 2048  # where config.json states none, as the configuration class of transformers has it
    interleaved: bool = False  # GGUF's rows of q and k are reordered so that a rotary pair lies side by side
    adjacent_pairs: bool = False  # a rotary pair lies side by side in either kind of file
    norm_offset: float = 0.0  # GGUF's norm weights are larger by this than Hugging Face's
    adapt_config: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None  # config.json in Llama's words
    extra_config: Callable[[Checkpoint, Decoder], dict[str, Any]] | None = None  # what its config.json says besides
    extra_values: Callable[[Settings, Decoder], dict[str, Value]] | None = None  # and its GGUF files' metadata
    is_converted: bool = True  # from folders to GGUF files and back
    gguf_whole_yarn: bool = True  # whether YaRN's blend begins and ends at whole pairs, where GGUF does not say it
    is_trained: bool = True  # whether adapters are trained
    multiplied: bool = False  # whether GGUF files hold matrices times what config.json states apart
    gguf_norm_topk: bool = True  # whether a token's weights are divided by their sum, where GGUF does not say it
    chat_template: str | None = None  # of models that bring none
    left_out: Mapping[str, str] = field(
        default_factory=dict
    )  # how names of tensors begin that are not served, and what
    head: Callable[[ModelFile, Decoder], MtpHead] | None = None  # reads what predicts one token more (`mtp.py`)
    head_names: Mapping[str, str] = field(default_factory=dict)  # how its names begin, and what they are in a layer
    hidden_first: bool = False  # its projection takes the hidden state before the token

    # For docs/models.md
    compared: tuple[str, ...] = ()  # with what, besides the goldens of transformers
    not_covered: str = ""  # of what its published models have

    # Layers
    qkv_bias: bool = False
    output_bias: bool = False
    attention_bias_of_output: bool = True  # config.json's attention_bias means the output projection, too
    layer_norm: bool = False  # norms take the mean out, too
    norm_bias: bool = False
    head_bias: bool = False
    qk_norm: bool = False  # of queries and keys, over each head
    whole_qk_norm: bool = False  # over all heads together
    norms_last: bool = False  # queries and keys are normalized after they are turned
    pre_norms: bool = True  # before attention and before the feed-forward
    post_norms: bool = False  # after attention and after the feed-forward, too
    gated_queries: bool = False  # queries come with a gate of their own width
    tiled_heads: bool = False  # of delta nets in GGUF files, see `DeltaSpec`
    gated_ffn: bool = True
    activation: Activation = "silu"  # where files do not say
    dense_beside: bool = False  # a feed-forward beside the experts
    expert_bias: bool = False  # of experts and of what picks them
    scoring: Scoring = "softmax"  # of experts, where files do not say
    group_method: str = "noaux_tc"  # of experts that softmax scores, as config.json's topk_method
    stacks_transposed: bool = False  # Hugging Face's stacks of experts may hold (in, out) matrices
    learned_positions: bool = False
    extra_tensors: Callable[[Settings], Iterable[tuple[str, tuple[int, ...]]]] | None = None  # GGUF names and shapes
    parallel: bool = False  # attention and feed-forward read the same norm
    fused: bool = False  # q, k and v are one matrix, gate and up another
    fused_ffn: bool = False  # only gate and up are
    partial_rotary: bool = False  # whether config.json can say that only a part of each head is turned
    windows: bool = True  # whether a stated window is used, unless config.json says `use_sliding_window`
    window_pattern: int = 0  # of so many layers all but the last slide; 0: all slide, where files do not say
    rope_tables: int = 1  # kinds of layers whose rotary frequencies differ

    def is_stated(self, metadata: Mapping[str, Any]) -> bool:
        """Whether GGUF metadata of this architecture are of this family, not of another that shares it."""
        value = metadata.get(f"{self.gguf}.{self.gguf_key}")
        return not self.gguf_key or (value is not None and not (isinstance(value, (int, float)) and value == 0))

    def output_has_bias(self, attention_bias: bool) -> bool:
        """Whether attention's output projection has a bias, by what config.json says of attention."""
        return self.output_bias or (attention_bias and self.attention_bias_of_output and not self.qkv_bias)

    def check_converted(self) -> None:
        """UnsupportedError for a family whose files are not turned into those of the other kind."""
        if not self.is_converted:
            raise UnsupportedError(
                f"folders of {self.name} do not become GGUF files here, nor back; llama.cpp's converter makes them"
            )

    def settings(self, config: Mapping[str, Any]) -> Settings:
        """config.json with what its files may leave out."""
        text = config.get(NESTED) if self.left_out else None  # the language part of one that sees, too
        whole = {**self.defaults, **config, **(text if isinstance(text, Mapping) else {})}
        said = whole if self.adapt_config is None else self.adapt_config(whole)
        return Settings({"max_position_embeddings": self.usual_context, **said})


class ModelFile:
    """A checkpoint under our own names: settings by `FIELDS`, tensors by the family's table; remembers what was read.

    max_context: tokens that will be served, where that is decided already; models may depend on it (longrope).
    """

    def __init__(self, checkpoint: Checkpoint, family: Family, max_context: int | None = None) -> None:
        self.is_gguf = checkpoint.kind == "gguf"
        self.family = family
        self.max_context = max_context
        self._prefix = f"{checkpoint.architecture}." if self.is_gguf else ""
        self._column = 0 if self.is_gguf else 1
        self._spellings = MTP_TENSORS | dict(family.tensors)
        usual = {f"{self._prefix}{key}": value for key, value in family.gguf_defaults.items()}
        metadata = {**usual, **checkpoint.metadata} if usual else checkpoint.metadata
        self.settings = Settings(metadata) if self.is_gguf else family.settings(checkpoint.metadata)
        self._tensors = checkpoint.tensors if self.is_gguf else _text_tensors(checkpoint.tensors, family)
        self._read: set[str] = set()

    @property
    def rope_style(self) -> RopeStyle:
        """How the rotary pairs of this file's q and k lie."""
        side_by_side = self.family.adjacent_pairs or (self.is_gguf and self.family.interleaved)
        return "interleaved" if side_by_side else "neox"

    def key(self, field: str) -> str:
        """The file's own key: of a field in FIELDS, or else of a GGUF key without its architecture."""
        return self._prefix + (FIELDS[field][self._column] if field in FIELDS else field)

    def integer(self, field: str, default: int | None = None, *, low: int = 1, high: int) -> int:
        """GGUF may state it for each layer: then once, where all are equal. UnsupportedError where they are not."""
        key = self.key(field)
        value = self.settings.get(key)
        if self.is_gguf and self.settings.is_sequence(key) and len(value):
            if any(one != value[0] for one in value):
                raise UnsupportedError(f"{key} differs from layer to layer, which {self.family.name} does not here")
            return Settings({key: value[0]}).integer(key, low=low, high=high)
        return self.settings.integer(key, default, low=low, high=high)

    def number(self, field: str, default: float | None = None, *, low: float = 1e-12, high: float = 1e12) -> float:
        return self.settings.number(self.key(field), default, low=low, high=high)

    def optional_number(self, field: str) -> float | None:
        """None where absent, null or zero."""
        value = self.settings.get(self.key(field))
        absent = value is None or (isinstance(value, (int, float)) and value == 0)
        return None if absent else self.number(field)

    def has_field(self, field: str) -> bool:
        return self.settings.get(self.key(field)) is not None

    def tensor_name(
        self, role: str, layer: int | None = None, *, expert: int | None = None, suffix: str = "weight"
    ) -> str:
        stem = self._spellings[role][self._column].format(i=layer, e=expert)
        return f"{stem}.{suffix}" if suffix else stem

    def has_role(self, role: str) -> bool:
        """Whether the family's files of this kind can have such tensors."""
        return bool(self.family.tensors.get(role, ("", ""))[self._column])

    def has_tensor(self, role: str, layer: int | None = None, *, suffix: str = "weight") -> bool:
        return self.tensor_name(role, layer, suffix=suffix) in self._tensors

    def tensor(
        self,
        role: str,
        shape: tuple[int | None, ...],
        layer: int | None = None,
        *,
        expert: int | None = None,
        suffix: str = "weight",
    ) -> RawTensor:
        """The tensor of `role`, its shape checked (None: any length). FormatError if it is missing or differs."""
        name = self.tensor_name(role, layer, expert=expert, suffix=suffix)
        if name not in self._tensors:
            raise FormatError(f"tensor {name!r} is missing")
        found = self._tensors[name]
        if self.is_gguf and found.shape[:-1] == (1,) and len(shape) == 1:  # one row, and a vector, are one there
            found = replace(found, shape=found.shape[1:])
        if len(found.shape) != len(shape) or any(w not in (None, n) for w, n in zip(shape, found.shape, strict=True)):
            raise FormatError(f"tensor {name!r} has shape {found.shape}, but the settings say {shape}")
        self._read.add(name)
        return found

    def expert_tensors(
        self, role: str, count: int, shape: tuple[int, int], layer: int | None = None
    ) -> tuple[RawTensor, ...]:
        """The matrix of each expert: a tensor of its own, or its part of their stack."""
        if self.is_gguf:
            stack = self.tensor(role, (count, *shape), layer)
            return tuple(stack.matrix(expert) for expert in range(count))
        return tuple(self.tensor(role, shape, layer, expert=expert) for expert in range(count))

    def norm_weight(self, role: str, size: int, layer: int | None = None) -> RawTensor:
        """What the norm multiplies with."""
        weight = self.tensor(role, (size,), layer)
        return weight if self.is_gguf else shifted(weight, self.family.norm_offset)

    def skip(self, name: str) -> None:
        """Count a tensor as read although it is not needed."""
        self._read.add(name)

    def skip_layers(self, first: int, count: int) -> None:
        """Count the tensors of so many layers from `first` on as read."""
        start = "blk." if self.is_gguf else "model.layers."
        numbers = ((name, name.removeprefix(start).split(".")[0]) for name in self._tensors if name.startswith(start))
        self._read.update(name for name, number in numbers if number.isdecimal() and 0 <= int(number) - first < count)

    def check_all_read(self) -> None:
        """UnsupportedError that names the tensors which nothing asked for."""
        unread = [n for n in self._tensors if n not in self._read and not n.endswith(REDUNDANT_SUFFIXES)]
        if unread:
            more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
            raise UnsupportedError(
                f"the file holds tensors that {self.family.name} does not use here, so answers would be wrong: "
                f"{', '.join(sorted(unread)[:5])}{more}"
            )


def _text_tensors(tensors: Mapping[str, RawTensor], family: Family) -> Mapping[str, RawTensor]:
    """The language part's by the names that they have where there is no other part."""
    others = (*family.left_out, *family.head_names)
    if not others:
        return tensors
    return {_inner_name(name): tensor for name, tensor in tensors.items() if not name.startswith(others)}


def _inner_name(name: str) -> str:
    outer = next((start for start in OUTER if name.startswith(start)), None)
    return name if outer is None else OUTER[outer] + name.removeprefix(outer)


def shifted(raw: RawTensor, offset: float) -> RawTensor:
    """`raw` + offset, in float32; `raw` itself where the offset is 0."""
    if not offset:
        return raw
    values = dequantize(raw.data, raw.type, raw.shape) + np.float32(offset)
    return RawTensor(raw.name, "F32", raw.shape, values.view(np.uint8).reshape(-1))


def scaled(raw: RawTensor, factor: float) -> RawTensor:
    """`raw` * factor, in float32."""
    values = dequantize(raw.data, raw.type, raw.shape) * np.float32(factor)
    return RawTensor(raw.name, "F32", raw.shape, values.view(np.uint8).reshape(-1))


def negative_exp(raw: RawTensor) -> RawTensor:
    """-exp of each number, in float32."""
    values = -np.exp(dequantize(raw.data, raw.type, raw.shape))
    return RawTensor(raw.name, "F32", raw.shape, values.view(np.uint8).reshape(-1))


def joined(name: str, parts: Sequence[RawTensor]) -> RawTensor:
    """Vectors one after the other, in float32."""
    return floats(name, np.concatenate([dequantize(part.data, part.type, part.shape) for part in parts]))


def floats(name: str, values: npt.ArrayLike) -> RawTensor:
    """Numbers that no file holds."""
    held = np.ascontiguousarray(values, "<f4")
    return RawTensor(name, "F32", held.shape, held.view(np.uint8).reshape(-1))


def floats_of(raw: RawTensor, values: FloatArray, part: str = "") -> RawTensor:
    """`values` of `raw` as floats: of its type, or, where that is none, in 16 bits."""
    name, of = raw.name + part, raw.part_of or raw.name
    if raw.type == "F32":
        return replace(floats(name, values), part_of=of)
    if raw.type == "BF16":  # each is the upper half of a float32
        type, halves = "BF16", np.ascontiguousarray(values, "<f4").view("<u2")[..., 1::2]
    else:
        type, halves = "F16", values.astype("<f2")
    data = np.ascontiguousarray(halves).view(np.uint8).reshape(-1)
    return RawTensor(name, type, values.shape, data, part_of=of)


def ones(size: int) -> RawTensor:
    """A vector that no file holds."""
    return floats(f"ones.{size}", np.ones(size))


def zeros(name: str, size: int) -> RawTensor:
    """A vector that no file holds: of 0 for each of `size` columns."""
    return floats(name, np.zeros(size))
