"""Writing an answer while the client is there: server-sent events, and noticing that nobody listens any more.

Whoever reads a stream of deltas closes it, so a client that goes away frees its sequences within one step.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from pagoda.server.answers import DONE
from pagoda.server.failures import describe
from pagoda.server.record import record_of

logger = logging.getLogger("pagoda.server")

T = TypeVar("T")

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies: pass each event on at once
# No events: clients skip them, proxies see that the connection lives. JSON may begin with a space.
COMMENTS = {"text/event-stream": b": keep-alive\n\n", "application/x-ndjson": b" "}
# Seconds after which a client that has closed its side for writing is written to, to see whether it still reads.
PROBE_S = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)


class ClientGone(Exception):
    """The client closed its connection before the answer was complete."""


class EventStream(Response):
    """A response that writes events as they come. `close` is called once, however it ends."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        close: Callable[[], None],
        keep_alive: float = 0.0,
        headers: Mapping[str, str] | None = None,
        failure: Callable[[int, dict[str, Any]], bytes] | None = None,
        media_type: str = media_type,
    ) -> None:
        """`keep_alive`: seconds without an event after which a comment is sent; 0: never. `failure` writes an error."""
        self.media_type = media_type
        self._comment = COMMENTS[media_type]
        self._failure = failure or _failure
        self._events = events
        self._close = close
        self._keep_alive = keep_alive
        self._last = time.monotonic()  # when something was written
        self.status_code = 200
        self.background = None
        self.init_headers(HEADERS | dict(headers or {}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        half_closed = scope.get("pagoda.half_closed") or asyncio.Event()
        try:
            await while_connected(receive, self._write(send, half_closed))
        except ClientGone:
            record_of(scope).client_gone = True
        finally:
            self._close()

    async def _write(self, send: Send, half_closed: asyncio.Event) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        beat = asyncio.ensure_future(self._beat(send, half_closed))
        try:
            async for piece in self._events:
                self._last = time.monotonic()
                await send(_part(piece))
        except Exception as error:  # the status line is out already: an event tells of the error
            status, body, _ = describe(error)
            if status == 500:
                logger.error("unexpected error in a stream", exc_info=error)
            await send(_part(self._failure(status, body)))
        finally:
            beat.cancel()
        await send(_part(b"", more=False))

    async def _beat(self, send: Send, half_closed: asyncio.Event) -> None:
        """Write comments while there are no events. Each `send` is a whole one, so they never mix."""
        while not half_closed.is_set():
            left = self._last + self._keep_alive - time.monotonic() if self._keep_alive else None
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(half_closed.wait(), left)
            if left is not None and time.monotonic() >= self._last + self._keep_alive:
                self._last = time.monotonic()
                await send(_part(self._comment))
        for seconds in PROBE_S:
            await asyncio.sleep(seconds)
            await send(_part(self._comment))


def _failure(status: int, body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n" + DONE


def _part(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; when the client goes away first, cancel it and raise ClientGone."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for unfinished in (task, watcher):
            unfinished.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
