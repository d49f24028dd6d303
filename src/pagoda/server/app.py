"""The HTTP application: routes, the layers around them and the errors they share, in one place."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

import pagoda
from pagoda.config import ServerSettings
from pagoda.errors import PagodaError
from pagoda.server import routes, system
from pagoda.server.failures import answer_error
from pagoda.server.middleware import ApiKeys, BodyLimit, RequestLog
from pagoda.server.service import Loaded, Service

ERRORS: tuple[type[Exception], ...] = (PagodaError, ValidationError, HTTPException, Exception)
DESCRIPTION = "An OpenAI-compatible API: point an OpenAI client's `base_url` at `/v1`."


def create_app(loaded: Loaded | None, settings: ServerSettings) -> FastAPI:
    """The app. Without a model it is alive but not ready, until `app.state.service.attach(loaded)`."""
    service = Service(settings)
    if loaded is not None:
        service.attach(loaded)
    layers = [  # outermost first
        Middleware(RequestLog, service=service),
        *([Middleware(ApiKeys, keys=settings.api_keys)] if settings.api_keys else []),
        Middleware(BodyLimit, max_bytes=settings.max_body_bytes),
    ]
    app = FastAPI(
        title="Pagoda",
        version=pagoda.__version__,
        description=DESCRIPTION,
        middleware=layers,
        redoc_url=None,
        exception_handlers=dict.fromkeys(ERRORS, answer_error),
    )
    app.state.service = service
    app.include_router(routes.router)
    app.include_router(system.router)
    app.openapi = partial(_document, app)  # type: ignore[method-assign]
    return app


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, made when first asked for."""
    if app.openapi_schema is None:
        from pagoda.server.documents import complete

        app.openapi_schema = complete(FastAPI.openapi(app))
    return app.openapi_schema
