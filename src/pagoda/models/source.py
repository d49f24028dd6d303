"""What models read of a checkpoint, and its settings with suspicion: every one has a type and a range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pagoda.errors import FormatError
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

    def numbers(self, key: str, length: int) -> npt.NDArray[np.float64]:
        """A list of exactly `length` numbers."""
        values = self.sequence(key, length)
        if not all(isinstance(value, (int, float)) for value in values):
            raise self.error(key, values, "must be numbers")
        return np.array(values, np.float64)

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


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
