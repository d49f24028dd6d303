"""Which of several models are in memory: as many as there is room for, loaded one after the other when asked for.

Room is made by the one that was used longest ago, one that has nothing to do if there is such. It finishes what it is
answering; who asks it for more waits its turn to be loaded again. A model whose process ends by itself is started
again, the first time in the room that it had: nobody else gets that meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from pagoda.errors import ConfigError, EngineError
from pagoda.gateway.local.upstream import LocalUpstream
from pagoda.server.logs import request_id

logger = logging.getLogger("pagoda.models")

SWEEP_S = 0.5  # between looks for idle models


class ModelPool:
    """Keeps at most `most` of `models` in memory. Lives on the event loop.

    `on_end` is called when a model's process ends by itself. ConfigError: more are pinned than there is room for.
    """

    def __init__(
        self,
        models: Sequence[LocalUpstream],
        most: int,
        *,
        idle_unload: float | None = None,
        on_end: Callable[[LocalUpstream], None] = lambda model: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.models = tuple(models)
        self.most = most
        self.num_viewers = 0  # of the live page
        self._idle_unload = idle_unload
        self._on_end = on_end
        self._clock = clock
        self._turn = asyncio.Lock()  # one after the other, in the order of asking
        self._calm = asyncio.Event()  # some model has nothing to do
        self._tasks: dict[LocalUpstream, asyncio.Task[None]] = {}
        self._sweeping: asyncio.Task[None] | None = None
        pinned = [one.name for one in models if one.local.pinned]
        if len(pinned) > most or (len(pinned) == most < len(self.models)):
            raise ConfigError(
                f"--models-max {most}: {', '.join(pinned)} are pinned, and the others would never find room"
            )
        for one in models:
            one.loader = self

    async def start(self) -> None:
        """Load what is to be there from the start. A model that cannot be loaded is said to be, and left."""
        self._sweeping = asyncio.create_task(self._sweep())
        for one in [one for one in self.models if one.local.preload or one.local.pinned][: self.most]:
            with contextlib.suppress(EngineError):
                await self.load(one)

    async def load(self, model: LocalUpstream) -> None:
        """Bring the model into memory, unless it is there. Raises EngineError with the reason why it cannot be."""
        task = self._tasks.get(model)
        await asyncio.shield(self._start_loading(model) if task is None or task.done() else task)

    async def unload(self, model: LocalUpstream) -> None:
        """Take the model out of memory, when it has answered what it is answering."""
        async with self._turn:
            if model.state == "loading":  # again, after an end of its process
                await asyncio.wait([self._tasks[model]])
            await self._unload(model)

    def _start_loading(self, model: LocalUpstream) -> asyncio.Task[None]:
        work = self._restart(model) if model.state == "loading" else self._load(model)
        task = self._tasks[model] = asyncio.create_task(work)
        task.add_done_callback(_look_at_error)
        return task

    async def _load(self, model: LocalUpstream) -> None:
        request_id.set(None)  # others wait for it, too
        await asyncio.sleep(model.again_in)
        async with self._turn:
            if model.state == "loaded":
                return
            while sum(one.is_in_memory for one in self.models) >= self.most:
                await self._make_room()
            await self._start(model)

    async def _restart(self, model: LocalUpstream) -> None:
        """Start a model again in the room that it had."""
        request_id.set(None)
        await asyncio.sleep(model.again_in)
        await self._start(model)

    async def _start(self, model: LocalUpstream) -> None:
        start = self._clock()
        try:
            await model.start()
        except EngineError as error:
            logger.error("a model cannot be loaded", extra={"facts": {"model": model.name, "why": str(error)}})
            raise
        seconds = round(self._clock() - start, 3)
        logger.info("a model is loaded", extra={"facts": {"model": model.name, "seconds": seconds}})

    async def _make_room(self) -> None:
        """Unload the one that is wanted least; where all that may go are being started again, wait for one of them."""
        able = [one for one in self.models if one.state == "loaded" and not one.local.pinned]
        idle = [one for one in able if not one.num_active]
        if able:
            await self._unload(min(idle or able, key=lambda one: one.used))
        else:
            restarts = [self._tasks[one] for one in self.models if one.state == "loading"]
            await asyncio.wait(restarts, return_when=asyncio.FIRST_COMPLETED)

    async def _unload(self, model: LocalUpstream) -> None:
        if model.state != "loaded":
            return
        model.state = "leaving"
        while model.num_active:
            self._calm.clear()
            await self._calm.wait()
        await model.stop()
        logger.info("a model is unloaded", extra={"facts": {"model": model.name}})

    def idle(self) -> None:
        self._calm.set()

    def ended(self, model: LocalUpstream) -> None:
        logger.error(
            "a model's process has ended; it is started again",
            extra={"facts": {"model": model.name, "seconds": round(model.again_in, 1)}},
        )
        self._on_end(model)
        if model.fell_once:
            model.state = "loading"  # so nobody takes its room
        self._start_loading(model)

    async def _sweep(self) -> None:
        """Unload what nobody has used for a while."""
        while True:
            await asyncio.sleep(SWEEP_S)
            for one in self.models:
                if self._is_stale(one):
                    async with self._turn:
                        if self._is_stale(one):  # still, after others' turns
                            await self._unload(one)

    def _is_stale(self, model: LocalUpstream) -> bool:
        """Whether nobody has used it for so long that it is to be unloaded."""
        is_idle = model.state == "loaded" and not model.in_flight and not model.local.pinned
        return self._idle_unload is not None and is_idle and self._clock() - model.used > self._idle_unload

    async def close(self) -> None:
        """End all processes."""
        tasks = [task for task in (self._sweeping, *self._tasks.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(one.stop() for one in self.models))


def _look_at_error(task: asyncio.Task[None]) -> None:
    """So that asyncio does not complain where nobody waits for the task."""
    if not task.cancelled():
        task.exception()
