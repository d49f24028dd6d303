"""The gateway's HTTP application: the doors of the API, and what orchestrators and operators ask.

Chat and completions go through the semantic cache. Every other path of `PASSED_ON` goes to an upstream as it is, with
keys, budgets, routing, retries and costs, and its answer comes back as it is.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import pagoda
from pagoda.config import ServerSettings
from pagoda.errors import ModelNotFoundError
from pagoda.gateway.answers import Relayed, RelayedChat, RelayedCompletion, RelayedOther
from pagoda.gateway.call import CHAT, COMPLETIONS, UpstreamCall, read_call
from pagoda.gateway.local import live_routes
from pagoda.gateway.local import routes as model_routes
from pagoda.gateway.local.routes import all_series
from pagoda.gateway.service import GatewayService, upstream_states
from pagoda.observe.cost import CostSettings
from pagoda.server import cache_routes, pages
from pagoda.server.app import exception_handlers, middleware, openapi_document
from pagoda.server.bodies import body_of
from pagoda.server.failures import error_body, json_response
from pagoda.server.generation import cache_options, open_stream, write_answer
from pagoda.server.record import record_of

INLINE_BYTES = 256 * 1024  # of a body that is read on the event loop: a millisecond
PASSED_ON = ("/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/score", "/v1/rerank", "/score", "/rerank")
SHAPES: dict[str, tuple[type[Relayed], str]] = {
    CHAT: (RelayedChat, "chatcmpl"),
    COMPLETIONS: (RelayedCompletion, "cmpl"),
}


def service_of(request: Request) -> GatewayService:
    service: GatewayService = request.app.state.service
    return service


async def answer(request: Request) -> Response:
    """Let an upstream, or the cache, answer."""
    gateway = service_of(request).gateway_for_work()
    shape, prefix = SHAPES.get(request.url.path, (RelayedOther, "call"))
    data = await body_of(request)
    tenant, session = record_of(request.scope).tenant, request.headers.get("x-session-id")
    secret = gateway.prefix_secret

    def read() -> UpstreamCall:
        return read_call(data, request.url.path, tenant=tenant, prefix=prefix, session=session, secret=secret)

    call = read() if len(data) <= INLINE_BYTES else await asyncio.to_thread(read)
    call = replace(call, cache=cache_options(request, call.cache))
    answer = shape(call)
    stream, end = await open_stream(request, gateway, call, answer, streams=call.streams)
    return await write_answer(request, answer, stream, end, streams=call.streams)


async def list_models(request: Request) -> Response:
    """All models that some upstream is known to have."""
    return json_response({"object": "list", "data": service_of(request).model().list_models()})


async def show_model(request: Request) -> Response:
    """One of them."""
    name = request.path_params["model_id"]
    found = [one for one in service_of(request).model().list_models() if one["id"] == name]
    if not found:
        raise ModelNotFoundError(f"The model `{name}` does not exist. GET /v1/models lists those of the upstreams.")
    return json_response(found[0])


async def health(request: Request) -> Response:
    """Alive, and how the upstreams are."""
    gateway = service_of(request).loaded
    states = [] if gateway is None else upstream_states(gateway.router.replicas)
    return json_response({"status": "ok", "upstreams": states})


async def ready(request: Request) -> Response:
    """Ready: some upstream answers, and nobody has asked to shut down."""
    service = service_of(request)
    phase: str = service.phase
    if service.ready and service.loaded is not None and not any(u.healthy for u in service.loaded.router.replicas):
        phase = "no upstream answers"
    if phase != "ready":
        return json_response(error_body(f"not ready: {phase}", 503, code="not_ready"), 503, {"Retry-After": "2"})
    return json_response({"status": "ready"})


async def version(request: Request) -> Response:
    """Pagoda's version."""
    return json_response({"version": pagoda.__version__})


async def metrics(request: Request) -> Response:
    """Prometheus series; of models of this machine, theirs too."""
    gateway = service_of(request).model()
    text, kind = gateway.metrics.exposition("" if gateway.pool else request.headers.get("accept", ""))
    if gateway.pool is not None:
        text = await all_series(text, gateway.pool.models)
    return Response(text, headers={"Content-Type": kind})


def create_gateway(settings: ServerSettings, cost: CostSettings) -> Starlette:
    """The application, alive but not ready until its service has upstreams attached."""
    service = GatewayService(settings, cost)
    app = Starlette(
        routes=[
            *(Route(path, answer, methods=["POST"]) for path in (CHAT, COMPLETIONS, *PASSED_ON)),
            Route("/v1/models", list_models),
            Route("/v1/models/{model_id:name}", show_model),
            *model_routes.ROUTES,
            *live_routes.ROUTES,
            *pages.ROUTES,
            *cache_routes.ROUTES,
            Route("/health", health),
            Route("/ready", ready),
            Route("/version", version),
            Route("/metrics", metrics),
            Route("/openapi.json", openapi_document),
        ],
        middleware=middleware(settings, service, service.key_store),
        exception_handlers=exception_handlers(),
    )
    app.state.service = service
    return app
