"""The server process: uvicorn with our idea of its end.

The first SIGTERM or SIGINT: no new requests (503, and /ready says so too), what runs is finished within
`--shutdown-timeout`, exit 0. A second one: stop at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import partial
from types import FrameType
from typing import Any, Protocol, TypeVar

import uvicorn
from starlette.applications import Starlette

from pagoda.cache.cache import SemanticCache
from pagoda.config import ServerSettings
from pagoda.errors import FormatError
from pagoda.observe.cost import CostSettings
from pagoda.server.app import create_app
from pagoda.server.cache_parts import load_cache
from pagoda.server.http import Connection, Connections
from pagoda.server.service import Loaded, Model

L = TypeVar("L", bound=Loaded)

logger = logging.getLogger("pagoda.server")

POLL_S = 0.02
WATCH_S = 0.5  # between looks at the model's files
BROKEN_S = 5.0  # that a server whose model has changed goes on refusing, so that who asks /ready sees it
CLOSE_S = 2  # connections get that long to close after their last answer
KEEP_ALIVE_S = 75  # longer than clients keep idle connections: they close first, and never write into a closed one


class Watched(Protocol):
    """What is loaded, as far as the server's life depends on it."""

    def changed(self) -> str | None:
        """What has happened to it, so that it cannot be answered from any more."""

    def close(self) -> None: ...


class Living(Protocol):
    """What a server's life is about: `Service`, or a gateway's."""

    settings: ServerSettings
    num_active: int

    def attach(self, loaded: Any, cache: SemanticCache | None) -> Any:
        """What is loaded is there: answer requests. → what is told to who waits for that"""

    def drain(self) -> None: ...

    def give_up(self, reason: str) -> None: ...

    def cut_off(self, reason: str) -> None: ...

    def close(self) -> Awaitable[None] | None:
        """End what was started, now or when what comes is awaited."""

    def end(self) -> None: ...


class PagodaServer(uvicorn.Server):
    """Listens while the model is being loaded, and drains before it closes."""

    def __init__(
        self, service: Living, config: uvicorn.Config, loading: Future[Any], on_ready: Callable[[Any], None]
    ) -> None:
        super().__init__(config)
        self.failure: Exception | None = None
        self.service = service
        self._loading = loading
        self._on_ready = on_ready
        self._stop_asked = False
        self._stop_event = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._life = asyncio.create_task(self._live())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self.service.end()

    async def _live(self) -> None:
        """From loading to drained."""
        try:
            stop = asyncio.create_task(self._stop_asked_for())
            loading = asyncio.wrap_future(self._loading)
            await asyncio.wait([stop, loading], return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                return await self._drain()
            cache = await asyncio.to_thread(load_cache, self.service.settings)
            self._on_ready(self.service.attach(loading.result(), cache))
            changed = asyncio.create_task(self._model_changed(loading.result()))
            await asyncio.wait([stop, changed], return_when=asyncio.FIRST_COMPLETED)
            if changed.done():
                self._give_up(changed.result())
                await asyncio.wait([stop], timeout=BROKEN_S)
            changed.cancel()
            await self._drain()
        except Exception as error:
            self.failure = error
        finally:
            if (closing := self.service.close()) is not None:
                await closing
            self.should_exit = True

    async def _stop_asked_for(self) -> None:
        if not self._stop_asked:  # by a signal that came before there was a loop
            await self._stop_event.wait()

    async def _model_changed(self, loaded: Watched) -> str:
        """Wait until the model's files are not what they were. → what happened"""
        while (change := await asyncio.to_thread(loaded.changed)) is None:
            await asyncio.sleep(WATCH_S)
        return change

    def _give_up(self, change: str) -> None:
        """Refuse everything from now on, and end with an error."""
        self.failure = FormatError(f"{change}: what would be answered from it is worth nothing; start the server again")
        logger.error("the model's file has changed; the server stops", extra={"facts": {"why": change}})
        self.service.give_up(change)

    async def _drain(self) -> None:
        service = self.service
        deadline = time.monotonic() + service.settings.shutdown_timeout
        says = "shutting down; a second Ctrl-C stops at once" if service.num_active else "shutting down"
        logger.info(says, extra={"facts": {"unfinished_requests": service.num_active}})
        service.drain()
        while service.num_active and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
        if service.num_active:
            logger.warning("requests cut off by --shutdown-timeout", extra={"facts": {"count": service.num_active}})
            service.cut_off("the server is shutting down")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal handler. May be called from any thread."""
        if self._stop_asked:
            os.write(2, b"stopped by a second signal\n")
            os._exit(128 + sig)
        self.stop()

    def stop(self) -> None:
        """What the first signal does. May be called from any thread."""
        self._stop_asked = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop_event.set)


def make_server(
    settings: ServerSettings,
    loading: Future[L],
    on_ready: Callable[[Model], None] = lambda model: None,
    cost: CostSettings | None = None,
) -> PagodaServer:
    """A server whose model is `loading`; `on_ready` is called when it is there."""
    return server_of(create_app(None, settings, cost), settings, loading, on_ready)


def server_of(
    app: Starlette, settings: ServerSettings, loading: Future[Any], on_ready: Callable[[Any], None]
) -> PagodaServer:
    """A server of an application whose `state.service` lives as `Living` says."""
    connections = Connections(
        settings.header_timeout, settings.body_timeout, settings.write_timeout, KEEP_ALIVE_S, settings.max_connections
    )
    http: Any = partial(Connection, connections)
    config = uvicorn.Config(
        app,
        http=http,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=CLOSE_S,
    )
    return PagodaServer(app.state.service, config, loading, on_ready)


def run(
    sock: socket.socket,
    settings: ServerSettings,
    loading: Future[L],
    on_ready: Callable[[Model], None],
    cost: CostSettings | None = None,
) -> None:
    """Serve on `sock` until a signal comes, and what runs is finished. Raises what loading raised."""
    run_server(make_server(settings, loading, on_ready, cost), sock, loading)


def run_server(server: PagodaServer, sock: socket.socket, loading: Future[Any]) -> None:
    """Serve on `sock` until a signal comes, and what runs is finished. Raises what loading raised."""
    server.run(sockets=[sock])
    if loading.done() and server.failure is None:
        loading.result().close()
    if server.failure is not None:
        raise server.failure
