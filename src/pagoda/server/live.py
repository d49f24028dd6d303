"""/live: what the server does now, what it costs and why it is as fast as it is, for people.

    /live, /live.css, /live.js   the page: files of this package, nothing from elsewhere and no code in the page itself
    /live/state                  all that it shows, as JSON (`pagoda top` and `pagoda doctor --url` read it too)
    /live/events                 the same as server-sent events, one a second
    POST /live/stop {"id": …}    end a request

The page is open, since it holds nothing; what it shows needs the admin key where any keys are asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pagoda.errors import OverloadedError, RequestError
from pagoda.server.failures import json_response
from pagoda.server.json_body import parse_json
from pagoda.server.live_state import LiveView
from pagoda.server.pages import answer_file
from pagoda.server.routes import check_onlooker, service_of
from pagoda.server.stream import EventStream

EVERY_S = 1.0
MAX_VIEWERS = 16
FOLDER = Path(__file__).parent / "live_page"
FILES = {"/live": "live.html", "/live.css": "live.css", "/live.js": "live.js"}
PAGE = tuple(FILES)


class Viewed(Protocol):
    """What people look at."""

    num_viewers: int


def check_viewer(request: Request) -> None:
    """Raise HTTPException 403 for who may not see what all clients ask: without the admin key, where keys are used."""
    check_onlooker(request, "what all clients ask")


def check_page(request: Request) -> None:
    """Raise HTTPException 403 unless a page that this server sent is asking: others may not send this header."""
    if request.headers.get("x-pagoda-live") is None:
        raise HTTPException(403, "send the header X-Pagoda-Live")


def states(request: Request, viewed: Viewed, state: Callable[[], Awaitable[dict[str, Any]]]) -> EventStream:
    """What `state` gives, an event a second, until the client goes or the server shuts down.

    Raises OverloadedError where MAX_VIEWERS look at `viewed` already.
    """
    service = service_of(request)
    if viewed.num_viewers >= MAX_VIEWERS:
        raise OverloadedError(f"{MAX_VIEWERS} people look on already", retry_after=10.0)
    viewed.num_viewers += 1

    async def events() -> AsyncIterator[bytes]:
        while service.phase == "ready":
            yield b"data: " + orjson.dumps(await state()) + b"\n\n"
            await asyncio.sleep(EVERY_S)

    def close() -> None:
        viewed.num_viewers -= 1

    return EventStream(events(), close)


async def page(request: Request) -> Response:
    """One of the page's files."""
    return answer_file(request, FILES[request.url.path.removeprefix(request.scope.get("root_path", ""))], FOLDER)


async def state(request: Request) -> Response:
    """All that the page shows."""
    return json_response(await _view(request).state())


async def watch(request: Request) -> Response:
    """The same as events."""
    view = _view(request)
    return states(request, view, view.state)


async def stop(request: Request) -> Response:
    """End a request."""
    view = _view(request)
    check_page(request)
    body = parse_json(await request.body())
    name = body.get("id") if isinstance(body, dict) else None
    if not isinstance(name, str):
        raise RequestError("which request is to be stopped? send its id", param="id")
    view.model.engine.abort(name)
    return json_response({"stopped": name})


def _view(request: Request) -> LiveView:
    """The model's, for somebody who may look."""
    check_viewer(request)
    model = service_of(request).model()
    views: dict[str, LiveView] = request.app.state.live_views
    if model.name not in views:
        views[model.name] = LiveView(model)
    return views[model.name]


ROUTES = [
    *(Route(path, page) for path in FILES),
    Route("/live/state", state),
    Route("/live/events", watch),
    Route("/live/stop", stop, methods=["POST"]),
]
