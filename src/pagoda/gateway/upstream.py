"""One server behind the gateway: its connections, what it has to do, which models it has, and whether it answers."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

import orjson

import pagoda
from pagoda.client import Head, HttpClient, HttpError, status_error
from pagoda.gateway.settings import UpstreamSettings
from pagoda.routing.prefixes import Prefixes, PrefixIndex, ToldPrefixes

RECENT_S = 60.0  # over which what an upstream was sent fades
MAX_IDLE = 256  # connections kept for later
MAX_REST_S = 10.0  # that an upstream which asked for time is left alone at most
AGENT = {"User-Agent": f"pagoda/{pagoda.__version__}"}  # providers behind some proxies refuse requests without one
LATE_LOOKS = 2  # one may be due to much work
MODELS_BYTES = 4 * 1024 * 1024
UNLOADED = {"value": "unloaded"}  # the status of an adapter that is on disk alone


class UpstreamFailure(Exception):
    """An upstream did not answer as it should, and why; another may."""

    def __init__(self, upstream: Upstream, why: str, error: HttpError | None = None) -> None:
        super().__init__(f"{upstream.name}: {why}")
        self.upstream = upstream
        self.error = error  # what it answered, if it did


class Upstream:
    """State of one upstream. Lives on the event loop."""

    def __init__(
        self,
        settings: UpstreamSettings,
        *,
        connect_timeout: float = 5.0,
        timeout: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = settings.name
        self.settle(settings)
        self.healthy = True  # until it has been found not to be
        self.why = ""  # it is not
        self.fallen = asyncio.Event()  # set while it is not
        self.listed: tuple[str, ...] | None = None  # its models, as it lists them; None: it never has
        self.unloaded: set[str] = set()  # of them, adapters that it would have to read from its disk first
        self.in_flight = 0  # requests that are being answered
        self.prefixes: Prefixes = PrefixIndex()  # what it holds: a guess, or what it says
        self.is_pagoda = False  # as far as is known
        self.offers_events = False  # it says what it holds to who asks
        self.timeout = timeout  # seconds of silence after which an answer counts as failed
        self._connect_timeout = connect_timeout
        self._clock = clock
        self._idle: list[HttpClient] = []
        self._retired = False
        self._late_looks = 0  # since it last answered one
        self._rests_until = 0.0
        self._recent = 0.0  # requests, fading
        self._noted = clock()

    def settle(self, settings: UpstreamSettings) -> None:
        """From now on it is what these say."""
        self.settings = settings
        parts = urlsplit(settings.url)
        self._root = f"{parts.scheme}://{parts.netloc}"
        self._base = parts.path.rstrip("/") or "/v1"  # of the API, as OpenAI's clients take it

    @property
    def weight(self) -> float:
        return self.settings.weight

    @property
    def fallback(self) -> bool:
        return self.settings.fallback

    # What it has to do

    @property
    def returns(self) -> bool:
        """Whether a call on which it failed may be tried on it again."""
        return False

    @property
    def load(self) -> float:
        """Requests under way, for its weight."""
        return self.in_flight / self.settings.weight

    @property
    def recent(self) -> float:
        """Requests of about the last RECENT_S, for its weight."""
        return self._faded() / self.settings.weight

    @property
    def rests(self) -> bool:
        """Whether it has asked to be left alone for now."""
        return self._clock() < self._rests_until

    def take(self, model: str | None = None) -> None:
        """A request for the model is sent."""
        self.unloaded.discard(self.name_of(model) or "")
        self.in_flight += 1
        self._recent, self._noted = self._faded() + 1, self._clock()

    def give_back(self) -> None:
        """A request is over."""
        self.in_flight -= 1

    @property
    def says_prefixes(self) -> bool:
        """Whether it says at the moment what it holds."""
        return isinstance(self.prefixes, ToldPrefixes)

    def rest(self, seconds: float | None) -> None:
        """It has answered that it is too busy, or not there yet."""
        self._rests_until = self._clock() + min(MAX_REST_S, 1.0 if seconds is None else seconds)

    def _faded(self) -> float:
        return self._recent * math.exp((self._noted - self._clock()) / RECENT_S)

    # Whether it is there

    def failed(self, why: str) -> None:
        """Nobody answers there. What it held in memory is thought to be gone."""
        self.healthy, self.why = False, why
        self.fallen.set()
        self.prefixes.clear()
        self.close()

    def recovered(self) -> None:
        self.healthy, self.why, self._late_looks = True, "", 0
        self.fallen.clear()

    def path_of(self, path: str) -> str:
        """Where it has what is at `path` here."""
        if path.startswith("/v1/"):
            return self._base + path.removeprefix("/v1")
        return self._base.removesuffix("/v1") + path

    def name_of(self, model: str | None) -> str | None:
        """What it calls the model; None: it does not have it, as far as is known. No name: it has one of its own."""
        if model is None:
            return ""
        if self.settings.models:
            return self.settings.models.get(model)
        return model if self.listed is None or model in self.listed else None

    def holds(self, model: str | None) -> bool:
        """Whether the model, or adapter, is in its memory, as far as is known."""
        return self.name_of(model) not in self.unloaded

    async def look(self, seconds: float) -> None:
        """Ask which models it has. Sets whether it is healthy."""
        client = self._client()
        try:
            head, body = await asyncio.wait_for(self._models(client), seconds)
        except asyncio.TimeoutError:
            client.close()
            self._late_looks += 1
            if self._late_looks >= LATE_LOOKS:
                self.failed(f"no answer within {seconds:g} s")
            return
        except (OSError, HttpError, asyncio.IncompleteReadError) as error:
            client.close()
            self.failed(f"no answer: {_reason(error)}")
            return
        except asyncio.CancelledError:
            client.close()
            raise
        self.keep(client)
        if head.status >= 500:
            self.failed(f"answered {head.status}")
            return
        is_new = self.listed is None or not self.healthy
        self.recovered()
        cards = _cards(body) if head.status == 200 else None
        if cards is not None:
            if is_new:
                self.is_pagoda = self.offers_events = any(card.get("owned_by") == "pagoda" for card in cards.values())
            self.took_list(cards)

    def took_list(self, cards: Mapping[str, Mapping[str, Any]]) -> None:
        """It has listed its models, and what it says of each."""
        self.listed = tuple(cards)
        self.unloaded = {name for name, card in cards.items() if card.get("status") == UNLOADED}

    async def _models(self, client: HttpClient) -> tuple[Head, bytes]:
        head, pieces = await client.begin("GET", self.path_of("/v1/models"), headers=AGENT)
        async with aclosing(pieces):
            body = b""
            async for piece in pieces:
                body += piece
                if len(body) > MODELS_BYTES:
                    raise HttpError("its list of models does not end")
        return head, body

    # Its answers

    async def send(self, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """POST a body. → the answer that has begun, with a status below 400.

        Raises UpstreamFailure, or HttpError for an answer that another upstream would give, too.
        """
        client = self._client()
        try:
            if not client.is_open:
                await asyncio.wait_for(client.connect(), self._connect_timeout)
        except (OSError, asyncio.TimeoutError) as error:
            self.failed(f"no connection: {_reason(error)}")
            raise UpstreamFailure(self, f"no connection to {self.settings.url} ({_reason(error)})") from None
        try:
            head, pieces = await asyncio.wait_for(
                client.begin("POST", self.path_of(path), body, {**AGENT, **headers}), self.timeout
            )
        except asyncio.TimeoutError:
            raise UpstreamFailure(self, f"nothing came for {self.timeout:g} s") from None
        except (OSError, HttpError, asyncio.IncompleteReadError) as error:
            self.failed(f"the connection broke: {_reason(error)}")
            raise UpstreamFailure(self, f"it broke off the connection ({_reason(error)})") from None
        reply = Reply(self, client, head, pieces)
        if head.status >= 400:
            raise self._refused(status_error(head, await reply.rest()))
        return reply

    def _refused(self, error: HttpError) -> Exception:
        """What an answer with an error status means: the request's fault, or a reason to ask elsewhere."""
        assert error.status is not None
        if error.status in (401, 403):
            return UpstreamFailure(self, f"it refuses the gateway's key ({error.status}): set its key-env", error)
        if error.status in (429, 503):
            self.rest(error.retry_after)
        if error.status in (408, 425, 429) or error.status >= 500:
            return UpstreamFailure(self, f"it answered {error}"[:300], error)
        return error

    def _client(self) -> HttpClient:
        while self._idle:
            client = self._idle.pop()
            if client.is_open:
                return client
            client.close()
        return self.new_client()

    def new_client(self) -> HttpClient:
        """One that opens a connection of its own."""
        return HttpClient(self._root, self.settings.key)

    def keep(self, client: HttpClient) -> None:
        """A connection that is free again."""
        if client.is_open and len(self._idle) < MAX_IDLE and not self._retired:
            self._idle.append(client)
        else:
            client.close()

    def retire(self) -> None:
        """It gets no more requests: close each connection once nobody uses it."""
        self._retired = True
        self.close()

    def close(self) -> None:
        """Let go of the connections that nobody uses."""
        while self._idle:
            self._idle.pop().close()


