"""The HTTP application: routes, the layers around them and the errors they share, in one place."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pagoda.config import ServerSettings
from pagoda.errors import ConfigError, PagodaError
from pagoda.observe.cost import CostSettings
from pagoda.server import (
    adapter_routes,
    cache_routes,
    live,
    llama_routes,
    messages_routes,
    ollama_routes,
    pages,
    prefix_routes,
    responses_routes,
    routes,
    system,
    vectors,
)
from pagoda.server.failures import DescribedError, answer_error, json_response
from pagoda.server.key_store import KeyStore
from pagoda.server.middleware import ApiKeys, BodyLimit, Prefix, RequestLogging, Serving
from pagoda.server.record import record_of
from pagoda.server.service import Loaded, Service
from pagoda.server.stream import ClientGone

ERRORS: tuple[type[Exception], ...] = (PagodaError, DescribedError, ValidationError, HTTPException, Exception)


def create_app(loaded: Loaded | None, settings: ServerSettings, cost: CostSettings | None = None) -> Starlette:
    """The app. Without a model it is alive but not ready, until `app.state.service.attach(loaded)`."""
    service = Service(settings, cost)
    if loaded is not None:
        service.attach(loaded)
    app = Starlette(
        routes=[
            *routes.ROUTES,
            *vectors.ROUTES,
            *responses_routes.ROUTES,
            *messages_routes.ROUTES,
            *llama_routes.ROUTES,
            *ollama_routes.ROUTES,
            *adapter_routes.ROUTES,
            *cache_routes.ROUTES,
            *prefix_routes.ROUTES,
            *system.ROUTES,
            *live.ROUTES,
            *pages.ROUTES,
            Route("/openapi.json", openapi_document),
        ],
        middleware=middleware(settings, service, service.key_store),
        exception_handlers=exception_handlers(),
    )
    app.state.service = service
    app.state.live_views = {}
    return app


def middleware(settings: ServerSettings, service: Serving, store: KeyStore | None) -> list[Middleware]:
    """What stands around all routes, outermost first."""
    return [
        Middleware(RequestLogging, service=service),
        Middleware(Prefix, root_path=settings.root_path),
        *_cors(settings.cors_origins),
        _keys(settings, store),
        Middleware(BodyLimit, max_bytes=settings.max_body_bytes),
    ]


def exception_handlers() -> dict[Any, Any]:
    """What makes responses of errors, by their class."""
    return {**dict.fromkeys(ERRORS, answer_error), ClientGone: _gone}


def _cors(origins: tuple[str, ...]) -> list[Middleware]:
    """Browsers let a page ask only servers that say that its origin may."""
    if not origins:
        return []
    methods, headers = ["GET", "POST", "OPTIONS"], ["*"]
    exposed = ["X-Request-Id", "X-Cost-USD", "X-Pagoda-Cache", "X-Pagoda-Upstream", "Retry-After"]
    layer = Middleware(
        CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=headers, expose_headers=exposed
    )
    return [layer]


def _keys(settings: ServerSettings, store: KeyStore | None) -> Middleware:
    """What orchestrators ask needs no key, nor do the pages' files. Raises ConfigError."""
    if settings.metrics_open and settings.metrics_key is not None:
        raise ConfigError("--metrics-open gives /metrics to everybody: leave it or --metrics-key out")
    open_paths = {"/health", "/ready", *live.PAGE, *pages.OPEN_PATHS}
    open_paths |= {"/metrics"} if settings.metrics_open else set()
    path_keys = {} if settings.metrics_key is None else {"/metrics": settings.metrics_key}
    return Middleware(
        ApiKeys,
        keys=settings.api_keys,
        admin_key=settings.admin_key,
        open_paths=open_paths,
        path_keys=path_keys,
        store=store,
    )


async def _gone(request: Request, error: Exception) -> Response:
    """Nobody reads it; the log says what happened."""
    record_of(request.scope).client_gone = True
    return Response(status_code=499)


async def openapi_document(request: Request) -> Response:
    """The OpenAPI document of the application's routes."""

    def made() -> dict[str, Any]:
        from pagoda.server.openapi import document

        servers = [{"url": request.scope["root_path"]}] if request.scope["root_path"] else []
        paths = frozenset(route.path_format for route in request.app.routes)
        return document(paths) | ({"servers": servers} if servers else {})

    return json_response(await asyncio.to_thread(made))  # the import takes half a second
