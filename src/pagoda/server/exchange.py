"""One HTTP/1 request and its response: what an ASGI application receives, and how what it sends is framed.

A response of unknown length goes in chunks to HTTP/1.1 clients; to HTTP/1.0 clients as it is, ended by the end of the
connection (RFC 9112, section 6.3).

A client that has closed its side for writing may still read (RFC 9112, section 9.6), or be gone: TCP says the same of
both until something is written. So the status line, which begins alike whatever the answer will be, is then written
ahead a letter at a time: a client that is gone answers with a reset, and its request is ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Literal

from starlette.types import ASGIApp, Message, Scope

logger = logging.getLogger("pagoda.server")

BUFFERED_BYTES = 64 * 1024  # of a body that nobody has received yet; more is not read from the socket
WRITTEN_BYTES = 128 * 1024  # of a response at once
PROBES = b"HTTP/1.1 "  # what every status line begins with
PROBE_S = (0.02, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # seconds between its letters

PHRASES = {status.value: status.phrase for status in HTTPStatus}
Framing = Literal["none", "length", "chunks", "close"]


class Exchange:
    """A request being received and its response being sent, on `transport`."""

    def __init__(
        self,
        scope: Scope,
        transport: asyncio.Transport,
        *,
        keep_alive: bool,
        expects_continue: bool,
        default_headers: Sequence[tuple[bytes, bytes]],
        resume_reading: Callable[[], None],
        on_complete: Callable[[Exchange], None],
    ) -> None:
        """`on_complete` is called once the whole response is written."""
        self.scope = scope
        self.keep_alive = keep_alive
        self.received = False  # the whole request is here
        self.complete = False  # the whole response is written
        self.disconnected = False
        self.half_closed = asyncio.Event()  # the client has closed its side for writing
        scope["pagoda.half_closed"] = self.half_closed
        self.can_write = asyncio.Event()
        self.can_write.set()
        self._transport = transport
        self._expects_continue = expects_continue
        self._default_headers = default_headers
        self._resume_reading = resume_reading
        self._on_complete = on_complete
        self._body = bytearray()
        self._error: Exception | None = None
        self._news = asyncio.Event()  # for who receives
        self._framing: Framing | None = None  # None: the response has not started
        self._left = 0  # of the response's Content-Length
        self._num_probes = 0

    # What the connection tells

    @property
    def started(self) -> bool:
        """Whether the response has begun."""
        return self._framing is not None

    def feed(self, data: bytes) -> bool:
        """A part of the body. → whether no more should be read for now"""
        if not self.complete:
            self._body += data
            self._news.set()
        return len(self._body) > BUFFERED_BYTES

    def end(self) -> None:
        """The body is complete."""
        self.received = True
        self._news.set()

    def fail(self, error: Exception) -> None:
        """Raise `error` in whoever receives."""
        self._error = error
        self._news.set()

    def disconnect(self) -> None:
        """The client is gone."""
        self.disconnected = True
        self._news.set()
        self.can_write.set()

    def half_close(self) -> None:
        """The client sends no more. Find out whether it still reads."""
        self.keep_alive = False
        self.half_closed.set()
        self._probe()

    def _probe(self) -> None:
        if not self.started and not self.disconnected and self._num_probes < len(PROBES):
            self._transport.write(PROBES[self._num_probes : self._num_probes + 1])
            if self._num_probes < len(PROBE_S):
                asyncio.get_running_loop().call_later(PROBE_S[self._num_probes], self._probe)
            self._num_probes += 1

    # What the application calls

    async def run(self, app: ASGIApp) -> None:
        """Let the application answer. What it raises, or leaves undone, is answered with a 500 where that can be."""
        try:
            await app(self.scope, self.receive, self.send)
        except Exception:
            if not self.complete:  # who has answered has said what was wrong
                logger.exception("unexpected error")
        if self.complete or self.disconnected:
            return
        if self.started:
            self._transport.close()
        else:
            await self.send(
                {"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"0"), CLOSE]}
            )
            await self.send({"type": "http.response.body", "body": b""})

    async def receive(self) -> Message:
        """ASGI: the next part of the body, or that the client is gone."""
        if self._expects_continue and not self.started and not self.disconnected:
            self._expects_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self.disconnected and not self.complete:
            self._resume_reading()
            await self._news.wait()
            self._news.clear()
        if self.disconnected or self.complete:
            return {"type": "http.disconnect"}
        if self._error is not None:
            raise self._error
        body, self._body = bytes(self._body), bytearray()
        return {"type": "http.request", "body": body, "more_body": not self.received}

    async def send(self, message: Message) -> None:
        """ASGI: the next part of the response. What is sent to a client that is gone is dropped."""
        await self.can_write.wait()
        if self.disconnected:
            return
        if not self.started:
            assert message["type"] == "http.response.start", message["type"]
            self._start(message["status"], [*self._default_headers, *message.get("headers", ())])
        else:
            assert message["type"] == "http.response.body", message["type"]
            await self._write(message.get("body", b""), more=message.get("more_body", False))

    def _start(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self._framing, self._left = self._framing_of(status, headers)
        lines = [b"HTTP/1.1 %d %s" % (status, PHRASES.get(status, "").encode())]
        lines += [b"%s: %s" % (name, value) for name, value in headers]
        if any(name == b"connection" and b"close" in value.lower() for name, value in headers):
            self.keep_alive = False
        elif self._framing == "close" or not self.keep_alive:
            self.keep_alive = False
            lines.append(b"connection: close")
        elif self.scope["http_version"] == "1.0":
            lines.append(b"connection: keep-alive")
        if self._framing == "chunks":
            lines.append(b"transfer-encoding: chunked")
        head = b"\r\n".join(lines)
        assert head.count(b"\n") == len(lines) - 1, "a header holds a line break"
        self._transport.write(head[self._num_probes :] + b"\r\n\r\n")

    def _framing_of(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> tuple[Framing, int]:
        """How the client finds the end of the body, and its length where that is known."""
        if self.scope["method"] == "HEAD" or status in (204, 304):
            return "none", 0
        for name, value in headers:
            if name == b"content-length":
                return "length", int(value)
        return ("close" if self.scope["http_version"] == "1.0" else "chunks"), 0

    async def _write(self, body: bytes, *, more: bool) -> None:
        if self._framing == "length":
            self._left -= len(body)
            assert self._left >= 0, "the response is longer than its Content-Length"
            assert more or not self._left, "the response is shorter than its Content-Length"
        before = after = b""
        if self._framing == "chunks":
            before, after = (b"%x\r\n" % len(body), b"\r\n") if body else (b"", b"")
            after += b"" if more else b"0\r\n\r\n"
        if self._framing == "none":
            pass
        elif len(body) <= WRITTEN_BYTES:
            self._transport.write(before + body + after)
        else:
            await self._write_long(before, body, after)
        if self.disconnected:
            return
        if not more:
            self.complete = True
            self._body.clear()
            self._news.set()
            self._on_complete(self)

    async def _write_long(self, before: bytes, body: bytes, after: bytes) -> None:
        """Part by part, as the client takes them: the whole is not copied, and others have their turn in between."""
        self._transport.write(before)
        for start in range(0, len(body), WRITTEN_BYTES):
            await self.can_write.wait()
            await asyncio.sleep(0)
            if self.disconnected:
                return
            self._transport.write(memoryview(body)[start : start + WRITTEN_BYTES])
        self._transport.write(after)


CLOSE = (b"connection", b"close")
