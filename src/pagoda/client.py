"""A small asyncio HTTP/1.1 client that costs little, so that measuring a server disturbs it little.

Covered: keep-alive, Content-Length and chunked bodies, server-sent events, TLS. Not covered: redirects, proxies,
compression, trailers with meaning.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol
from urllib.parse import urlsplit

import orjson

from pagoda.errors import ConfigError, PagodaError

MAX_HEAD = 64 * 1024
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class HttpError(PagodaError):
    """The server answered with an error status and `body`, or broke the protocol: then `status` is None.

    `retry_after` is in seconds, where the server said so.
    """

    def __init__(
        self, message: str, status: int | None = None, body: bytes = b"", retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers (names in lower case) of an answer."""

    status: int
    headers: Mapping[str, str]


class Endpoint(Protocol):
    """Something that answers OpenAI's API. Raises HttpError, or OSError when nobody answers."""

    async def post(self, path: str, body: bytes) -> bytes:
        """Body of the answer to a POST of JSON."""

    def events(self, path: str, body: bytes) -> AsyncIterator[bytes]:
        """POST JSON and yield the data of each server-sent event, `[DONE]` left out."""

    def close(self) -> None:
        """Let go of the connection; the next request opens another."""


class HttpClient:
    """One connection to one server, opened when needed and kept alive between requests.

    `url` is the server's base, with or without `/v1`. Raises HttpError, or OSError when nobody answers.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--url: {url!r} is not the address of a server, such as http://127.0.0.1:8000")
        self._tls = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._tls else 80)
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self._fixed = f"Host: {parts.netloc.rpartition('@')[2]}\r\nAccept: */*\r\n"
        if api_key:
            self._fixed += f"Authorization: Bearer {api_key}\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def get(self, path: str) -> bytes:
        """Body of the answer to a GET."""
        return b"".join([piece async for piece in self._exchange("GET", path, b"")])

    async def post(self, path: str, body: bytes) -> bytes:
        return b"".join([piece async for piece in self._exchange("POST", path, body)])

    def events(self, path: str, body: bytes) -> AsyncIterator[bytes]:
        return event_data(self._exchange("POST", path, body))

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that the next request goes over."""
        return self._streams is not None and not self._streams[0].at_eof()

    async def connect(self) -> None:
        """Open the connection, where there is none yet. Raises OSError."""
        await self._connect()

    async def begin(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = NO_HEADERS
    ) -> tuple[Head, AsyncGenerator[bytes, None]]:
        """Send one request. → the head of the answer, whatever its status, and its body in pieces as they come.

        The connection survives a whole answer only: `close` drops one that is not read to its end, and the server sees
        that.
        """
        content = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        request = f"{method} {self._base}{path} HTTP/1.1\r\n{self._fixed}{more}{content}\r\n".encode() + body
        try:
            with _http_errors():
                reader, head = await self._send(request)
        except BaseException:
            self.close()
            raise
        return head, self._body(reader, head)

    async def _body(self, reader: asyncio.StreamReader, head: Head) -> AsyncGenerator[bytes, None]:
        whole = False
        try:
            with _http_errors():
                async for piece in _read_body(reader, head):
                    yield piece
            whole = head.headers.get("connection", "").lower() != "close"
        finally:
            if not whole:
                self.close()

    async def _exchange(self, method: str, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """One request; pieces of the answer's body as they come. Raises HttpError for a status of 400 or more."""
        head, pieces = await self.begin(method, path, body)
        async with aclosing(pieces):
            if head.status >= 400:
                raise status_error(head, b"".join([piece async for piece in pieces]))
            async for piece in pieces:
                yield piece

    async def _send(self, request: bytes) -> tuple[asyncio.StreamReader, Head]:
        """Send, and read the answer's head. A kept connection may have been closed at the other end: once more."""
        kept = self._streams is not None
        reader, writer = await self._connect()
        try:
            writer.write(request)
            await writer.drain()
            return reader, await _read_head(reader)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self.close()
            if kept and not getattr(error, "partial", b""):
                return await self._send(request)
            raise

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, ssl=self._tls or None, limit=MAX_HEAD)
        return self._streams


@contextmanager
def _http_errors() -> Iterator[None]:
    """What breaks while an answer is read, as HttpError."""
    try:
        yield
    except asyncio.IncompleteReadError:
        raise HttpError("the server closed the connection in the middle of an answer") from None
    except (asyncio.LimitOverrunError, ValueError):
        raise HttpError("the server's answer is not HTTP/1.1") from None


async def event_data(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The data of each event of a stream that comes in pieces, `[DONE]` left out. Closes the stream at its own end."""
    rest = b""
    async with aclosing(pieces):
        async for piece in pieces:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                    yield data


def status_error(head: Head, body: bytes) -> HttpError:
    """The error that an answer with a status of 400 or more stands for."""
    wait = head.headers.get("retry-after", "")
    retry_after = float(wait) if wait.isdigit() else None
    return HttpError(f"{head.status}: {body.decode(errors='replace')[:500]}", head.status, body, retry_after)


async def _read_head(reader: asyncio.StreamReader) -> Head:
    status_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    version, _, rest = status_line.partition(" ")
    if not version.startswith("HTTP/1."):
        raise HttpError(f"not an HTTP answer: {status_line[:80]!r}")
    status = int(rest[:3])
    pairs = (line.partition(":") for line in lines if line)
    return Head(status, {name.strip().lower(): value.strip() for name, _, value in pairs})


async def _read_body(reader: asyncio.StreamReader, head: Head) -> AsyncIterator[bytes]:
    if "chunked" in head.headers.get("transfer-encoding", "").lower():
        while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
            yield (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    elif "content-length" in head.headers:
        left = int(head.headers["content-length"])
        while left:
            piece = await reader.read(min(left, 65536))
            if not piece:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(piece)
            yield piece
    elif head.status not in (204, 304):
        while piece := await reader.read(65536):
            yield piece


async def list_models(url: str, api_key: str | None = None) -> list[dict[str, Any]]:
    """The models that a server offers, at least one. Raises PagodaError that names the server."""
    client = HttpClient(url, api_key)
    try:
        models: list[dict[str, Any]] = orjson.loads(await client.get("/v1/models"))["data"]
        assert isinstance(models[0]["id"], str)
    except HttpError as error:
        raise HttpError(f"{url}: {error}", error.status) from None
    except OSError as error:
        raise PagodaError(f"{url}: nobody answers ({error}); is the server running?") from None
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AssertionError):
        raise PagodaError(f"{url}: /v1/models is not an OpenAI list of models") from None
    finally:
        client.close()
    return models
