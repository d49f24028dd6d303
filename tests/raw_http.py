"""HTTP as bytes, for tests of what well-behaved clients never send, or not in such pieces."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from serving import HANG_S


@dataclass(frozen=True)
class Answer:
    """A response as it came."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=HANG_S) as sock:
        yield sock


def post(path: str, *headers: str, version: str = "1.1", content: bytes | None = None, **body: Any) -> bytes:
    """The bytes of a POST of JSON."""
    content = json.dumps(body).encode() if content is None else content
    lines = [f"POST {path} HTTP/{version}", "Host: x", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def get(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: x", *headers]).encode() + b"\r\n\r\n"


def send_in_pieces(sock: socket.socket, data: bytes, size: int) -> None:
    """`size` bytes at a time, each of which arrives by itself."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for start in range(0, len(data), size):
        sock.sendall(data[start : start + size])
        time.sleep(0.001)


def read_all(sock: socket.socket) -> bytes:
    """Until the server closes."""
    pieces = []
    while piece := sock.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def read_answer(sock: socket.socket, *, has_body: bool = True) -> Answer:
    """One response, whose Content-Length or chunks say where it ends."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += _receive(sock, 1)
    headers, body = parse_head(head[:-4])[1], b""
    if has_body and "content-length" in headers:
        body = _receive(sock, int(headers["content-length"]))
    while has_body and "transfer-encoding" in headers and not body.endswith(b"0\r\n\r\n"):
        body += _receive(sock, 1)
    return parse(head + body)


def _receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, f"the connection ended after {data!r}"
        data += piece
    return data


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    status_line, *lines = head.decode("latin-1").split("\r\n")
    assert status_line.startswith("HTTP/1.1 "), status_line
    pairs = (line.partition(": ") for line in lines)
    return int(status_line.split()[1]), {name.lower(): value for name, _, value in pairs}


def parse(data: bytes) -> Answer:
    """A whole response."""
    head, _, body = data.partition(b"\r\n\r\n")
    status, headers = parse_head(head)
    if headers.get("transfer-encoding") == "chunked":
        body = b"".join(_chunks(body))
    return Answer(status, headers, body, data)


def _chunks(data: bytes) -> Iterator[bytes]:
    while data:
        size, _, data = data.partition(b"\r\n")
        yield data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]
