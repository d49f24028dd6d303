"""HTTP/1 connections: llhttp parses, `Exchange` answers, and this file bounds what a client may do before it is known.

A head has HEAD_BYTES and `header_timeout`, a body `body_timeout`; who takes nothing of an answer for `write_timeout` is
cut off, so that the sequence and the connection are free again. Offers to switch to another protocol (h2c, WebSocket)
are declined by answering in HTTP/1.1, as RFC 9110, section 7.8 has it, with the request's body in whatever pieces it
comes. When there are more connections than may be, the one that has waited longest for a request is closed.
"""

from __future__ import annotations

import asyncio
import logging
import urllib.parse
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import httptools
import orjson
import uvicorn
from starlette.exceptions import HTTPException
from starlette.types import Scope
from uvicorn.server import ServerState

from pagoda.server.exchange import Exchange
from pagoda.server.failures import error_body
from pagoda.server.offers import head_without_offer

logger = logging.getLogger("pagoda.server")

HEAD_BYTES = 64 * 1024
LINGER_S = 3.0  # for a client that still sends what nobody wants


@dataclass(slots=True)
class Connections:
    """What connections of one server share: their bounds, and which of them wait for a request, longest first."""

    header_timeout: float = 10.0  # seconds for a request's head
    body_timeout: float = 60.0  # seconds for a body
    write_timeout: float = 60.0  # seconds in which a client takes nothing of what waits for it
    keep_alive: float = 75.0  # seconds between requests
    max_connections: int = 1000
    waiting: dict[Connection, None] = field(default_factory=dict)

    def make_room(self, num_connections: int) -> bool:
        """Close who has waited longest, if there are too many. → whether there is room now"""
        if num_connections <= self.max_connections:
            return True
        longest = next(iter(self.waiting), None)
        if longest is None:
            return False
        longest.close()
        return True


