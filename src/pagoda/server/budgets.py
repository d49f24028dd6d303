"""What a key may use: requests and tokens a minute, tokens and dollars a day and month, requests at once, models.

An answer from the semantic cache counts as a request, and costs no tokens.

A layer. A call is refused when its prompt and max_tokens, with what its key has under way and has used in the window,
are more than a limit. What it really took is written down when its stream closes.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field

from pagoda.errors import BudgetError
from pagoda.observe.metrics import Metrics
from pagoda.server.caching import is_cached
from pagoda.server.call import Call, DeltaStream, Serve
from pagoda.server.key_store import KeyStore, Limits, Period, window
from pagoda.types import Delta


@dataclass(slots=True)
class UnderWay:
    """What one key has open."""

    requests: int = 0
    tokens: int = 0  # prompts, and all that may come


@dataclass(frozen=True, slots=True)
class Bound:
    """One limit, and how much of it is gone."""

    what: str  # requests, tokens or USD
    period: Period
    limit: float
    gone: float
    resets: float  # seconds from now


@dataclass(slots=True)
class Budgets:
    """What the keys of one model may use and have used. Lives on the event loop."""

    store: KeyStore
    model: str
    metrics: Metrics
    clock: Callable[[], float] = time.time
    _open: dict[str, UnderWay] = field(default_factory=dict)

    async def __call__(self, call: Call, serve: Serve) -> DeltaStream:
        """Raises BudgetError, which says what is used up and when there is more."""
        key = self.store.limits(call.tenant)
        if key is None:
            return await serve(call)
        wanted = sum(len(request.prompt_token_ids) for request in call.requests)
        wanted += sum((request.params.max_tokens or 0) * request.params.n for request in call.requests)
        try:
            self._check(call, key, wanted)
        except BudgetError:
            self.metrics.server.http_rejected.add("budget")
            raise
        here = self._open.setdefault(call.tenant, UnderWay())
        here.requests += 1
        here.tokens += wanted
        self.store.add(call.tenant, self.clock(), requests=1)
        try:
            return BudgetedStream(self, call, await serve(call), wanted)
        except BaseException:
            self.leave(call.tenant, wanted)
            raise

    def leave(self, tenant: str, wanted: int) -> None:
        """A call is over."""
        here = self._open[tenant]
        here.requests -= 1
        here.tokens -= wanted
        if not here.requests:
            del self._open[tenant]

    def headers(self, tenant: str) -> dict[str, str]:
        """What is left in this minute, as OpenAI's API says it."""
        limits = self.store.limits(tenant)
        if limits is None:
            return {}
        found: dict[str, str] = {}
        for bound in self._bounds(tenant, limits):
            if bound.period == "minute":
                found[f"x-ratelimit-limit-{bound.what}"] = f"{bound.limit:.0f}"
                found[f"x-ratelimit-remaining-{bound.what}"] = f"{max(0.0, bound.limit - bound.gone):.0f}"
                found[f"x-ratelimit-reset-{bound.what}"] = f"{bound.resets:.0f}s"
        return found

    def _check(self, call: Call, limits: Limits, wanted: int) -> None:
        asked = call.adapter or self.model
        if limits.models is not None and asked not in limits.models:
            raise BudgetError(
                f"this key may not use {asked}, only {', '.join(limits.models)}",
                code="model_not_allowed",
            )
        here = self._open.get(call.tenant, UnderWay())
        most = limits.concurrent_requests
        if most is not None and here.requests >= most:
            raise BudgetError(
                f"this key has {here.requests} requests under way, and may have {most}",
                retry_after=1.0,
                code="rate_limit_exceeded",
            )
        for bound in self._bounds(call.tenant, limits):
            more = {"requests": 1, "tokens": wanted, "usd": 0.0}[bound.what]
            if bound.gone + more > bound.limit or bound.gone >= bound.limit:
                raise _exceeded(bound, more, self.headers(call.tenant))

    def _bounds(self, tenant: str, limits: Limits) -> Iterator[Bound]:
        """The limits that the key has by time. Tokens under way count as used."""
        now, open_tokens = self.clock(), self._open.get(tenant, UnderWay()).tokens
        rows: Mapping[tuple[str, Period], float | None] = {
            ("requests", "minute"): limits.requests_per_minute,
            ("tokens", "minute"): limits.tokens_per_minute,
            ("tokens", "day"): limits.tokens_per_day,
            ("usd", "day"): limits.usd_per_day,
            ("tokens", "month"): limits.tokens_per_month,
            ("usd", "month"): limits.usd_per_month,
        }
        for (what, period), limit in rows.items():
            if limit is not None:
                used = self.store.used(tenant, period, now)
                gone = {"requests": used.requests, "tokens": used.tokens + open_tokens, "usd": used.usd}[what]
                yield Bound(what, period, limit, gone, window(period, now)[1] - now)


def _exceeded(bound: Bound, more: float, headers: Mapping[str, str]) -> BudgetError:
    what = "USD" if bound.what == "usd" else bound.what
    message = f"this key's {what} of this {bound.period} are used up: {bound.gone:.6g} of {bound.limit:.6g}"
    if bound.what == "tokens":
        message += f", and this request asks for up to {more:.0f}"
    code = "rate_limit_exceeded" if bound.period == "minute" else "insufficient_quota"
    return BudgetError(message, retry_after=bound.resets, code=code, headers=headers)


class BudgetedStream:
    """Passes deltas through and counts their tokens; `close` writes down what was used."""

    def __init__(self, budgets: Budgets, call: Call, stream: DeltaStream, wanted: int) -> None:
        self._budgets = budgets
        self._call = call
        self._stream = stream
        self._wanted = wanted
        self._tokens = sum(len(request.prompt_token_ids) for request in call.requests)
        self._is_open = True

    async def __aiter__(self) -> AsyncIterator[list[Delta]]:
        async for deltas in self._stream:
            self._tokens += sum(len(delta.token_ids) for delta in deltas)
            if self._call.is_estimate and deltas[-1].usage is not None:
                self._tokens = deltas[-1].usage.prompt_tokens + deltas[-1].usage.completion_tokens
            yield deltas

    def close(self) -> None:
        self._stream.close()
        if self._is_open:
            self._is_open = False
            budgets = self._budgets
            tokens = 0 if is_cached(self._call) else self._tokens
            usd = sum(budgets.metrics.ledger.usd(request.id) for request in self._call.requests)
            budgets.store.add(self._call.tenant, budgets.clock(), tokens=tokens, usd=usd)
            budgets.leave(self._call.tenant, self._wanted)
