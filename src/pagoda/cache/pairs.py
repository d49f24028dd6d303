"""Pairs of questions with the truth about them: lines `{"a": …, "b": …, "same": 0 or 1}`, plain or gzipped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pagoda.cache.lines import read_json_lines
from pagoda.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Pair:
    a: str
    b: str
    same: bool


def read_pairs(path: Path) -> list[Pair]:
    """Raises ConfigError naming the line."""
    pairs = []
    for number, row in read_json_lines(path):
        try:
            a, b, same = row["a"], row["b"], row["same"]
        except (KeyError, TypeError):
            raise ConfigError(f'{path}, line {number}: not {{"a": …, "b": …, "same": 0 or 1}}') from None
        if not isinstance(a, str) or not isinstance(b, str) or same not in (0, 1):
            raise ConfigError(f"{path}, line {number}: a and b are texts, same is 0 or 1")
        pairs.append(Pair(a, b, bool(same)))
    if not pairs:
        raise ConfigError(f"{path}: there is no pair in it")
    return pairs
