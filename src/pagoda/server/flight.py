"""Deltas of one computation for several readers: those who ask for the same while it is under way join it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from pagoda.server.call import Call, DeltaStream, Serve
from pagoda.types import Delta, Usage

NO_COST = Usage(0, 0, 0, cached=True)


class Flight:
    """A computation that goes on as long as somebody reads it. Lives on the event loop."""

    def __init__(self, call: Call, serve: Serve, on_end: Callable[[Flight], None]) -> None:
        """`on_end` is called once, when the answer is whole, has failed, or nobody wants it any more."""
        self.request_id = call.requests[0].id
        self.deltas: list[Delta] = []
        self.error: BaseException | None = None
        self.finished = False
        self._on_end = on_end
        self._readers = 0
        self._news = asyncio.Event()
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.ensure_future(self._fly(call, serve))

    @property
    def is_whole(self) -> bool:
        """Whether the answer has come to its end."""
        return self.finished and self.error is None and bool(self.deltas) and self.deltas[-1].finish_reason is not None

    async def join(self, request_id: str, *, free: bool) -> FlightStream:
        """The deltas under another request's id; `free`: they cost their reader nothing. Raises what opening raised."""
        self._readers += 1
        try:
            await asyncio.shield(self.opened)
        except BaseException:
            self.leave()
            raise
        return FlightStream(self, request_id, free=free)

    def leave(self) -> None:
        """One reader less. Without readers the computation ends."""
        self._readers -= 1
        if not self._readers and not self.finished:
            self._task.cancel()

    async def wait(self) -> None:
        """Until there are more deltas, or the end."""
        await self._news.wait()

    async def _fly(self, call: Call, serve: Serve) -> None:
        stream: DeltaStream | None = None
        try:
            stream = await serve(call)
            self.opened.set_result(None)
            async for deltas in stream:
                self.deltas.extend(deltas)
                self._tell()
        except BaseException as error:
            self.error = error
            if not self.opened.done():
                self.opened.set_exception(error)
                self.opened.exception()  # it has been looked at: whoever waits raises it
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self.finished = True
            if stream is not None:
                stream.close()
            self._tell()
            self._on_end(self)

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


class FlightStream:
    """One reader's view of a flight, from its beginning."""

    def __init__(self, flight: Flight, request_id: str, *, free: bool) -> None:
        self._flight = flight
        self._request_id = request_id
        self._free = free
        self._read = 0
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[list[Delta]]:
        flight = self._flight
        while True:
            if self._read < len(flight.deltas):
                deltas = flight.deltas[self._read :]
                self._read += len(deltas)
                yield [self._mine(delta) for delta in deltas]
            elif flight.error is not None:
                raise flight.error
            elif flight.finished:
                return
            else:
                await flight.wait()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._flight.leave()

    def _mine(self, delta: Delta) -> Delta:
        if not self._free:
            return delta if delta.request_id == self._request_id else replace(delta, request_id=self._request_id)
        return replace(delta, request_id=self._request_id, usage=NO_COST)
