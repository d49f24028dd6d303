"""What operators and orchestrators ask: alive, ready, which version, which figures."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import pagoda
from pagoda.server.failures import error_body, json_response
from pagoda.server.planning import plan
from pagoda.server.routes import service_of


async def health(request: Request) -> Response:
    """Alive: the process answers and its engine, if there yet, has not died."""
    model = service_of(request).loaded
    if model is not None and model.engine.error is not None:
        return json_response(error_body(f"the engine has died: {model.engine.error}", 503, code="engine_stopped"), 503)
    return json_response({"status": "ok"})


async def ready(request: Request) -> Response:
    """Ready for requests: the model is loaded, the engine turns, and nobody has asked to shut down."""
    service = service_of(request)
    if not service.ready:
        phase = "stalled" if service.phase == "ready" else service.phase
        return json_response(error_body(f"not ready: {phase}", 503, code=phase), 503, {"Retry-After": "2"})
    return json_response({"status": "ready"})


async def version(request: Request) -> Response:
    """Pagoda's version."""
    return json_response({"version": pagoda.__version__})


async def metrics(request: Request) -> Response:
    """Prometheus series."""
    model = service_of(request).model()
    model.metrics.server.slow_streams.value = model.bridge.num_slow_streams
    text, content_type = model.metrics.exposition(request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": content_type})


ROUTES = [
    Route("/health", health),
    Route("/ready", ready),
    Route("/version", version),
    Route("/metrics", metrics),
    Route("/plan", plan),
]