class Reply:
    """An answer that is being read. Closed however it ends; one that is not at its end is broken off there."""

    def __init__(self, upstream: Upstream, client: HttpClient, head: Head, pieces: AsyncGenerator[bytes, None]) -> None:
        self.head = head
        self._upstream, self._client, self._pieces = upstream, client, pieces
        self._is_open = True
        self._silent = False  # for too long
        self._last = time.monotonic()  # when something came
        self._watch = asyncio.get_running_loop().call_later(upstream.timeout, self._look)

    @property
    def is_stream(self) -> bool:
        return self.head.headers.get("content-type", "").startswith("text/event-stream")

    async def piece(self) -> bytes | None:
        """The next bytes; None: the end. Raises UpstreamFailure when they do not come."""
        try:
            piece = await anext(self._pieces, None)
        except (OSError, HttpError) as error:
            if not self._is_open:
                raise UpstreamFailure(self._upstream, "the gateway has broken it off") from None
            self.close()
            if self._silent:
                raise UpstreamFailure(self._upstream, f"nothing came for {self._upstream.timeout:g} s") from None
            self._upstream.failed(f"the connection broke: {_reason(error)}")
            raise UpstreamFailure(self._upstream, f"its answer broke off ({_reason(error)})") from None
        self._last = time.monotonic()
        if piece is None and self._is_open:
            self._end()
            self._upstream.keep(self._client)
        return piece

    async def rest(self) -> bytes:
        """All that is still to come."""
        found = []
        while (piece := await self.piece()) is not None:
            found.append(piece)
        return b"".join(found)

    def close(self) -> None:
        """Break it off where it is not at its end. Idempotent."""
        if self._is_open:
            self._end()
            self._client.close()

    def _end(self) -> None:
        self._is_open = False
        self._watch.cancel()

    def _look(self) -> None:
        """Whether the upstream is still there. A closed connection raises in whoever reads."""
        left = self._last + self._upstream.timeout - time.monotonic()
        if left > 0:
            self._watch = asyncio.get_running_loop().call_later(left, self._look)
        else:
            self._silent = True
            self._client.close()


def _cards(body: bytes) -> dict[str, dict[str, Any]] | None:
    """The models that a list names, by name; None: it is none."""
    try:
        return {str(card["id"]): dict(card) for card in orjson.loads(body)["data"]}
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None


def _reason(error: BaseException) -> str:
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return "it took too long"
    return str(error) or type(error).__name__
