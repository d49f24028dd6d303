"""A model with an adapter in its weights: the base as a Hugging Face folder would hold it, and each tensor changed.

W + scale * B A; with DoRA, each row of that at the length that its magnitude says; tensors that were trained whole take
the place of the base's. All in float32, from whatever the base's tensors are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pagoda.adapters.adapter import Adapter, Delta
from pagoda.adapters.place import Base, base_names, unwrapped
from pagoda.errors import FormatError, UnsupportedError
from pagoda.formats.checkpoint import Checkpoint
from pagoda.formats.lazy_tensors import LazyTensors
from pagoda.formats.quantized import as_floats
from pagoda.models.hugging_face import HuggingFaceView, as_hugging_face
from pagoda.models.registry import family_of, load_model
from pagoda.types import FloatArray, RawTensor

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


class MergedView:
    """What reads of a Hugging Face `Checkpoint` need, with the adapter's changes in the tensors.

    FormatError where the adapter was made for another model.
    """

    kind = "safetensors"

    def __init__(self, checkpoint: Checkpoint, adapter: Adapter) -> None:
        self._view: Checkpoint | HuggingFaceView = as_hugging_face(checkpoint)
        self._path = adapter.path
        deltas = _hugging_face_deltas(checkpoint, adapter)
        self._deltas = {unwrapped(module): delta for module, delta in deltas.items()}
        self._whole = {unwrapped(name): values for name, values in adapter.whole.items()}
        self.architecture = self._view.architecture
        names = list(self._view.tensors)
        changed_head = HEAD in self._deltas or f"{HEAD}.weight" in self._whole
        unties = changed_head and f"{HEAD}.weight" not in self._view.tensors
        self.metadata: Mapping[str, Any] = self._view.metadata
        if unties:
            names.append(f"{HEAD}.weight")
            self.metadata = {**self._view.metadata, "tie_word_embeddings": False}
        self._check(names)
        self.tensors: Mapping[str, RawTensor] = LazyTensors(names, self._merged)

    @property
    def changed(self) -> list[str]:
        """The matrices that the adapter changes."""
        return [name for name in self.tensors if name.endswith(".weight") and self._changes(name)]

    def _changes(self, name: str) -> bool:
        return name.removesuffix(".weight") in self._deltas or name in self._whole

    def release(self, name: str) -> None:
        if name in self._view.tensors:
            self._view.release(name)

    def _check(self, names: list[str]) -> None:
        known = set(names)
        wanted = [f"{module}.weight" for module in self._deltas] + list(self._whole)
        wanted += [f"{module}.bias" for module, delta in self._deltas.items() if delta.bias is not None]
        for name in wanted:
            if name not in known:
                raise FormatError(
                    f"the adapter changes {name!r}, which this model does not have: it was made for another base model",
                    path=str(self._path),
                )

    def _base(self, name: str) -> RawTensor:
        if name in self._view.tensors:
            return self._view.tensors[name]
        return self._view.tensors[f"{EMBEDDING}.weight"]  # of a head that is tied

    def _merged(self, name: str) -> RawTensor:
        raw = self._base(name)
        module, _, kind = name.rpartition(".")
        delta, values = self._deltas.get(module), self._whole.get(name)
        if values is not None and values.shape != raw.shape:
            raise FormatError(
                f"{name} has shape {values.shape}, the model's {raw.shape}: the adapter was made for another base "
                "model, or for one whose vocabulary was changed",
                path=str(self._path),
            )
        is_changed = delta is not None and (kind == "weight" or delta.bias is not None)
        if values is None and not is_changed:
            return raw if raw.name == name else replace(raw, name=name)
        base: FloatArray = as_floats(raw) if values is None else values
        if delta is not None and is_changed:
            base = self._add(name, kind, base, delta)
        data = np.ascontiguousarray(base, np.float32).view(np.uint8).reshape(-1)
        return RawTensor(name, "F32", raw.shape, data)

    def _add(self, name: str, kind: str, base: FloatArray, delta: Delta) -> FloatArray:
        scale = np.float32(delta.scale)
        if kind == "bias":
            assert delta.bias is not None
            return base + scale * delta.bias
        change = delta.b @ delta.a
        if delta.is_embedding:
            change = change.T
        if change.shape != base.shape:
            raise FormatError(
                f"{name}: the adapter is for {change.shape}, but the model's is {base.shape}: it was made for another "
                "base model",
                path=str(self._path),
            )
        merged: FloatArray = base + scale * change
        if delta.magnitude is not None:
            if delta.is_embedding:
                raise UnsupportedError(f"{self._path}: DoRA of an embedding, {name!r}, is not supported")
            length = np.sqrt((merged.astype(np.float64) ** 2).sum(-1, keepdims=True))
            merged = np.asarray(merged / length * delta.magnitude[:, None], np.float32)
        return merged


def _hugging_face_deltas(checkpoint: Checkpoint, adapter: Adapter) -> Mapping[str, Delta]:
    if not adapter.is_gguf:
        return adapter.deltas
    family = family_of(checkpoint)
    base = Base(load_model(checkpoint), family, checkpoint.kind == "gguf", family.gguf)
    return base_names(adapter.deltas, base, from_gguf=True, to_gguf=False)
