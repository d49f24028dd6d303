"""Between the engine's thread and the event loop: requests go down, deltas come up in about one wake-up a step."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from pagoda.errors import DeadlineError, EngineError
from pagoda.server.call import Call, DeltaStream
from pagoda.types import Delta, Request, StepResult

T = TypeVar("T")

SLOW_DELTAS = 32  # not yet written: a client that has so many waiting reads slower than tokens come


class EngineThread(Protocol):
    """What the server needs of `pagoda.engine.thread.EngineThread`. All of it may be called from any thread."""

    before_sinks: list[Callable[[StepResult], None]]
    on_step: list[Callable[[StepResult], None]]

    @property
    def alive(self) -> bool: ...

    @property
    def error(self) -> BaseException | None: ...

    def start(self) -> None: ...

    def validate(self, request: Request) -> Request: ...

    def submit(self, request: Request, sink: Callable[[Delta], None]) -> None: ...

    def abort(self, request_id: str) -> None: ...

    def ask(self, question: Callable[[Any], T]) -> Future[T]: ...

    def drain(self) -> None: ...

    def stop(self, timeout: float = 0.0) -> None: ...


class EngineBridge:
    """Opens streams on the engine.

    A sink appends, and wakes the loop unless that has been done already. The loop gets to run when the engine's next
    native call lets go of the interpreter, and by then the outbox holds everything that the step has produced.
    """

    def __init__(self, engine: EngineThread) -> None:
        self._engine = engine
        self._outbox: deque[tuple[EngineStream, Delta]] = deque()
        self._woken: asyncio.AbstractEventLoop | None = None  # has been told, and has not looked yet
        self._open: set[EngineStream] = set()
        self.busy_since: float | None = None  # None: no stream is open

    async def open(self, call: Call) -> DeltaStream:
        """Submit the requests, which are valid. Raises EngineError when the engine has stopped."""
        if not self._engine.alive:
            raise EngineError(f"the engine has stopped: {self._engine.error or 'it was shut down'}")
        stream = EngineStream(self._engine, call.requests, self._closed)
        self._open.add(stream)
        stream.fail_at(call.start_by, unless_started=True)
        stream.fail_at(call.deadline, unless_started=False)
        if self.busy_since is None:
            self.busy_since = time.monotonic()
        sink = self._sink(stream, asyncio.get_running_loop())
        try:
            for request in call.requests:
                self._engine.submit(request, sink)
        except BaseException:
            stream.close()
            raise
        return stream

    @property
    def num_streams(self) -> int:
        """Streams that are open."""
        return len(self._open)

    @property
    def num_slow_streams(self) -> int:
        """Open streams whose clients do not keep up."""
        return sum(stream.num_unread > SLOW_DELTAS for stream in list(self._open))

    def close_all(self, error: Exception) -> None:
        """Make every open stream raise, so that its reader closes it. Runs on the loop."""
        for stream in list(self._open):
            stream.fail(error)

    def _closed(self, stream: EngineStream) -> None:
        self._open.discard(stream)
        if not self._open:
            self.busy_since = None

    def _sink(self, stream: EngineStream, loop: asyncio.AbstractEventLoop) -> Callable[[Delta], None]:
        def sink(delta: Delta) -> None:  # on the engine's thread
            self._outbox.append((stream, delta))
            if self._woken is not loop:
                self._woken = loop
                with suppress(RuntimeError):  # the loop is closed: nobody reads any more
                    loop.call_soon_threadsafe(self._deliver)

        return sink

    def _deliver(self) -> None:
        self._woken = None  # before looking: what is appended from here on wakes the loop again
        while self._outbox:
            stream, delta = self._outbox.popleft()
            stream.put(delta)


class EngineStream:
    """One HTTP request's share of the engine: one or several engine requests, each of n choices. Lives on the loop."""

    def __init__(
        self, engine: EngineThread, requests: Sequence[Request], on_close: Callable[[EngineStream], None]
    ) -> None:
        self._engine = engine
        self._unfinished = {request.id: request.params.n for request in requests}
        self._arrived: list[Delta] = []
        self._error: Exception | None = None
        self._wake: asyncio.Future[None] | None = None
        self._on_close = on_close
        self._started = False
        self._timers: list[asyncio.TimerHandle] = []

    async def __aiter__(self) -> AsyncIterator[list[Delta]]:
        while self._unfinished:
            if not self._arrived and self._error is None:
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
            if self._error is not None:
                raise self._error
            arrived, self._arrived = self._arrived, []
            for delta in arrived:
                if delta.finish_reason is not None:
                    self._count_down(delta.request_id)
            yield arrived

    @property
    def num_unread(self) -> int:
        """Deltas that wait to be written."""
        return len(self._arrived)

    def put(self, delta: Delta) -> None:
        self._arrived.append(delta)
        self._started = True
        self._wake_up()

    def fail(self, error: Exception) -> None:
        """Raise `error` in whoever reads."""
        self._error = error
        self._wake_up()

    def fail_at(self, moment: float | None, *, unless_started: bool) -> None:
        """Raise DeadlineError in whoever reads, at that time of time.monotonic(). None: never."""
        if moment is not None:
            loop = asyncio.get_running_loop()
            self._timers.append(loop.call_later(moment - time.monotonic(), self._is_late, unless_started))

    def _is_late(self, unless_started: bool) -> None:
        if not (unless_started and self._started):
            self.fail(DeadlineError("deadline_ms has passed, or can no longer be met: the answer was dropped"))

    def close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._on_close(self)
        for request_id in self._unfinished:
            self._engine.abort(request_id)
        self._unfinished.clear()

    def _count_down(self, request_id: str) -> None:
        self._unfinished[request_id] -= 1
        if not self._unfinished[request_id]:
            del self._unfinished[request_id]

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
