"""One JSON object a line for each answered request: what it asked for, what it took and what it cost, never its text.

    {"time": "2025-01-31T12:03:44.105Z", "arrival": 1738325024.1, "id": …, "model": …, "tenant": …, "prompt_tokens": …}

Between them stand bills, about one a minute while requests come and one at the end: what the machine's time went into.

`pagoda bench serve --replay FILE` sends requests of the same lengths at the same moments, `pagoda cost report` sums up.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import orjson

from pagoda.errors import ConfigError

logger = logging.getLogger("pagoda.server")


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
    prefix: tuple[int, ...] = ()  # hashes of how it begins, piece by piece; equal within one run of the server alone


@dataclass(frozen=True, slots=True)
class BillLine:
    """Where the machine's time between two moments went: all but `since`, `until` and the price are seconds."""

    since: float  # the epoch's seconds
    until: float
    requests_s: float
    recomputed_s: float  # after preemptions
    idle_s: float
    usd_per_hour: float | None

    def between(self, since: float | None, until: float | None) -> BillLine:
        """The part that lies between these moments, as if the time had passed evenly; it may be empty."""
        start = self.since if since is None else min(max(self.since, since), self.until)
        end = self.until if until is None else max(min(self.until, until), start)
        share = (end - start) / (self.until - self.since) if self.until > self.since else 0.0
        times = {name: getattr(self, name) * share for name in ("requests_s", "recomputed_s", "idle_s")}
        return replace(self, since=start, until=end, **times)


class RequestLog:
    """Appends to a file that may be read, or moved away, at any time."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigError(f"--request-log {path}: cannot be written: {error.strerror}") from None

    def write(self, line: RequestLine | BillLine) -> None:
        """One call of the operating system, so that lines of several servers do not mix. A full disk loses the line."""
        when = line.arrival if isinstance(line, RequestLine) else line.until
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when))
        stamp = {"time": f"{moment}.{int(when % 1 * 1000):03d}Z"}
        try:
            self._file.write(orjson.dumps(stamp | asdict(line)) + b"\n")
        except OSError as error:
            logger.warning("the request log was not written: %s", error)

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> Iterator[RequestLine]:
    """The requests of a log, in its order. ConfigError that names the line that is none."""
    return (line for line in read_log(path) if isinstance(line, RequestLine))


def read_log(path: Path) -> Iterator[RequestLine | BillLine]:
    """All lines of a log, in its order. ConfigError that names the line that is none."""
    try:
        with path.open("rb") as file:
            for number, data in enumerate(file, 1):
                if data.strip():
                    yield _line(data, f"{path}, line {number}")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _line(data: bytes, where: str) -> RequestLine | BillLine:
    try:
        row: Any = json.loads(data)
        kind = BillLine if "idle_s" in row else RequestLine
        return kind(**{field.name: row[field.name] for field in fields(kind) if field.name in row})
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{where}: is not a line of --request-log: {data[:60]!r}") from None
