"""/live of several models: the page of one model, with all models at its head to choose from.

What it shows of a model is that model's own /live/state; of all of them whether they are in memory and what they have
to do. `?model=NAME` says which one; without it the one that was used last.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pagoda.client import HttpClient, HttpError
from pagoda.errors import OverloadedError, UnavailableError
from pagoda.gateway.local.pool import ModelPool
from pagoda.gateway.local.routes import pool_of
from pagoda.gateway.local.upstream import LocalUpstream
from pagoda.server.failures import json_response
from pagoda.server.live import EVERY_S, FILES, MAX_VIEWERS, page
from pagoda.server.routes import check_admin
from pagoda.server.stream import EventStream

STATE_S = 2.0  # that a model's state may take to come


async def state(request: Request) -> Response:
    """What the page shows."""
    return json_response(await _state(_pool(request), request.query_params.get("model")))


async def watch(request: Request) -> Response:
    """An event a second, until the client goes or the server shuts down."""
    pool, name, service = _pool(request), request.query_params.get("model"), request.app.state.service
    if pool.num_viewers >= MAX_VIEWERS:
        raise OverloadedError(f"{MAX_VIEWERS} people look on already", retry_after=10.0)
    pool.num_viewers += 1

    async def events() -> AsyncIterator[bytes]:
        while service.phase == "ready":
            yield b"data: " + orjson.dumps(await _state(pool, name)) + b"\n\n"
            await asyncio.sleep(EVERY_S)

    def close() -> None:
        pool.num_viewers -= 1

    return EventStream(events(), close)


async def stop(request: Request) -> Response:
    """End a request of a model."""
    pool = _pool(request)
    if request.headers.get("x-pagoda-live") is None:
        raise HTTPException(403, "send the header X-Pagoda-Live")
    model = _chosen(pool, request.query_params.get("model"))
    if model is None or model.state != "loaded":
        raise UnavailableError("the model is not in memory", retry_after=1.0)
    answer = await _asked(model, "POST", "/live/stop", await request.body())
    return json_response({} if answer is None else answer)


def _pool(request: Request) -> ModelPool:
    settings = request.app.state.service.settings
    if settings.api_keys or settings.keys_file is not None or settings.admin_key is not None:
        check_admin(request)
    return pool_of(request)


async def _state(pool: ModelPool, name: str | None) -> dict[str, Any]:
    chosen = _chosen(pool, name)
    models = [
        {"name": one.name, "state": one.state, "in_flight": one.in_flight, "chosen": one is chosen}
        for one in pool.models
    ]
    shown = None if chosen is None or chosen.state != "loaded" else await _asked(chosen, "GET", "/live/state")
    return {**(shown or {"model": chosen.name if chosen else None}), "models": models}


def _chosen(pool: ModelPool, name: str | None) -> LocalUpstream | None:
    named = [one for one in pool.models if one.name == name]
    return named[0] if named else max(pool.models, key=lambda one: (one.is_in_memory, one.used), default=None)


async def _asked(model: LocalUpstream, method: str, path: str, body: bytes = b"") -> dict[str, Any] | None:
    """What the model's server answers; None: nothing in time."""
    client = HttpClient(model.settings.url, model.settings.key)

    async def ask() -> bytes:
        _, pieces = await client.begin(method, path, body, {"X-Pagoda-Live": "1"})
        return b"".join([piece async for piece in pieces])

    try:
        found: dict[str, Any] = orjson.loads(await asyncio.wait_for(ask(), STATE_S))
        return found
    except (OSError, HttpError, asyncio.TimeoutError, orjson.JSONDecodeError):
        return None
    finally:
        client.close()


ROUTES = [
    *(Route(path, page) for path in FILES),
    Route("/live/state", state),
    Route("/live/events", watch),
    Route("/live/stop", stop, methods=["POST"]),
]
