"""What the prefix cache holds and how that changes, as server-sent events (`prefix_routes.py`), for routers.

    {"type": "cleared", "block_size": 16, "model": "smollm2-135m"}     nothing that was told before counts any more
    {"type": "stored", "blocks": ["9f2c…"], "pieces": ["51d0…"]}
    {"type": "removed", "blocks": ["9f2c…"], "pieces": ["51d0…"]}

First comes `cleared`, then all that is held, then each change. `blocks` are keys of KV blocks of 16 tokens: hashes of
all tokens up to there under a secret of this process, the tenant, the `cache_salt` and the adapter, so they tell
nothing of what was said and are no tenant's to compare. `pieces` are what the listener itself knows prompts by: the
labels of the header X-Pagoda-Prefix of the request that was computed. Token ids are not told.

Who reads too slowly is cut off, and may come again: the engine waits for nobody. Before anybody has listened, the
engine keeps no log at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import orjson

from pagoda.engine.prefix_log import PrefixLog
from pagoda.errors import OverloadedError, UnsupportedError
from pagoda.server.bridge import EngineThread
from pagoda.types import BLOCK_SIZE, PrefixChange, StepResult

MAX_LISTENERS = 16
MAX_UNREAD = 4 * 1024 * 1024  # bytes of events that wait for a listener
PART = 4096  # blocks in one event of the snapshot
LOOK_S = 1.0  # after which a listener sees that the server shuts down


class Listener:
    """One connection: events that it has not taken yet. Lives on the event loop."""

    def __init__(self) -> None:
        self.is_cut_off = False
        self._unread: list[bytes] = []
        self._num_bytes = 0
        self._wake = asyncio.Event()

    def put(self, events: bytes) -> None:
        """Further events. One that has too many unread ones is cut off."""
        if self.is_cut_off:
            return
        self._unread.append(events)
        self._num_bytes += len(events)
        if self._num_bytes > MAX_UNREAD and len(self._unread) > 1:  # a snapshot alone may be larger
            self.is_cut_off = True
            self._unread.clear()
        self._wake.set()

    async def take(self) -> bytes:
        """All events that wait, after LOOK_S none."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wake.wait(), LOOK_S)
        self._wake.clear()
        events, self._unread, self._num_bytes = b"".join(self._unread), [], 0
        return events


class PrefixEvents:
    """Tells listeners what an engine's steps have changed."""

    def __init__(self, engine: EngineThread, model_name: str) -> None:
        self._engine = engine
        self._cleared = _event({"type": "cleared", "block_size": BLOCK_SIZE, "model": model_name})
        self._listeners: set[Listener] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def are_wanted(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    async def listen(self) -> Listener:
        """A listener that has all that is held now, and gets all that changes. Raises UnsupportedError, EngineError."""
        if len(self._listeners) >= MAX_LISTENERS:
            raise OverloadedError(f"{MAX_LISTENERS} routers listen already", retry_after=10.0)
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self._engine.on_step.append(self._record)
        listener = Listener()

        def snapshot(log: PrefixLog) -> None:  # on the engine's thread, so in order with what its steps tell
            parts = list(log.snapshot(PART))
            loop.call_soon_threadsafe(self._begin, listener, parts)

        try:
            await asyncio.wrap_future(self._engine.ask(lambda engine: snapshot(_log_of(engine))))
        except BaseException:
            self.leave(listener)
            raise
        return listener

    def leave(self, listener: Listener) -> None:
        """It listens no more. Idempotent."""
        self._listeners.discard(listener)

    def _record(self, step: StepResult) -> None:
        """An observer of steps, on the engine's thread."""
        if step.prefix_changes and self._listeners and self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody reads any more
                self._loop.call_soon_threadsafe(self._tell, step.prefix_changes)

    def _begin(self, listener: Listener, parts: list[PrefixChange]) -> None:
        listener.put(self._cleared + b"".join(map(_told, parts)))
        self._listeners.add(listener)

    def _tell(self, changes: tuple[PrefixChange, ...]) -> None:
        events = b"".join(map(_told, changes))
        for listener in self._listeners:
            listener.put(events)


def _log_of(engine: object) -> PrefixLog:
    watch: Callable[[], PrefixLog | None] = getattr(engine, "watch_prefixes", lambda: None)
    log = watch()
    if log is None:
        raise UnsupportedError("this server keeps no KV of prefixes: there is nothing to tell")
    return log


def _told(change: PrefixChange) -> bytes:
    labels = [f"{label:016x}" for label in change.labels]
    return _event({"type": change.kind, "blocks": [key.hex() for key in change.blocks], "pieces": labels})


def _event(data: dict[str, object]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"
