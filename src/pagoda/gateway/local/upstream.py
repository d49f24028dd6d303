"""A model of this machine as an upstream: whoever sends to it waits until it is in memory.

unloaded ──load──► loading ──► loaded ──(idle, or to make room)──► leaving ──► unloaded
    ▲                 │           │
    └── after a while ┴── its process ended by itself
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, Protocol

from pagoda.client import NO_HEADERS, HttpClient, HttpError
from pagoda.engine.adapter_folder import AdapterFolder
from pagoda.errors import EngineError
from pagoda.gateway.local.process import ServeProcess
from pagoda.gateway.local.settings import LocalSettings, flags_of
from pagoda.gateway.settings import UpstreamSettings
from pagoda.gateway.upstream import Reply, Upstream, UpstreamFailure

State = Literal["unloaded", "loading", "loaded", "leaving"]

FIRST_AGAIN_S, LAST_AGAIN_S = 0.5, 30.0  # between an end that nobody asked for and the next start
STEADY_S = 60.0  # after so long in memory, an end is the first again
STOP_S = 35.0  # that a process may take to end


class Loader(Protocol):
    """Whoever says when a model may be in memory."""

    async def load(self, model: LocalUpstream) -> None:
        """Bring it there. Raises EngineError where it cannot be."""

    def idle(self) -> None:
        """Some model has nothing to do any more."""

    def ended(self, model: LocalUpstream) -> None:
        """Its process is gone, and nobody has asked for that."""


class LocalUpstream(Upstream):
    """One model of several. Lives on the event loop."""

    def __init__(
        self,
        local: LocalSettings,
        *,
        load_timeout: float,
        timeout: float,
        is_default: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """is_default: it gets the requests that name no model."""
        folder = local.engine.lora_dir
        stands = () if folder is None else AdapterFolder(folder).names()
        names = [local.name, *(given.partition("=")[0] for given in local.engine.lora), *stands]
        settings = UpstreamSettings("http://127.0.0.1:9", local.name, models={name: name for name in names})
        super().__init__(settings, timeout=timeout, clock=clock)
        self.is_pagoda = True
        self.local, self.is_default = local, is_default
        self.state: State = "unloaded"
        self.loader: Loader | None = None
        self.used = 0.0  # when something was last asked of it
        self.starts = 0  # of its process
        self.process: ServeProcess | None = None
        self._load_timeout = load_timeout
        self._waiting = 0  # requests that wait for it to be loaded
        self._let_in = 0  # of them, those that it was loaded for: they go in before it makes room for another
        self._loaded_at = 0.0
        self._ends = 0  # of its process in a row that nobody asked for
        self._not_before = 0.0
        self._why_not = ""  # it could not be loaded when that was last tried; empty: it could

    @property
    def num_active(self) -> int:
        """Requests that its process is answering, or was loaded to answer."""
        return self.in_flight - self._waiting + self._let_in

    @property
    def is_in_memory(self) -> bool:
        return self.state != "unloaded"

    @property
    def fell_once(self) -> bool:
        """Whether its process has ended by itself for the first time in a row."""
        return self._ends == 1

    # As an upstream

    @property
    def returns(self) -> bool:
        """One that failed may be asked again, since it is started again, but not one that cannot be loaded."""
        return not self._why_not

    async def send(self, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """POST a body, when the model is there."""
        if self._why_not and (wait := self.again_in):  # trying again at once would only take others' room
            raise self._away(f"it cannot be loaded: {self._why_not}", wait)
        try:
            await asyncio.wait_for(self.until_loaded(), self._load_timeout)
        except asyncio.TimeoutError:
            raise self._away(f"it was not loaded within {self._load_timeout:g} s", 10.0) from None
        except EngineError as error:
            raise self._away(f"it cannot be loaded: {error}", self.again_in or 1.0) from None
        self.used = self._clock()
        return await super().send(path, body, headers)

    def give_back(self) -> None:
        super().give_back()
        self.used = self._clock()
        if self.loader is not None and not self.num_active:
            self.loader.idle()

    def name_of(self, model: str | None) -> str | None:
        return super().name_of(model) if model is not None else self.name if self.is_default else None

    async def look(self, seconds: float) -> None:
        """A model that is not in memory is well."""
        if self.state == "loaded":
            await super().look(seconds)

    def _away(self, why: str, retry_after: float) -> UpstreamFailure:
        return UpstreamFailure(self, why, HttpError(f"{self.name}: {why}", 503, retry_after=retry_after))

    async def until_loaded(self) -> None:
        """Wait until the model is in memory. Raises EngineError where it cannot be."""
        assert self.loader is not None
        self._waiting += 1
        try:
            while self.state != "loaded" and not self._let_in:
                await self.loader.load(self)
            self._let_in = max(0, self._let_in - 1)
        finally:
            self._waiting -= 1
            self._let_in = min(self._let_in, self._waiting)
            if not self.num_active:
                self.loader.idle()

    def is_loaded(self) -> None:
        """Its process listens."""
        self.state, self._let_in, self._why_not = "loaded", self._waiting, ""
        self._loaded_at = self.used = self._clock()

    # As a process

    @property
    def again_in(self) -> float:
        """Seconds until it may be started again after an end that nobody asked for."""
        return max(0.0, self._not_before - self._clock())

    async def ask(
        self, method: str, path: str, body: bytes = b"", *, seconds: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> tuple[int, bytes] | None:
        """Status and body of what its process answers; None: nothing within so many seconds."""
        client = HttpClient(self.settings.url, self.settings.key)

        async def answer() -> tuple[int, bytes]:
            head, pieces = await client.begin(method, path, body, headers)
            return head.status, b"".join([piece async for piece in pieces])

        try:
            return await asyncio.wait_for(answer(), seconds)
        except (OSError, HttpError, asyncio.TimeoutError):
            return None
        finally:
            client.close()

    async def start(self) -> None:
        """Start its process and wait until it listens. Raises EngineError."""
        assert self.state in ("unloaded", "loading")
        self.state = "loading"
        self.starts += 1
        key = secrets.token_hex(16)
        own = {"PAGODA_API_KEY": key, "PAGODA_ADMIN_KEY": key}
        if self.local.engine.kv_offload_key is not None:
            own["PAGODA_KV_OFFLOAD_KEY"] = self.local.engine.kv_offload_key
        local = self.local
        flags = [local.engine.model, *flags_of(local.engine), *flags_of(local.cost), *flags_of(local.server)]
        try:
            self.process = await ServeProcess.start(self.name, flags, own)
            url = await self.process.url()
        except (EngineError, OSError) as error:
            self._fell(str(error))
            raise EngineError(str(error)) from None
        except asyncio.CancelledError:
            if self.process is not None:
                self.process.kill()
            raise
        self.settle(replace(self.settings, url=url, key=key))
        self.is_loaded()
        self.recovered()
        self.process.ended.add_done_callback(lambda _: self._ended())

    async def stop(self) -> None:
        """End its process. What it is answering is given time to end."""
        self.state = "leaving"
        self.close()
        if self.process is not None:
            await self.process.stop(STOP_S)
        self.state, self.process, self._let_in = "unloaded", None, 0
        self.prefixes.clear()

    def _ended(self) -> None:
        if self.state != "loaded":  # it was told to
            return
        self._fell()
        self.failed("its process has ended")
        self.healthy = True  # as one that can be loaded
        self.fallen.clear()
        if self.loader is not None:
            self.loader.ended(self)

    def _fell(self, why_not: str = "") -> None:
        """It has ended by itself: the next start waits, longer each time. `why_not`: it could not even be loaded."""
        steady = self.state == "loaded" and self._clock() - self._loaded_at > STEADY_S
        self._ends = 1 if steady else self._ends + 1
        self._not_before = self._clock() + min(LAST_AGAIN_S, FIRST_AGAIN_S * 2 ** (self._ends - 1))
        self.state, self.process, self._let_in, self._why_not = "unloaded", None, 0, why_not
