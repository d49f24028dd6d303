"""What an upstream says of its prefix cache: its stream of events (/v1/kv_events), read as it comes.

While the stream lasts, the upstream's `prefixes` are what it has said. When it breaks, they are a guess again that
begins with what was said last; the next stream begins with all that is held.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import orjson

from pagoda.client import HttpError, event_data
from pagoda.gateway.upstream import AGENT, Upstream
from pagoda.routing.prefixes import PrefixIndex, ToldPrefixes

PATH = "/v1/kv_events"
BEGIN_S = 10.0  # that the stream may take to begin
SILENCE_S = 60.0  # without a byte of it, comments included, after which it counts as broken


async def follow(upstream: Upstream) -> None:
    """Read the upstream's stream to its end. One that refuses is not asked again until it has been away."""
    client = upstream.new_client()
    told: ToldPrefixes | None = None
    try:
        head, pieces = await asyncio.wait_for(client.begin("GET", upstream.path_of(PATH), headers=AGENT), BEGIN_S)
        if head.status != 200 or not head.headers.get("content-type", "").startswith("text/event-stream"):
            upstream.offers_events = head.status in (429, 503)
            return
        async with aclosing(event_data(_lively(pieces))) as events:
            async for data in events:
                event = orjson.loads(data)
                if event.get("type") == "cleared":
                    told = upstream.prefixes = ToldPrefixes()
                elif told is not None:
                    apply(event, told)
    except (OSError, HttpError, asyncio.IncompleteReadError, asyncio.TimeoutError, ValueError, KeyError):
        pass  # whoever looks at the upstream finds out whether it is there
    finally:
        client.close()
        if told is not None and upstream.prefixes is told:
            upstream.prefixes = told.as_guess() if upstream.healthy else PrefixIndex()


def apply(event: dict[str, Any], told: ToldPrefixes) -> None:
    """Take one event in. Those of kinds that are not known change nothing. Raises KeyError, ValueError."""
    if event["type"] == "stored":
        told.stored(int(piece, 16) for piece in event["pieces"])
    elif event["type"] == "removed":
        told.removed(int(piece, 16) for piece in event["pieces"])


async def _lively(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The pieces as they come. Raises asyncio.TimeoutError when none does for long."""
    async with aclosing(pieces):
        while True:
            with contextlib.suppress(StopAsyncIteration):
                yield await asyncio.wait_for(anext(pieces), SILENCE_S)
                continue
            return


class Followers:
    """Follows each upstream that says what it holds, in a task of its own."""

    def __init__(self) -> None:
        self._tasks: dict[Upstream, asyncio.Task[None]] = {}

    def found(self, upstream: Upstream) -> None:
        """The upstream was looked at, and answers."""
        task = self._tasks.get(upstream)
        if upstream.offers_events and (task is None or task.done()):
            self._tasks[upstream] = asyncio.create_task(follow(upstream))

    def drop(self, upstream: Upstream) -> None:
        if upstream in self._tasks:
            self._tasks.pop(upstream).cancel()

    def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
