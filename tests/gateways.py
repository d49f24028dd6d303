"""A gateway before real HTTP servers of this process, for tests."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from pagoda.config import ServerSettings
from pagoda.gateway.app import create_gateway
from pagoda.gateway.service import Gateway, GatewayParts
from pagoda.gateway.settings import GatewaySettings, UpstreamSettings
from pagoda.observe.cost import CostSettings
from pagoda.server.listen import bind, url
from pagoda.server.run import PagodaServer, server_of
from serving import HANG_S, wait_for


@dataclass
class Gated:
    """A running gateway."""

    url: str
    server: PagodaServer
    client: httpx.Client

    @property
    def gateway(self) -> Gateway:
        found: Any = self.server.service
        assert found.loaded is not None
        return found.loaded

    def chat(self, text: str = "Say it.", headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        asked = {"messages": [{"role": "user", "content": text}], "temperature": 0} | body
        return self.client.post("/v1/chat/completions", json=asked, headers=headers)

    def kept(self) -> None:
        """Wait until answers are in the cache."""
        assert self.gateway.caching is not None
        self.gateway.caching._writer.submit(lambda: None).result(HANG_S)


@contextmanager
def gating(
    *upstreams: str | UpstreamSettings, cost: CostSettings | None = None, told: dict[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Gated]:  # fmt: skip
    """A gateway on a free port. `told`: of GatewaySettings; `settings`: of the server."""
    sock = bind("127.0.0.1", 0)
    rows = tuple(
        UpstreamSettings(one, one.removeprefix("http://")) if isinstance(one, str) else one for one in upstreams
    )
    parts = GatewayParts(GatewaySettings(**{"health_interval": 0.2} | (told or {})), rows)
    loading: Future[GatewayParts] = Future()
    loading.set_result(parts)
    server_settings = ServerSettings(port=0, **settings)
    app = create_gateway(server_settings, cost or CostSettings())
    server = server_of(app, server_settings, loading, lambda _: None)
    thread = threading.Thread(target=lambda: server.run(sockets=[sock]))
    thread.start()
    gated = Gated(url(sock), server, httpx.Client(base_url=url(sock), timeout=HANG_S))
    try:
        wait_for(lambda: server.service.ready or not thread.is_alive())  # type: ignore[attr-defined]
        yield gated
    finally:
        gated.client.close()
        server.stop()
        thread.join(HANG_S)
        assert not thread.is_alive(), "the gateway does not end"
        assert server.failure is None, server.failure


Behaviour = Callable[[socket.socket, bytes], None]


class Scripted:
    """An upstream that does with each POST what it is told: a socket and the request's body go to `behave`."""

    def __init__(self, behave: Behaviour, models: tuple[str, ...] = ("m",)) -> None:
        self.behave, self.models = behave, models
        self.bodies: list[Any] = []
        self.heads: list[str] = []
        self._listener = bind("127.0.0.1", 0)
        self._listener.listen()
        self.url = url(self._listener)
        self.name = self.url.removeprefix("http://")
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as file, contextlib.suppress(OSError):
            while line := file.readline():
                head = line.decode()
                while (line := file.readline()).strip():
                    head += line.decode()
                length = re.search(r"content-length: (\d+)", head.lower())
                body = file.read(int(length[1])) if length else b""
                if head.startswith("GET"):
                    respond(sock, {"object": "list", "data": [{"id": name} for name in self.models]})
                    continue
                self.heads.append(head)
                self.bodies.append(json.loads(body))
                self.behave(sock, body)


def reset(sock: socket.socket) -> None:
    """Break the connection off, as a killed process does."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raise ConnectionError


def respond(sock: socket.socket, body: Any, status: int = 200, *headers: str) -> None:
    """A whole response of JSON."""
    content = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(content)}", *headers]
    sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + content)


def begin_stream(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")


def send_event(sock: socket.socket, event: Any) -> None:
    data = event if isinstance(event, bytes) else b"data: " + json.dumps(event).encode() + b"\n\n"
    sock.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def end_stream(sock: socket.socket) -> None:
    send_event(sock, b"data: [DONE]\n\n")
    sock.sendall(b"0\r\n\r\n")


def said(text: str = "", finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """A chunk of a chat."""
    content = {"content": text} if text else {}
    return {"id": "c", "choices": [{"index": 0, "delta": content | delta, "finish_reason": finish}]}


def whole(text: str = "Yes.", **message: Any) -> dict[str, Any]:
    """A chat answer in one piece: 10 prompt tokens, 4 of them cached, 2 of the answer."""
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    choice = {"index": 0, "message": {"role": "assistant", "content": text} | message, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "model": "there", "choices": [choice], "usage": usage}
