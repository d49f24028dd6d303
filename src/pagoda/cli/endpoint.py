"""One way to ask a model, wherever it runs: in this process, through the same application that `serve` serves, or
behind the URL of any OpenAI-compatible server. So a field means the same in a file, in the terminal and over HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from pagoda.cli.progress import download_progress
from pagoda.client import Endpoint, Head, HttpClient, event_data, list_models, status_error
from pagoda.config import EngineSettings, ServerSettings

Application = Callable[[MutableMapping[str, Any], Any, Any], Any]  # ASGI

NO_LIMIT = 2**31


class LocalEndpoint:
    """Talks ASGI to an application in this process."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def post(self, path: str, body: bytes) -> bytes:
        return b"".join([piece async for piece in self._exchange(path, body)])

    def events(self, path: str, body: bytes) -> AsyncIterator[bytes]:
        return event_data(self._exchange(path, body))

    def close(self) -> None:
        """Nothing is held."""

    async def _exchange(self, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """One request; pieces of the answer. Whoever stops reading has gone away, and the application is told."""
        sent: asyncio.Queue[MutableMapping[str, Any] | None] = asyncio.Queue()
        gone = asyncio.Event()
        call = asyncio.create_task(self._call(path, body, sent, gone))
        try:
            start = await sent.get()
            if start is None:
                await call  # it failed before it answered
                raise AssertionError("the application ended without an answer")
            head = Head(start["status"], {name.decode(): value.decode() for name, value in start["headers"]})
            pieces = _bodies(sent)
            if head.status >= 400:
                raise status_error(head, b"".join([piece async for piece in pieces]))
            async for piece in pieces:
                yield piece
        finally:
            gone.set()
            await asyncio.gather(call, return_exceptions=True)

    async def _call(
        self, path: str, body: bytes, sent: asyncio.Queue[MutableMapping[str, Any] | None], gone: asyncio.Event
    ) -> None:
        request = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> MutableMapping[str, Any]:
            for message in request:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        try:
            await self._app(_scope(path, len(body)), receive, sent.put)
        finally:
            sent.put_nowait(None)


async def _bodies(sent: asyncio.Queue[MutableMapping[str, Any] | None]) -> AsyncIterator[bytes]:
    while (message := await sent.get()) is not None:
        if message["type"] == "http.response.body":
            yield message.get("body", b"")
            if not message.get("more_body"):
                return


def _scope(path: str, num_bytes: int) -> MutableMapping[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(num_bytes).encode())],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
        "state": {},
    }


@contextmanager
def open_endpoints(
    engine: EngineSettings, url: str | None, api_key: str | None = None
) -> Iterator[Callable[[], Endpoint]]:
    """Something that makes endpoints, one for each client: of the server at `url`, or of a model loaded here."""
    if url is not None:
        HttpClient(url)  # a bad URL is known at once
        yield lambda: HttpClient(url, api_key)
        return
    with local_endpoint(engine) as endpoint:
        yield lambda: endpoint


def served_model(url: str | None, api_key: str | None, wanted: str) -> str | None:
    """What to call the model in requests: `wanted` if the server has it, else its first; None: there is only one."""
    if url is None:
        return None
    names = [model["id"] for model in asyncio.run(list_models(url, api_key))]
    return wanted if wanted in names else names[0]


@contextmanager
def local_endpoint(engine: EngineSettings) -> Iterator[LocalEndpoint]:
    """Load a model and turn its engine. Raises what `load_engine` raises."""
    from pagoda.engine.load import load_engine
    from pagoda.server.app import create_app

    with download_progress() as progress:
        loaded = load_engine(engine, progress=progress)
    try:
        limits = ServerSettings(max_queue_requests=NO_LIMIT, max_queue_tokens=NO_LIMIT, max_body_bytes=NO_LIMIT)
        yield LocalEndpoint(create_app(loaded, limits))
    finally:
        loaded.close()
