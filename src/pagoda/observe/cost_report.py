"""What requests have cost, by tenant, model, adapter or day: sums over a request log."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pagoda.observe.request_log import RequestLine

KEYS: dict[str, Callable[[RequestLine], str]] = {
    "tenant": lambda line: line.tenant or "-",
    "model": lambda line: line.model,
    "adapter": lambda line: line.adapter or "-",
    "day": lambda line: datetime.datetime.fromtimestamp(line.arrival, datetime.timezone.utc).date().isoformat(),
}


@dataclass(slots=True)
class Sum:
    """Of the requests that have one key in common."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    machine_seconds: float = 0.0
    cost_usd: float = 0.0
    unpriced: int = 0  # requests that were answered while the machine had no price

    def add(self, line: RequestLine) -> None:
        self.requests += 1
        self.prompt_tokens += line.prompt_tokens
        self.cached_tokens += line.cached_tokens
        self.completion_tokens += line.completion_tokens
        self.machine_seconds += line.machine_seconds
        self.cost_usd += line.cost_usd or 0.0
        self.unpriced += line.cost_usd is None


def within(lines: Iterable[RequestLine], since: float | None, until: float | None) -> Iterator[RequestLine]:
    """Those that arrived from `since` on and before `until`, in seconds since the epoch."""
    for line in lines:
        if (since is None or line.arrival >= since) and (until is None or line.arrival < until):
            yield line


def sums(lines: Iterable[RequestLine], by: str) -> dict[str, Sum]:
    """Of each value of the key, the dearest first."""
    found: dict[str, Sum] = {}
    for line in lines:
        found.setdefault(KEYS[by](line), Sum()).add(line)
    return dict(sorted(found.items(), key=lambda item: (-item[1].cost_usd, -item[1].machine_seconds, item[0])))
