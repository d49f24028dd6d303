"""The innermost layer of the gateway: a call goes to an upstream, and to another one if that fails before it has said
anything.

Before the first token nothing has reached the client, so another upstream may begin anew: on a connection that cannot
be opened or breaks, on silence, and on answers that say 'not me, not now' (408, 425, 429, 5xx). An answer that any
upstream would give (other 4xx) is passed on. After the first token a failure ends the answer with an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol
from urllib.parse import quote

import orjson

from pagoda.client import HttpError
from pagoda.errors import DeadlineError, ModelNotFoundError, PagodaError, UpstreamError
from pagoda.gateway.call import CHAT, COMPLETIONS, UpstreamCall, UpstreamDelta, with_model
from pagoda.gateway.replies import BadAnswerError, Relay
from pagoda.gateway.upstream import Reply, Upstream, UpstreamFailure
from pagoda.observe.gateway_series import GatewaySeries
from pagoda.routing.prefixes import HEADER, pieces_header
from pagoda.routing.router import Choice, Journey, Router
from pagoda.server.call import UPSTREAM, Call, DeltaStream
from pagoda.server.failures import DescribedError, error_body
from pagoda.types import Delta, Usage

RETRY_S = 2.0  # after which there may be an upstream again
FINISH_S = 0.5  # that a response may take to end after its answer has


class OnEnd(Protocol):
    """Is told of an answer, whole or broken off, what it took; an estimate where the upstream does not say."""

    def __call__(self, stream: UpstreamStream, usage: Usage, *, is_estimate: bool) -> None: ...


class Upstreams:
    """Opens streams on upstreams."""

    def __init__(self, router: Router[Upstream], series: GatewaySeries, *, retries: int, on_end: OnEnd) -> None:
        self.router = router
        self.series = series
        self.retries = retries
        self.on_end = on_end
        self._open: set[UpstreamStream] = set()

    async def open(self, call: Call) -> DeltaStream:
        """Raises UpstreamError when no upstream begins an answer, DescribedError for an answer that refuses."""
        assert isinstance(call, UpstreamCall)
        stream = UpstreamStream(self, call)
        self._open.add(stream)
        try:
            await stream.begin()
        except BaseException:
            stream.close()
            raise
        return stream

    def models(self) -> list[str]:
        """Names that clients can ask for, as far as they are known, in the order of the upstreams."""
        names = (name for one in self.router.replicas for name in one.settings.models or one.listed or ())
        return list(dict.fromkeys(names))

    def unknown(self, model: str | None) -> PagodaError:
        """Nobody has the model, or nobody is there."""
        if not self.router.replicas:
            return UpstreamError("there is no upstream at the moment: see that one is started", retry_after=RETRY_S)
        known = self.models()
        names = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
        has = names or "none that is known yet"
        return ModelNotFoundError(f"The model `{model}` does not exist. The upstreams have {has}.")

    @property
    def num_streams(self) -> int:
        return len(self._open)

    def closed(self, stream: UpstreamStream) -> None:
        """It is not open any more. Idempotent."""
        self._open.discard(stream)

    def close_all(self, error: Exception) -> None:
        """Make every open stream raise."""
        for stream in list(self._open):
            stream.fail(error)

    def move_from(self, upstream: Upstream) -> None:
        """An upstream does not answer any more: whoever has no token from it yet is to ask elsewhere."""
        for stream in list(self._open):
            stream.give_up(upstream)


class UpstreamStream:
    """One call's answer from whichever upstream gives it."""

    def __init__(self, upstreams: Upstreams, call: UpstreamCall) -> None:
        self._upstreams = upstreams
        self.call = call
        self.choice: Choice[Upstream] | None = None
        self.first_token: float | None = None  # time.monotonic() seconds
        self.sent: float | None = None  # when the upstream that answers was asked
        self.is_whole = False
        self._relay = Relay(call)
        self._reply: Reply | None = None
        self._failures: list[UpstreamFailure] = []
        self._tried: set[Upstream] = set()
        self._sending: asyncio.Future[Reply] | None = None
        self._moves: Upstream | None = None  # from there, since it does not answer
        self._error: Exception | None = None
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        if call.deadline is not None:
            left = call.deadline - time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(max(0.0, left), self.fail, late())

    async def begin(self) -> None:
        """Find an upstream that begins to answer."""
        while self._reply is None:
            choice = self._next()
            upstream, call = choice.replica, self.call
            self._upstreams.series.count_request(upstream.name, choice.why)
            if not upstream.returns:
                self._tried.add(upstream)
            self.choice, self.sent, self._relay = choice, time.monotonic(), Relay(call)
            upstream.take(call.model)
            upstream.prefixes.add(call.prefix)
            usage = call.streams and call.path in (CHAT, COMPLETIONS)
            body = with_model(call.body, upstream.name_of(call.model), usage=usage)
            self._sending = asyncio.ensure_future(upstream.send(call.path, body, self._headers(upstream)))
            try:
                self._reply = await self._sending
            except UpstreamFailure as failure:
                self._failed(failure)
            except HttpError as error:
                raise _passed_on(error) from None
            except asyncio.CancelledError:
                if self._error is not None:
                    raise self._error from None
                if self._moves is not upstream:
                    raise
                self._failed(UpstreamFailure(upstream, upstream.why))
            self.call.headers[UPSTREAM] = upstream.name

    async def __aiter__(self) -> AsyncIterator[list[Delta]]:
        held: list[Delta] = []  # that an answer begins, and nothing of it yet
        while True:
            try:
                async for deltas in self._deltas():
                    held += deltas
                    if self.first_token is None and not any(delta.says for delta in deltas):
                        continue
                    self.first_token = self.first_token or time.monotonic()
                    ready, held = held, []
                    yield ready
                return
            except UpstreamFailure as failure:
                if self._error is not None:
                    raise self._error from None
                if self.first_token is not None:
                    self._note_failure(failure)
                    raise UpstreamError(f"the answer broke off: {failure}; ask again") from None
                self._failed(failure)
                held = []
                await self.begin()

    async def _deltas(self) -> AsyncIterator[list[UpstreamDelta]]:
        reply, relay = self._reply, self._relay
        assert reply is not None
        assert self.choice is not None
        upstream = self.choice.replica
        try:
            if not self.call.streams:
                deltas = relay.whole(await reply.rest())
            elif not reply.is_stream:
                kind = reply.head.headers.get("content-type", "no type")
                raise BadAnswerError(f"it answered {kind} where a stream was asked for")
            else:
                while not relay.done and (piece := await reply.piece()) is not None:
                    if found := relay.push(piece):
                        yield found
                deltas = [relay.end()]
                await self._finish(reply)
        except BadAnswerError as error:
            if error.body is not None and self.first_token is not None:
                raise DescribedError(502, _error_of(error.body, str(error)), {}) from None
            raise UpstreamFailure(upstream, _said(error)) from None
        self.is_whole = True
        self._tell_end(deltas[-1].usage or relay.estimate())
        yield deltas

    async def _finish(self, reply: Reply) -> None:
        """The answer has been told to its end: read that of the response, so that the connection can be used again."""
        with contextlib.suppress(asyncio.TimeoutError, UpstreamFailure):
            await asyncio.wait_for(reply.rest(), FINISH_S)

    def _next(self) -> Choice[Upstream]:
        """The next upstream to ask. Raises what is to be told when there is none."""
        if self._error is not None:
            raise self._error
        call, journey = self.call, Journey(self.call.model, self.call.prefix, self.call.session)
        if len(self._failures) > self._upstreams.retries:
            raise _exhausted(self._failures)
        choice = self._upstreams.router.choose(journey, self._tried)
        if choice is None:
            raise _exhausted(self._failures) if self._failures else self._upstreams.unknown(call.model)
        return choice

    def _headers(self, upstream: Upstream) -> Mapping[str, str]:
        """What the upstream is told besides: the id under which the log knows this call; a Pagoda, whose it is, and,
        where it says what it holds, by which names it is to say so."""
        call = self.call
        told = {"X-Request-Id": call.id}
        if call.tenant and upstream.is_pagoda:
            told["X-Pagoda-Tenant"] = quote(call.tenant)
        if call.prefix and upstream.says_prefixes:
            told[HEADER] = pieces_header(call.prefix, call.prefix_bytes)
        return told

    def _failed(self, failure: UpstreamFailure) -> None:
        self._note_failure(failure)
        self._failures.append(failure)
        self._release()

    def _note_failure(self, failure: UpstreamFailure) -> None:
        self._upstreams.series.failures.add((failure.upstream.name, "late" if self.first_token else "early"))

    def _release(self) -> None:
        """The upstream that was asked has nothing more to do with this call."""
        if self._reply is not None:
            self._reply.close()
            self._reply = None
        if self.choice is not None:
            self.choice.replica.give_back()
            self.choice.replica.prefixes.over(self.call.prefix)
            self.choice = None

    def give_up(self, upstream: Upstream) -> None:
        """Stop waiting for this upstream, if that is the one, and it has said nothing yet."""
        if self.choice is not None and self.choice.replica is upstream and self.first_token is None:
            self._moves = upstream
            self._break_off()

    def fail(self, error: Exception) -> None:
        """Raise `error` in whoever reads."""
        self._error = error
        self._break_off()

    def _break_off(self) -> None:
        if self._reply is not None:
            self._reply.close()
        elif self._sending is not None:
            self._sending.cancel()

    def _tell_end(self, usage: Usage) -> None:
        self._upstreams.on_end(self, usage, is_estimate=not self._relay.told_usage)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._reply is not None and not self.is_whole:
            self._tell_end(self._relay.estimate())
        self._release()
        self._upstreams.closed(self)


