"""The endpoints of OpenAI's API, and vLLM's /tokenize and /detokenize.

They read their requests themselves, as plain Starlette: FastAPI, which would do it for them, takes a third of a second
of every start. `openapi.py` says what they take.
"""

from __future__ import annotations

from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pagoda.server.answers import CompletionAnswer
from pagoda.server.chat_answer import ChatAnswer
from pagoda.server.failures import json_response
from pagoda.server.generation import generate, json_read, may_look_on
from pagoda.server.generation import service_of as service_of
from pagoda.server.record import record_of


def check_admin(request: Request) -> None:
    """Raise HTTPException 403 unless the request comes with the admin key. For routes that change the server."""
    if service_of(request).settings.admin_key is None:
        raise HTTPException(403, "this changes the server: start it with --admin-key, and send that key")
    if not record_of(request.scope).admin:
        raise HTTPException(403, "this changes the server: send the admin key")


def check_onlooker(request: Request, what: str) -> None:
    """Raise HTTPException 403 unless the request may learn of others."""
    if not may_look_on(request):
        has_key = service_of(request).settings.admin_key is not None
        hint = "send it" if has_key else "start the server with --admin-key"
        raise HTTPException(403, f"{what} is shown with the admin key alone: {hint}")


async def list_models(request: Request) -> Response:
    """The model served here, and its adapters."""
    model = service_of(request).model()
    return json_response({"object": "list", "data": [model.describe(name) for name in (None, *model.store.names)]})


async def show_model(request: Request) -> Response:
    """One model, or adapter."""
    name = request.path_params["model_id"]
    return json_response(service_of(request).model(name).describe(name))


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    return await generate(request, ChatAnswer, "chatcmpl", "chat")


async def completions(request: Request) -> Response:
    """Continue one or several prompts."""
    return await generate(request, CompletionAnswer, "cmpl", "completion")


async def tokenize(request: Request) -> Response:
    """The token ids of a text, or of a conversation as the model's template renders it."""
    return await json_read(request, "tokenize")


async def detokenize(request: Request) -> Response:
    """The text of token ids, special ones included."""
    return await json_read(request, "detokenize")


class NameConvertor(Convertor[str]):
    """A model's name in a path: slashes are part of it, and it is never empty."""

    regex = ".+[^/]|[^/]"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("name", NameConvertor())

ROUTES = [
    Route("/v1/models", list_models),
    Route("/v1/models/{model_id:name}", show_model),
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
]
