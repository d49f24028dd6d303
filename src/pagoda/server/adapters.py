"""The layers that find the adapter of a call, bring it into memory, and keep it there while the call is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from pagoda.engine.adapters import AdapterStore
from pagoda.server.call import Call, DeltaStream, Serve
from pagoda.types import Delta


class FreshAdapters:
    """Layer: what the folder of adapters has under a call's name now is what the name means. Reading what is new there
    keeps the call waiting, and no other. Raises RequestError for what cannot be read."""

    def __init__(self, store: AdapterStore) -> None:
        self._store = store

    async def __call__(self, call: Call, serve: Serve) -> DeltaStream:
        if call.adapter is not None and self._store.is_stale(call.adapter):
            await asyncio.to_thread(self._store.refresh, call.adapter)
        return await serve(call)


class Adapters:
    """Layer: the adapter that the call names is in memory while it is answered. One that is read from disk keeps the
    call waiting, and no other. Raises ModelNotFoundError."""

    def __init__(self, store: AdapterStore) -> None:
        self._store = store

    async def __call__(self, call: Call, serve: Serve) -> DeltaStream:
        if call.adapter is None:
            return await serve(call)
        store, name = self._store, call.adapter
        version = store.pin(name)
        try:
            if version.placed is None:
                loaded = await asyncio.to_thread(store.load, version, name)
            else:
                loaded = store.load(version, name)
            requests = tuple(replace(request, adapter=loaded) for request in call.requests)
            stream = await serve(replace(call, requests=requests))
        except BaseException:
            store.unpin(version)
            raise
        return PinnedStream(stream, lambda: store.unpin(version))


class PinnedStream:
    """A stream that lets go of its adapter when it is closed."""

    def __init__(self, stream: DeltaStream, unpin: Callable[[], None]) -> None:
        self._stream = stream
        self._unpin: Callable[[], None] | None = unpin

    def __aiter__(self) -> AsyncIterator[list[Delta]]:
        return aiter(self._stream)

    def close(self) -> None:
        self._stream.close()
        unpin, self._unpin = self._unpin, None
        if unpin is not None:
            unpin()