def late() -> DeadlineError:
    return DeadlineError("deadline_ms has passed: the answer was dropped")


def _passed_on(error: HttpError) -> DescribedError:
    """An upstream's refusal, in its own words."""
    assert error.status is not None
    return DescribedError(error.status, _error_of(_parsed(error.body), str(error), error.status), {})


def _exhausted(failures: list[UpstreamFailure]) -> Exception:
    """No upstream has begun an answer: what to tell the client."""
    busy = [one.error for one in failures if one.error is not None and one.error.status in (429, 503)]
    if len(busy) == len(failures):
        wait = min((error.retry_after or 1.0 for error in busy), default=1.0)
        last = busy[-1]
        body = _error_of(_parsed(last.body), str(last), last.status or 503)
        return DescribedError(last.status or 503, body, {"Retry-After": f"{wait:.0f}"})
    told = "; ".join(dict.fromkeys(map(str, failures)))
    return UpstreamError(f"no upstream could answer: {told}. See that it runs, and that this machine reaches it")


def _error_of(body: Any, message: str, status: int = 502) -> dict[str, Any]:
    """The upstream's error object, or one of ours where it has none."""
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        return body
    code = "upstream_failed" if status == 502 else None
    return error_body(message, status, code=code)


def _said(error: BadAnswerError) -> str:
    told = (error.body or {}).get("error")
    message = told.get("message") if isinstance(told, dict) else told
    return f"{error}: {message}"[:300] if message else str(error)


def _parsed(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
