"""Errors in the shapes that clients of other dialects read."""

from __future__ import annotations

from typing import Any

ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def anthropic_error(status: int, body: dict[str, Any]) -> dict[str, Any]:
    """Our error object → Anthropic's."""
    kind = ANTHROPIC.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": body["error"]["message"]}}


def ollama_error(body: dict[str, Any]) -> dict[str, Any]:
    """Our error object → Ollama's."""
    return {"error": body["error"]["message"]}


def in_dialect(path: str, status: int, body: dict[str, Any]) -> dict[str, Any]:
    """Our error object as clients of `path` expect it."""
    if path.startswith("/v1/messages"):
        return anthropic_error(status, body)
    if path.startswith("/api/"):
        return ollama_error(body)
    return body
