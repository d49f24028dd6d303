"""Anthropic's /v1/messages."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pagoda.server.dialects.messages import MessagesAnswer
from pagoda.server.generation import generate, json_read


async def messages(request: Request) -> Response:
    """Answer a conversation of content blocks."""
    return await generate(request, MessagesAnswer, "msg_", "messages")


async def count_tokens(request: Request) -> Response:
    """How many tokens a conversation has."""
    return await json_read(request, "count")


ROUTES = [
    Route("/v1/messages", messages, methods=["POST"]),
    Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
]
