"""Errors → HTTP answers in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pagoda.errors import (
    BudgetError,
    DeadlineError,
    EngineError,
    GenerationError,
    ModelNotFoundError,
    OverloadedError,
    RequestError,
    UnavailableError,
    UnsupportedError,
    UpstreamError,
)
from pagoda.server.dialects.errors import in_dialect

logger = logging.getLogger("pagoda.server")

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
MAX_MESSAGE, MAX_PARAM = 2000, 200  # characters: an error that repeats what was sent is not as long as that
# parts of a pydantic location that name a branch of a union, not a field
OTHER_PARTS = ("image_url", "image", "input_image", "input_audio", "audio_url", "video_url", "file", "document")
BRANCHES = {"str", "int", "float", "bool", "list", "dict"}


class DescribedError(Exception):
    """An error that has its answer already: status, body and headers."""

    def __init__(self, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
        super().__init__(status, body, headers)
        self.status = status
        self.body = body
        self.headers = headers


class BodyTooLargeError(HTTPException):
    """More has come than a body may have."""


def error_body(
    message: str, status: int = 400, *, kind: str | None = None, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """OpenAI's error object."""
    message = message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}…"
    param = param and param[:MAX_PARAM]
    kind = kind or TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def describe(error: BaseException) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers that answer `error`."""
    match error:
        case DescribedError():
            return error.status, error.body, error.headers
        case ModelNotFoundError():
            kind = "invalid_request_error"
            return 404, error_body(str(error), 404, kind=kind, param=error.param, code=error.code), {}
        case RequestError():
            return 400, error_body(str(error), param=error.param, code=error.code), {}
        case UnsupportedError():
            return 400, error_body(str(error), code="unsupported"), {}
        case BudgetError():
            status = 403 if error.code == "model_not_allowed" else 429
            retry = {} if status == 403 else _retry(error.retry_after)
            return status, error_body(str(error), status, code=error.code), {**error.headers, **retry}
        case DeadlineError():
            if error.retry_after is None:
                return 504, error_body(str(error), 504, code=error.code), {}
            return 429, error_body(str(error), 429, code=error.code, param="deadline_ms"), _retry(error.retry_after)
        case OverloadedError():
            return 429, error_body(str(error), 429, code="queue_full"), _retry(error.retry_after)
        case UnavailableError():
            return 503, error_body(str(error), 503, code="unavailable"), _retry(error.retry_after)
        case UpstreamError():
            if error.retry_after is None:
                return 502, error_body(str(error), 502, code="upstream_failed"), {}
            return 503, error_body(str(error), 503, code="no_upstream"), _retry(error.retry_after)
        case GenerationError():
            return 500, error_body(str(error), 500, code="generation_failed"), {}
        case EngineError():
            return 503, error_body(str(error), 503, code="engine_stopped"), {}
        case ValidationError():
            return 400, _invalid(error.errors()), {}
        case HTTPException():
            message = str(error.detail or HTTPStatus(error.status_code).phrase)
            code = "body_too_large" if isinstance(error, BodyTooLargeError) else None
            return error.status_code, error_body(message, error.status_code, code=code), dict(error.headers or {})
    return 500, error_body("internal error; the server's log says more", 500), {}


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """One serialisation, without pydantic."""
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


async def answer_error(request: Request, error: Exception) -> Response:
    """The exception handler of the app."""
    status, body, headers = describe(error)
    if status == 405 and request.method == "OPTIONS":  # a route's Allow is what is asked for (RFC 9110, section 9.3.7)
        return Response(status_code=204, headers={"Allow": f"{headers.get('Allow', '')}, OPTIONS"})
    if status == 500:
        logger.error("unexpected error", exc_info=error)
    if status in (404, 405) and isinstance(error, HTTPException) and error.detail == HTTPStatus(status).phrase:
        body = error_body(_where_to(request, headers.get("Allow")), status)
    return json_response(in_dialect(request.scope["path"], status, body), status, headers)


def _where_to(request: Request, allowed: str | None) -> str:
    """What to ask for in place of a path that there is not, or that does not take the request's method."""
    path = request.scope["path"].rstrip("/")
    if allowed is not None:
        return f"{path} takes {allowed}, not {request.method}"
    known = {route.path for route in request.app.routes if isinstance(route, Route)}
    near = [place for place in (f"/v1{path}", path.removeprefix("/v1")) if place in known]  # a base URL with or without
    near = near or difflib.get_close_matches(path, known, 1, cutoff=0.8)
    if near:
        return f"there is no {path} here; did you mean {near[0]}?"
    return f"there is no {path or '/'} here" + ("; /docs lists what there is" if "/docs" in known else "")


def _retry(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def _invalid(errors: Any) -> dict[str, Any]:
    """A complaint of pydantic, in OpenAI's words where it has some.

    Of the branches of a union, the one that got furthest is what the client meant.
    """
    fields = [error for error in errors if error["loc"][:1] == errors[0]["loc"][:1]]
    first = max(fields, key=lambda error: _depth(error["loc"]))
    kind, param = first["type"], _path(first["loc"])
    if kind == "extra_forbidden":
        return error_body(f"Unrecognized request argument supplied: {param}", param=param, code="unknown_parameter")
    if param is None:
        return error_body("the body must be a JSON object")
    if kind == "missing":
        return error_body(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if kind == "literal_error" and first["input"] in OTHER_PARTS:
        message = f"Invalid '{param}': models get text here, no {first['input']!r}"
        return error_body(message, param=param, code="invalid_value")
    expected = "; or ".join(dict.fromkeys(e["msg"] for e in errors if _path(e["loc"]) == param))
    return error_body(f"Invalid '{param}': {expected}", param=param, code="invalid_value")


def _depth(loc: tuple[int | str, ...]) -> tuple[int, int]:
    """How far validation got: levels, then elements of the last list."""
    named = [part for part in loc if _names_field(part)]
    return len(named), next((part for part in reversed(named) if isinstance(part, int)), 0)


def _names_field(part: int | str) -> bool:
    return isinstance(part, int) or (part not in BRANCHES and part.replace("_", "").isalnum())


def _path(loc: tuple[int | str, ...]) -> str | None:
    """('messages', 0, 'content') → 'messages[0].content'; None for the whole body."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _names_field(part):
            path += f".{part}" if path else part
    return path or None