class Connection(asyncio.Protocol):
    """One connection. Uvicorn makes it, with the arguments that follow `shared`."""

    def __init__(
        self,
        shared: Connections,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._shared = shared
        self._config = config
        self._app = config.loaded_app
        self._state = server_state
        self._connections: set[Any] = server_state.connections
        self._loop = _loop or asyncio.get_running_loop()
        self._transport: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._reading = True
        self._closing = False  # nothing that comes is looked at any more
        self._receiving: Exchange | None = None  # whose body is coming
        self._answering: Exchange | None = None
        self._pipeline: deque[Exchange] = deque()  # requests that came before the answer to an earlier one
        self._idle = False  # between two requests
        self._in_head = False  # a request's head has begun to come
        self._head_bytes = 0  # of it
        self._new_parser()

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._connections.add(self)
        if self._shared.make_room(len(self._connections)):
            self._wait(self._shared.header_timeout)
        else:
            self._refuse(503, "too many connections: try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._stop_waiting()
        self._expect_reading(0)
        for exchange in (self._answering, self._receiving, *self._pipeline):
            if exchange is not None and not exchange.complete:
                exchange.disconnect()

    def eof_received(self) -> bool:
        """→ whether the connection stays open: while there is a whole request to answer."""
        exchange = self._answering
        if exchange is None or exchange.complete or self._receiving is not None:
            return False
        exchange.half_close()
        return True

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data) if self._in_head else 0
        while data and not self._closing:
            try:
                self._parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as error:
                data = self._in_http1() + data[error.args[0] :]
            except httptools.HttpParserError:
                self._refuse(400, "this is not a request in HTTP/1")
        if self._in_head and self._head_bytes > HEAD_BYTES and not self._closing:
            self._refuse(431, f"the request's head is longer than {HEAD_BYTES} bytes")

    def pause_writing(self) -> None:
        if self._answering is not None:
            self._answering.can_write.clear()
        self._expect_reading(self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        if self._answering is not None:
            self._answering.can_write.set()
        self._expect_reading(0)

    # What the parser calls

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        if self._idle:
            self._idle = False
            self._wait(self._shared.header_timeout)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what follows a body in chunks is not looked at
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._parser.should_upgrade():
            return  # the parser stops after it, and begins again in HTTP/1
        self._in_head = False
        if sum(len(name) + len(value) + 4 for name, value in self._headers) + len(self._url) > HEAD_BYTES:
            return self._refuse(431, f"the request's head is longer than {HEAD_BYTES} bytes")
        self._stop_waiting()
        exchange = Exchange(
            self._scope(),
            self._transport,
            keep_alive=self._parser.should_keep_alive(),
            expects_continue=any(n == b"expect" and v.lower() == b"100-continue" for n, v in self._headers),
            default_headers=self._state.default_headers,
            resume_reading=self._resume_reading,
            on_complete=self._on_complete,
        )
        self._receiving = exchange
        self._start_timer(self._shared.body_timeout, self._on_late_body)
        if self._answering is None:
            self._answer(exchange)
        else:
            self._pipeline.append(exchange)
            self._pause_reading()

    def on_body(self, body: bytes) -> None:
        if self._receiving is not None and self._receiving.feed(body):
            self._pause_reading()

    def on_message_complete(self) -> None:
        exchange, self._receiving = self._receiving, None
        if exchange is None:
            return
        self._stop_waiting()
        exchange.end()
        if exchange.complete:  # it was answered without its body
            self._go_on(exchange)

    # Requests

    def _scope(self) -> Scope:
        url = httptools.parse_url(self._url)
        raw_path = url.path or b"/"
        return {
            "type": "http",
            "asgi": {"version": self._config.asgi_version, "spec_version": "2.3"},
            "http_version": self._parser.get_http_version(),
            "method": self._parser.get_method().decode("ascii"),
            "scheme": "http",
            "path": urllib.parse.unquote(raw_path.decode("latin-1")),
            "raw_path": raw_path,
            "query_string": url.query or b"",
            "root_path": "",
            "headers": self._headers,
            "client": self._address("peername"),
            "server": self._address("sockname"),
            "state": {},
        }

    def _address(self, which: str) -> tuple[str, int] | None:
        address = self._transport.get_extra_info(which)
        return (str(address[0]), int(address[1])) if isinstance(address, tuple) else None

    def _answer(self, exchange: Exchange) -> None:
        self._answering = exchange
        task = self._loop.create_task(exchange.run(self._app))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    def _on_complete(self, exchange: Exchange) -> None:
        """The response of `exchange` is written."""
        self._state.total_requests += 1
        if self._closing or self._transport.is_closing():
            return
        if exchange.received:
            self._go_on(exchange)
        elif exchange.keep_alive:  # what is left of the body stands before the next request
            self._resume_reading()
            self._start_timer(LINGER_S, self.close)
        else:
            self._linger()

    def _go_on(self, exchange: Exchange) -> None:
        """What comes after an exchange that is over."""
        self._answering = None
        if not exchange.keep_alive:
            self.close()
        elif self._pipeline:
            self._answer(self._pipeline.popleft())
        else:
            self._wait(self._shared.header_timeout if self._in_head else self._shared.keep_alive)
            self._idle = not self._in_head
        self._resume_reading()

    def _in_http1(self) -> bytes:
        """The head of a request that offers another protocol, without the offer. Starts a new parser for it."""
        method, version = self._parser.get_method(), self._parser.get_http_version()
        if method == b"CONNECT":
            self._refuse(405, "this server is no proxy")
            return b""
        self._new_parser()
        return head_without_offer(method, self._url, version, self._headers)

    def _new_parser(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)  # of requests in a pipeline

    # Time, room and the end

    def _wait(self, seconds: float) -> None:
        """For a request's head."""
        self._shared.waiting.pop(self, None)
        self._shared.waiting[self] = None
        self._start_timer(seconds, self._on_late_head)

    def _stop_waiting(self) -> None:
        self._shared.waiting.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_timer(self, seconds: float, then: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, then)

    def _on_late_head(self) -> None:
        if self._in_head:
            self._refuse(408, f"the request's head has not come within {self._shared.header_timeout:g} s")
        else:
            self.close()

    def _on_late_body(self) -> None:
        exchange = self._receiving
        if exchange is not None and self._reading:
            message = f"the body has not come within {self._shared.body_timeout:g} s (--body-timeout)"
            exchange.fail(HTTPException(408, message, {"Connection": "close"}))
        else:  # it waits for us
            self._start_timer(self._shared.body_timeout, self._on_late_body)

    def _expect_reading(self, unread: int) -> None:
        """`unread` bytes wait for the client, which has to take some of them within `write_timeout`. 0: none wait."""
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
        if unread:
            self._unread_timer = self._loop.call_later(self._shared.write_timeout, self._on_unread, unread)

    def _on_unread(self, before: int) -> None:
        unread = self._transport.get_write_buffer_size()
        if unread < before:
            self._expect_reading(unread)
        else:
            why = f"the client has read nothing for {self._shared.write_timeout:g} s (--write-timeout)"
            logger.info("cut off", extra={"facts": {"unread_bytes": unread, "why": why}})
            self._transport.abort()

    def _pause_reading(self) -> None:
        if self._reading and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._reading and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def _refuse(self, status: int, message: str) -> None:
        """Answer what has not become a request, and close."""
        if self._answering is None:
            content = orjson.dumps(error_body(message, status))
            self._transport.write(
                b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
                % (status, HTTPStatus(status).phrase.encode(), len(content), content)
            )
        logger.info("refused", extra={"facts": {"status": status, "why": message}})
        self._linger()

    def _linger(self) -> None:
        """Close, but read on for a while: a client that still sends would see a reset in place of its answer."""
        self._closing = True
        self._resume_reading()
        self._transport.write_eof()
        self._start_timer(LINGER_S, self.close)

    def close(self) -> None:
        """End the connection, once what is written has gone out."""
        self._stop_waiting()
        self._closing = True
        self._transport.close()
        self._expect_reading(self._transport.get_write_buffer_size())

    def shutdown(self) -> None:
        """Uvicorn is ending: close, after the answer that is being written."""
        if self._answering is None or self._answering.complete:
            self.close()
        else:
            self._answering.keep_alive = False
