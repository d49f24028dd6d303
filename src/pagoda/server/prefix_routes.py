"""/v1/kv_events: what the prefix cache holds and how that changes. `prefix_events.py` says what is told.

What a router sends with its requests so that it is told in words of its own is the header X-Pagoda-Prefix.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pagoda.errors import UnsupportedError
from pagoda.server.routes import check_onlooker, service_of
from pagoda.server.stream import EventStream


async def listen(request: Request) -> Response:
    """Tell of the prefix cache until the client goes, reads too slowly, or the server shuts down."""
    check_onlooker(request, "what the prefix cache holds")
    service = service_of(request)
    events = service.model_for_work().prefix_events
    try:
        listener = await events.listen()
    except UnsupportedError as error:
        raise HTTPException(404, str(error)) from None

    async def told() -> AsyncIterator[bytes]:
        while service.phase == "ready" and not listener.is_cut_off:
            if found := await listener.take():
                yield found

    return EventStream(told(), lambda: events.leave(listener), service.settings.sse_keepalive)


ROUTES = [Route("/v1/kv_events", listen)]
