"""Whether upstreams answer, and which models they have: asked at the start, and every few seconds.

One that does not answer is asked again sooner, after 0.25 s, 0.5 s and so on, so that it gets requests soon after it is
back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from pagoda.gateway.following import Followers
from pagoda.gateway.upstream import Upstream

logger = logging.getLogger("pagoda.gateway")

FIRST_AGAIN_S = 0.25
LOOK_S = 5.0  # that a look may take


class Health:
    """Looks at each upstream in a task of its own."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        interval: float,
        on_down: Callable[[Upstream], None],
        followers: Followers | None = None,
    ) -> None:
        """`on_down` is called when one that answered does not any more. followers: None where it does not matter what
        upstreams hold."""
        self._upstreams = upstreams
        self._interval = interval
        self._on_down = on_down
        self._followers = followers
        self._tasks: dict[Upstream, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Look at all of them once, then go on looking."""
        await asyncio.gather(*(self._look(one) for one in self._upstreams))
        for one in self._upstreams:
            self._tasks[one] = asyncio.create_task(self._watch(one))

    async def add(self, upstream: Upstream) -> None:
        """Look at one more from now on."""
        await self._look(upstream)
        self._tasks[upstream] = asyncio.create_task(self._watch(upstream))

    def drop(self, upstream: Upstream) -> None:
        """Look at it no more."""
        if self._followers is not None:
            self._followers.drop(upstream)
        if upstream in self._tasks:
            self._tasks.pop(upstream).cancel()

    def close(self) -> None:
        if self._followers is not None:
            self._followers.close()
        for task in self._tasks.values():
            task.cancel()

    async def _watch(self, upstream: Upstream) -> None:
        wait = FIRST_AGAIN_S
        while True:
            if upstream.healthy:
                wait = FIRST_AGAIN_S
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(upstream.fallen.wait(), self._interval)
            if not upstream.healthy:
                await asyncio.sleep(wait)
                wait = min(2 * wait, self._interval)
            await self._look(upstream)

    async def _look(self, upstream: Upstream) -> None:
        was = upstream.healthy
        await upstream.look(LOOK_S)
        if upstream.healthy and self._followers is not None:
            self._followers.found(upstream)
        if was and not upstream.healthy:
            logger.warning("an upstream is away", extra={"facts": {"upstream": upstream.name, "why": upstream.why}})
            self._on_down(upstream)
        elif upstream.healthy and not was:
            logger.info("an upstream is back", extra={"facts": {"upstream": upstream.name}})
