"""Pairs of questions with the truth about them: lines `{"a": …, "b": …, "same": 0 or 1}`, plain or gzipped."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

from pagoda.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Pair:
    a: str
    b: str
    same: bool


def read_pairs(path: Path) -> list[Pair]:
    """Raises ConfigError naming the line."""
    pairs = []
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            a, b, same = row["a"], row["b"], row["same"]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f'{path}, line {number}: not {{"a": …, "b": …, "same": 0 or 1}}') from None
        if not isinstance(a, str) or not isinstance(b, str) or same not in (0, 1):
            raise ConfigError(f"{path}, line {number}: a and b are texts, same is 0 or 1")
        pairs.append(Pair(a, b, bool(same)))
    if not pairs:
        raise ConfigError(f"{path}: there is no pair in it")
    return pairs
