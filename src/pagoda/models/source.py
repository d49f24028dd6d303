"""Reading a model out of a checkpoint with suspicion: every setting has a range, every tensor a shape, and
every tensor of the file must be asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from pagoda.errors import FormatError, UnsupportedError
from pagoda.formats.blocks import dequantize
from pagoda.models.names import FIELDS, REDUNDANT_SUFFIXES, TENSORS
from pagoda.types import RawTensor


class Checkpoint(Protocol):
    """The part of `pagoda.formats.checkpoint.Checkpoint` that models read."""

    @property
    def kind(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, RawTensor]: ...


class Settings:
    """Checked reading of a mapping that came from a file. `where` is put before keys in messages."""

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self._values = values
        self._where = where

    def get(self, key: str) -> Any:
        """The value as it stands; None where absent or null."""
        return self._values.get(key)

    def integer(self, key: str, default: int | None = None, *, low: int = 1, high: int) -> int:
        """An integer in [low, high]. FormatError if it is not, or absent without default."""
        value = self._present(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise self.error(key, value, "must be an integer")
        if not low <= value <= high:
            raise self.error(key, value, f"must be from {low} to {high}")
        return int(value)

    def number(self, key: str, default: float | None = None, *, low: float = 1e-12, high: float = 1e12) -> float:
        """A number in [low, high]. FormatError if it is not, or absent without default."""
        value = self._present(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise self.error(key, value, "must be a number")
        if not low <= value <= high:
            raise self.error(key, value, f"must be from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._present(key, default)
        if not isinstance(value, (bool, np.bool_)):
            raise self.error(key, value, "must be true or false")
        return bool(value)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._present(key, default)
        if not isinstance(value, str):
            raise self.error(key, value, "must be a string")
        return value

    def is_sequence(self, key: str) -> bool:
        return isinstance(self.get(key), (list, tuple, np.ndarray))

    def sequence(self, key: str, length: int) -> list[Any]:
        """A list of exactly `length` entries."""
        value = self._present(key, None)
        if not self.is_sequence(key) or len(value) != length:
            raise self.error(key, value, f"must be a list of {length}")
        return list(value)

    def section(self, key: str) -> Settings | None:
        """The mapping under `key`; None where absent or null."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(key, value, "must be an object")
        return Settings(value, f"{self._where}{key}.")

    def error(self, key: str, value: Any, problem: str) -> FormatError:
        return FormatError(f"{self._where}{key} is {_short(value)}, {problem}")

    def _present(self, key: str, default: Any) -> Any:
        value = self.get(key)
        if value is not None:
            return value
        if default is None:
            raise FormatError(f"{self._where}{key} is missing")
        return default


class ModelFile:
    """A checkpoint under our own names: settings by `FIELDS`, tensors by `TENSORS`; remembers what was read.

    `norm_offset` is added to norm weights, for families whose files hold w where the norm multiplies by 1 + w.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        tensors: Mapping[str, tuple[str, str]] = TENSORS,
        norm_offset: float = 0.0,
    ) -> None:
        self.is_gguf = checkpoint.kind == "gguf"
        self.architecture = checkpoint.architecture
        self._prefix = f"{checkpoint.architecture}." if self.is_gguf else ""
        self._column = 0 if self.is_gguf else 1
        self.settings = Settings(checkpoint.metadata)
        self._tensors = checkpoint.tensors
        self._names = tensors
        self._norm_offset = norm_offset
        self._read: set[str] = set()

    def key(self, field: str) -> str:
        """The file's own key: of a field in FIELDS, or else of a GGUF key without its architecture."""
        return self._prefix + (FIELDS[field][self._column] if field in FIELDS else field)

    def integer(self, field: str, default: int | None = None, *, low: int = 1, high: int) -> int:
        return self.settings.integer(self.key(field), default, low=low, high=high)

    def number(self, field: str, default: float | None = None, *, low: float = 1e-12, high: float = 1e12) -> float:
        return self.settings.number(self.key(field), default, low=low, high=high)

    def optional_number(self, field: str) -> float | None:
        """None where absent, null or zero."""
        value = self.settings.get(self.key(field))
        absent = value is None or (isinstance(value, (int, float)) and value == 0)
        return None if absent else self.number(field)

    def has_field(self, field: str) -> bool:
        return self.settings.get(self.key(field)) is not None

    def tensor_name(self, role: str, layer: int | None = None, *, suffix: str = "weight") -> str:
        return f"{self._names[role][self._column].format(i=layer)}.{suffix}"

    def has_tensor(self, role: str, layer: int | None = None, *, suffix: str = "weight") -> bool:
        return self.tensor_name(role, layer, suffix=suffix) in self._tensors

    def tensor(
        self, role: str, shape: tuple[int | None, ...], layer: int | None = None, *, suffix: str = "weight"
    ) -> RawTensor:
        """The tensor of `role`, its shape checked (None: any length). FormatError if it is missing or differs."""
        name = self.tensor_name(role, layer, suffix=suffix)
        if name not in self._tensors:
            raise FormatError(f"tensor {name!r} is missing")
        found = self._tensors[name]
        if len(found.shape) != len(shape) or any(w not in (None, n) for w, n in zip(shape, found.shape, strict=True)):
            raise FormatError(f"tensor {name!r} has shape {found.shape}, but the settings say {shape}")
        self._read.add(name)
        return found

    def norm_weight(self, role: str, size: int, layer: int | None = None) -> RawTensor:
        weight = self.tensor(role, (size,), layer)
        return weight if not self._norm_offset else _plus(weight, self._norm_offset)

    def skip(self, name: str) -> None:
        """Count a tensor as read although it is not needed."""
        self._read.add(name)

    def check_all_read(self) -> None:
        """UnsupportedError that names the tensors which nothing asked for."""
        unread = [n for n in self._tensors if n not in self._read and not n.endswith(REDUNDANT_SUFFIXES)]
        if unread:
            more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
            raise UnsupportedError(
                f"the file holds tensors that {self.architecture} does not use here, so answers would be wrong: "
                f"{', '.join(sorted(unread)[:5])}{more}"
            )


def _plus(raw: RawTensor, offset: float) -> RawTensor:
    values = dequantize(raw.data, raw.type, raw.shape) + np.float32(offset)
    return RawTensor(raw.name, "F32", raw.shape, values.view(np.uint8).reshape(-1))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
