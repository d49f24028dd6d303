"""One JSON object a line for each answered request: what it asked for, what it took and what it cost, never its text.

    {"time": "2025-01-31T12:03:44.105Z", "arrival": 1738325024.1, "id": …, "model": …, "tenant": …, "prompt_tokens": …}

`pagoda bench serve --replay FILE` sends requests of the same lengths at the same moments, `pagoda cost report` sums up.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import orjson

from pagoda.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RequestLine:
    """One request. Times in seconds, `arrival` since the epoch; USD of None: the machine had no price."""

    arrival: float
    id: str
    model: str
    tenant: str
    adapter: str
    stream: bool
    n: int
    max_tokens: int | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish: str
    ttft: float | None
    seconds: float
    machine_seconds: float  # its share of the steps that it was in
    cost_usd: float | None
    draft_tokens: int = 0  # guessed ahead and checked
    accepted_draft_tokens: int = 0
    upstream: str = ""  # of a gateway: which one answered


class RequestLog:
    """Appends to a file that may be read, or moved away, at any time."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigError(f"--request-log {path}: cannot be written: {error.strerror}") from None

    def write(self, line: RequestLine) -> None:
        """One call of the operating system, so that lines of several servers do not mix."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(line.arrival))
        stamp = {"time": f"{moment}.{int(line.arrival % 1 * 1000):03d}Z"}
        self._file.write(orjson.dumps(stamp | asdict(line)) + b"\n")

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> Iterator[RequestLine]:
    """The requests of a log, in its order. ConfigError that names the line that is none."""
    known = {field.name for field in fields(RequestLine)}
    try:
        with path.open("rb") as file:
            for number, data in enumerate(file, 1):
                if data.strip():
                    yield _line(data, known, f"{path}, line {number}")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _line(data: bytes, known: set[str], where: str) -> RequestLine:
    try:
        row: Any = json.loads(data)
        return RequestLine(**{name: row[name] for name in known if name in row})
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{where}: is not a line of --request-log: {data[:60]!r}") from None
