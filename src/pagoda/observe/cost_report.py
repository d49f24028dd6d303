"""What requests have cost, by tenant, model, adapter or day, and what else the machine's time went into: sums over a
request log."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields

from pagoda.observe.request_log import BillLine, RequestLine

KEYS: dict[str, Callable[[RequestLine], str]] = {
    "tenant": lambda line: line.tenant or "-",
    "model": lambda line: line.model,
    "adapter": lambda line: line.adapter or "-",
    "day": lambda line: datetime.datetime.fromtimestamp(line.arrival, datetime.timezone.utc).date().isoformat(),
}


@dataclass(slots=True)
class Sum:
    """The totals of the requests that have one key in common."""

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


@dataclass(slots=True)
class House:
    """What no request of the log pays, in seconds and USD. With what they pay it is all of the machine's time."""

    idle_s: float = 0.0
    idle_usd: float = 0.0
    recomputed_s: float = 0.0
    recomputed_usd: float = 0.0
    other_s: float = 0.0  # vectors and scores, checks of the semantic cache, requests that have not ended
    other_usd: float = 0.0
    seconds: float = 0.0  # that the machine ran
    bill_usd: float = 0.0  # its price for them

    def add(self, bill: BillLine) -> None:
        second = (bill.usd_per_hour or 0.0) / 3600
        self.idle_s += bill.idle_s
        self.idle_usd += bill.idle_s * second
        self.recomputed_s += bill.recomputed_s
        self.recomputed_usd += bill.recomputed_s * second
        self.other_s += bill.requests_s
        self.other_usd += bill.requests_s * second
        self.seconds += bill.until - bill.since
        self.bill_usd += (bill.until - bill.since) * second


def house(bills: Iterable[BillLine], requests: Sum) -> House:
    """`requests`: all of the log's at the same time, whose share is taken off."""
    found = House()
    for bill in bills:
        found.add(bill)
    found.other_s = max(0.0, found.other_s - requests.machine_seconds)
    found.other_usd = max(0.0, found.other_usd - requests.cost_usd)
    return found


def within(lines: Iterable[RequestLine], since: float | None, until: float | None) -> Iterator[RequestLine]:
    """Those that arrived from `since` on and before `until`, in seconds since the epoch."""
    for line in lines:
        if (since is None or line.arrival >= since) and (until is None or line.arrival < until):
            yield line


def total_of(parts: Iterable[Sum]) -> Sum:
    total = Sum()
    for one in parts:
        for field in fields(Sum):
            setattr(total, field.name, getattr(total, field.name) + getattr(one, field.name))
    return total


def sums(lines: Iterable[RequestLine], by: str) -> dict[str, Sum]:
    """The totals for each value of the key, the dearest first."""
    found: dict[str, Sum] = {}
    for line in lines:
        found.setdefault(KEYS[by](line), Sum()).add(line)
    return dict(sorted(found.items(), key=lambda item: (-item[1].cost_usd, -item[1].machine_seconds, item[0])))
