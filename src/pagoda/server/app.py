"""The HTTP application: routes, the layers around them and the errors they share, in one place."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from pagoda.config import ServerSettings
from pagoda.errors import PagodaError
from pagoda.server import routes, system
from pagoda.server.failures import answer_error, json_response
from pagoda.server.middleware import ApiKeys, BodyLimit, RequestLog
from pagoda.server.service import Loaded, Service

ERRORS: tuple[type[Exception], ...] = (PagodaError, ValidationError, HTTPException, Exception)


def create_app(loaded: Loaded | None, settings: ServerSettings) -> Starlette:
    """The app. Without a model it is alive but not ready, until `app.state.service.attach(loaded)`."""
    service = Service(settings)
    if loaded is not None:
        service.attach(loaded)
    layers = [  # outermost first
        Middleware(RequestLog, service=service),
        *([Middleware(ApiKeys, keys=settings.api_keys)] if settings.api_keys else []),
        Middleware(BodyLimit, max_bytes=settings.max_body_bytes),
    ]
    app = Starlette(
        routes=[*routes.ROUTES, *system.ROUTES, Route("/openapi.json", _document), Route("/docs", _docs)],
        middleware=layers,
        exception_handlers=dict.fromkeys(ERRORS, answer_error),
    )
    app.state.service = service
    return app


async def _document(request: Request) -> Response:
    def made() -> dict[str, Any]:
        from pagoda.server.openapi import document

        return document()

    return json_response(await asyncio.to_thread(made))  # the import takes half a second


async def _docs(request: Request) -> Response:
    def made() -> str:
        from pagoda.server.openapi import page

        return page()

    return HTMLResponse(await asyncio.to_thread(made))
