"""How the hidden states of a text become one vector, as the model's files say it.

Read are sentence-transformers' module files (`modules.json`, `1_Pooling/config.json`, `sentence_bert_config.json`)
and GGUF's `pooling_type`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from pagoda.errors import FormatError, UnsupportedError
from pagoda.types import FloatArray, Int32Array

PoolingKind = Literal["mean", "cls", "last"]

GGUF_KINDS: dict[int, PoolingKind] = {1: "mean", 2: "cls", 3: "last"}
MODES: dict[str, PoolingKind] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
NAMED_MODES: dict[str, PoolingKind] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
MAX_CONFIG_BYTES = 1 << 20


class Head(Protocol):
    """Makes scores of the pooled vector of a text or pair."""

    @property
    def size(self) -> int:
        """How many scores."""

    def scores(self, vector: FloatArray) -> FloatArray:
        """vector [E] → [size], before any activation"""


@dataclass(frozen=True, slots=True)
class Pooling:
    """max_tokens: how much of a text the model was made for, special tokens included; None: its context."""

    kind: PoolingKind
    normalize: bool = True
    max_tokens: int | None = None
    prompt: str = ""  # that is put before every text
    lowercase: bool = False  # texts are lowercased before they are tokenized
    head: Head | None = None  # makes scores of the vector

    def finish(self, vector: FloatArray) -> FloatArray:
        """What is given out: the head's scores of a pooled vector, or the vector, normalized where that is wanted."""
        if self.head is not None:
            return self.head.scores(vector)
        return unit(vector) if self.normalize else vector

    def of_texts(self, hidden_states: FloatArray, starts: Int32Array) -> FloatArray:
        """What is given out of each of B texts, which begin at `starts` [B + 1] in hidden_states [T, E]. → [B, size]

        No sum depends on what else is there.
        """
        first, last = starts[:-1], starts[1:]
        if self.kind == "mean":
            sums: FloatArray = np.add.reduceat(hidden_states, first, axis=0)
            pooled = np.asarray(sums / np.asarray(last - first, np.float32)[:, None], np.float32)
        else:
            pooled = np.asarray(hidden_states[first if self.kind == "cls" else last - 1], np.float32)
        if self.head is not None:
            return np.stack([self.head.scores(vector) for vector in pooled])
        return units(pooled) if self.normalize else pooled


def units(vectors: FloatArray) -> FloatArray:
    """Each row divided by its length; rows of zeros stay as they are."""
    lengths = np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1, keepdims=True))
    return np.asarray(vectors / np.where(lengths == 0, 1, lengths), np.float32)


DEFAULT_POOLING = Pooling("last")  # of models that go on with a text


def unit(vector: FloatArray) -> FloatArray:
    """The vector divided by its length; one of zeros stays as it is."""
    (scaled,) = units(vector[None])
    return np.asarray(scaled, np.float32)


class PooledFiles(Protocol):
    """The part of a checkpoint that is read here."""

    @property
    def kind(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def path(self) -> Path: ...


def read_pooling(checkpoint: PooledFiles, default: PoolingKind) -> Pooling:
    """How a model's files say that hidden states become a vector; by `default` where they do not."""
    if checkpoint.kind == "gguf":
        return gguf_pooling(checkpoint.metadata, checkpoint.architecture, default)
    return folder_pooling(checkpoint.path, default)


def gguf_pooling(metadata: Mapping[str, Any], architecture: str, default: PoolingKind) -> Pooling:
    """What a GGUF file says. UnsupportedError for a kind that makes no vector of a text."""
    value = metadata.get(f"{architecture}.pooling_type")
    if value in (None, 0):
        return Pooling(default)
    if value not in GGUF_KINDS:
        known = ", ".join(f"{number} ({kind})" for number, kind in GGUF_KINDS.items())
        raise UnsupportedError(f"{architecture}.pooling_type is {value!r}; known are {known}")
    return Pooling(GGUF_KINDS[value])


def folder_pooling(folder: Path, default: PoolingKind) -> Pooling:
    """What the module files of a Hugging Face folder say; a folder without them: `default`, normalized.

    UnsupportedError for modules and modes that are not known here, since vectors would be wrong without them.
    """
    modules = _read(folder / "modules.json")
    if modules is None:
        return Pooling(default)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise FormatError("is not a list of modules", path=str(folder / "modules.json"))
    kinds = {str(module.get("type", "")).split(".")[-1]: str(module.get("path", "")) for module in modules}
    unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
    if unknown:
        raise UnsupportedError(f"modules.json asks for {', '.join(sorted(unknown))}, which is not supported")
    kind = _pooling_kind(folder / kinds["Pooling"] / "config.json") if "Pooling" in kinds else default
    limits = _object(folder / "sentence_bert_config.json")
    stated = _limit(limits.get("max_seq_length"))
    longest = stated or _limit(_object(folder / "tokenizer_config.json").get("model_max_length"))
    return Pooling(kind, "Normalize" in kinds, longest, _prompt(folder), limits.get("do_lower_case") is True)


def _pooling_kind(path: Path) -> PoolingKind:
    config = _object(path)
    if config.get("include_prompt") is False:
        raise UnsupportedError(f"{path.name} leaves prompts out of the vector, which is not supported")
    named = config.get("pooling_mode")
    if isinstance(named, str) and named in NAMED_MODES:
        return NAMED_MODES[named]
    chosen = [mode for mode, wanted in config.items() if mode.startswith("pooling_mode_") and wanted is True]
    if len(chosen) != 1 or chosen[0] not in MODES:
        raise UnsupportedError(f"{path.name} pools by {', '.join(chosen) or named!r}; known are {', '.join(MODES)}")
    return MODES[chosen[0]]


def _limit(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _prompt(folder: Path) -> str:
    """What the files want before every text, unless the caller says otherwise."""
    config = _object(folder / "config_sentence_transformers.json")
    prompts, name = config.get("prompts"), config.get("default_prompt_name")
    if name is None:
        return ""
    text = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    if not isinstance(text, str):
        raise FormatError(f"default_prompt_name {name!r} is none of the prompts", path=str(folder))
    return text


def _object(path: Path) -> dict[str, Any]:
    """The object that a file holds; nothing where there is no file."""
    value = _read(path)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise FormatError("is not a JSON object", path=str(path))
    return value


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise FormatError(f"is larger than {MAX_CONFIG_BYTES} bytes", path=str(path))
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"cannot be read: {error}", path=str(path)) from error
