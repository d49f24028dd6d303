"""Rotary settings that a user gives in place of the file's: another scaling, another theta, and so a longer context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagoda.errors import ConfigError
from pagoda.models.source import Checkpoint
from pagoda.types import RawTensor

METHODS = ("none", "linear", "dynamic", "yarn")
FORM = "METHOD[:FACTOR[:ORIGINAL]], such as yarn:4 or yarn:4:32768; METHOD is one of " + ", ".join(METHODS)


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """`original` is the context that the model was trained for; None: the one that its file states."""

    method: str
    factor: float = 1.0
    original: int | None = None

    @classmethod
    def parse(cls, text: str) -> RopeScaling:
        """Raises ConfigError."""
        method, *numbers = text.split(":")
        try:
            scaling = cls(method, *(kind(value) for kind, value in zip((float, int), numbers, strict=False)))
        except ValueError:
            raise ConfigError(f"--rope-scaling: {text!r} is not {FORM}") from None
        fits = len(numbers) <= 2 and (method == "none" or bool(numbers))
        if (
            method not in METHODS
            or not fits
            or not 1 <= scaling.factor <= 1e4
            or (scaling.original is not None and scaling.original < 1)
        ):
            raise ConfigError(f"--rope-scaling: {text!r} is not {FORM}")
        return scaling


@dataclass(frozen=True, slots=True)
class RopeOverridden:
    """A checkpoint whose metadata say something else of rotary embedding; its tensors are as they were."""

    kind: str
    architecture: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, RawTensor]


def override_rope(
    checkpoint: Checkpoint, scaling: str | None, theta: float | None, max_context: int | None
) -> Checkpoint:
    """The checkpoint with what the user gave; itself where that is nothing. Raises ConfigError.

    A scaling stretches the context to `original` times its factor; theta alone lets it be `max_context`, since who
    changes it knows how far the model holds.
    """
    if scaling is None and theta is None:
        return checkpoint
    parsed = None if scaling is None else RopeScaling.parse(scaling)
    change = _gguf if checkpoint.kind == "gguf" else _config
    metadata = {**checkpoint.metadata, **change(checkpoint, parsed, theta, max_context)}
    return RopeOverridden(checkpoint.kind, checkpoint.architecture, metadata, checkpoint.tensors)


def _gguf(
    checkpoint: Checkpoint, scaling: RopeScaling | None, theta: float | None, max_context: int | None
) -> dict[str, Any]:
    prefix, old = f"{checkpoint.architecture}.", checkpoint.metadata
    changed: dict[str, Any] = {
        f"{prefix}context_length": _stretched(old.get(f"{prefix}context_length"), scaling, max_context)
    }
    if theta is not None:
        changed[f"{prefix}rope.freq_base"] = theta
    if scaling is not None:
        original = scaling.original or old.get(f"{prefix}context_length")
        changed |= {
            f"{prefix}rope.scaling.type": scaling.method,
            f"{prefix}rope.scaling.factor": scaling.factor,
            f"{prefix}rope.scaling.original_context_length": original,
            f"{prefix}rope.scaling.attn_factor": None,
        }
    return changed


def _config(
    checkpoint: Checkpoint, scaling: RopeScaling | None, theta: float | None, max_context: int | None
) -> dict[str, Any]:
    old = checkpoint.metadata
    stated = old.get("max_position_embeddings")
    changed: dict[str, Any] = {"max_position_embeddings": _stretched(stated, scaling, max_context)}
    section = dict(old.get("rope_parameters") or old.get("rope_scaling") or {})
    if scaling is not None:
        kept = {key: value for key, value in section.items() if key in ("rope_theta", "partial_rotary_factor")}
        method = "default" if scaling.method == "none" else scaling.method
        original = scaling.original or stated
        section = {**kept, "rope_type": method, "factor": scaling.factor, "original_max_position_embeddings": original}
    if theta is not None:
        section["rope_theta"] = changed["rope_theta"] = theta
    return {**changed, "rope_parameters": section}


def _stretched(stated: Any, scaling: RopeScaling | None, max_context: int | None) -> Any:
    """The context to state instead."""
    if not isinstance(stated, int):
        return stated
    if scaling is None:
        return max(stated, max_context or 0)
    return max(stated, round((scaling.original or stated) * scaling.factor))
