"""Files with a JSON value a line, plain or gzipped."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pagoda.errors import ConfigError


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(number of the line, its value) of each that is not empty. Raises ConfigError naming the line."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:  # gzip's own errors are OSErrors
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except ValueError:
            raise ConfigError(f"{path}, line {number}: not JSON") from None
