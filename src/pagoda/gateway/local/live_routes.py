"""/live of several models: the page of one model, with all models at its head to choose from.

What it shows of a model is that model's own /live/state; of all of them whether they are in memory and what they have
to do. `?model=NAME` says which one; without it the one that was used last.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pagoda.errors import UnavailableError
from pagoda.gateway.local.pool import ModelPool
from pagoda.gateway.local.routes import pool_of
from pagoda.gateway.local.upstream import LocalUpstream
from pagoda.server.failures import json_response
from pagoda.server.live import FILES, check_page, check_viewer, page, states

STATE_S = 2.0  # that a model's state may take to come


async def state(request: Request) -> Response:
    """What the page shows."""
    return json_response(await _state(_pool(request), request.query_params.get("model")))


async def watch(request: Request) -> Response:
    """The same as events."""
    pool = _pool(request)
    return states(request, pool, partial(_state, pool, request.query_params.get("model")))


async def stop(request: Request) -> Response:
    """End a request of a model."""
    pool = _pool(request)
    check_page(request)
    model = _chosen(pool, request.query_params.get("model"))
    if model is None or model.state != "loaded":
        raise UnavailableError("the model is not in memory", retry_after=1.0)
    body, own = await request.body(), {"X-Pagoda-Live": "1"}
    answer = await model.ask("POST", "/live/stop", body, headers=own, seconds=STATE_S)
    if answer is None:
        raise UnavailableError("the model does not answer", retry_after=1.0)
    return Response(answer[1], answer[0], media_type="application/json")


def _pool(request: Request) -> ModelPool:
    check_viewer(request)
    return pool_of(request)


async def _state(pool: ModelPool, name: str | None) -> dict[str, Any]:
    chosen = _chosen(pool, name)
    models = [
        {"name": one.name, "state": one.state, "in_flight": one.in_flight, "chosen": one is chosen}
        for one in pool.models
    ]
    shown = {"model": None if chosen is None else chosen.name}
    if chosen is not None and chosen.state == "loaded":
        answer = await chosen.ask("GET", "/live/state", seconds=STATE_S)
        if answer is not None and answer[0] == 200:
            shown = orjson.loads(answer[1])
    return {**shown, "models": models}


def _chosen(pool: ModelPool, name: str | None) -> LocalUpstream | None:
    named = [one for one in pool.models if one.name == name]
    return named[0] if named else max(pool.models, key=lambda one: (one.is_in_memory, one.used), default=None)


ROUTES = [
    *(Route(path, page) for path in FILES),
    Route("/live/state", state),
    Route("/live/events", watch),
    Route("/live/stop", stop, methods=["POST"]),
]
