"""The endpoints of OpenAI's API, and vLLM's /tokenize and /detokenize.

They read their requests themselves, as plain Starlette: FastAPI, which would do it for them, takes a third of a second
of every start. `openapi.py` says what they take.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pagoda.cache.policy import options_of
from pagoda.server.answers import Answer, CompletionAnswer
from pagoda.server.bodies import body_of, is_long
from pagoda.server.chat_answer import ChatAnswer
from pagoda.server.failures import json_response
from pagoda.server.logprob_json import LogprobWriter
from pagoda.server.reading import Reading
from pagoda.server.record import record_of
from pagoda.server.requests import GenerationSpec, answer_id, make_call
from pagoda.server.service import Model, Service
from pagoda.server.stream import ClientGone, EventStream, while_connected


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def check_admin(request: Request) -> None:
    """Raise HTTPException 403 unless the request comes with the admin key. For routes that change the server."""
    if service_of(request).settings.admin_key is None:
        raise HTTPException(403, "this changes the server: start it with --admin-key, and send that key")
    if not record_of(request.scope).admin:
        raise HTTPException(403, "this changes the server: send the admin key")


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
    model = service_of(request).model_for_work()
    return await _generate(request, model, ChatAnswer, "chatcmpl", await read_body(request, model, "chat"))


async def completions(request: Request) -> Response:
    """Continue one or several prompts."""
    model = service_of(request).model_for_work()
    return await _generate(request, model, CompletionAnswer, "cmpl", await read_body(request, model, "completion"))


async def read_body(request: Request, model: Model, kind: str) -> Any:
    """What the body asks, read where its length allows. A client that goes away gives up its place."""
    async with service_of(request).long_bodies if is_long(request) else nullcontext():
        data = await body_of(request)
        return await while_connected(request.receive, model.readers.read(kind, data))


async def _generate(request: Request, model: Model, shape: type[Answer], prefix: str, reading: Reading) -> Response:
    record = record_of(request.scope)
    spec, prompts = with_cache_header(request, reading.spec), reading.prompts
    call = make_call(
        spec,
        prompts,
        id=answer_id(prefix, spec),
        tenant=record.tenant,
        messages=reading.messages,
        prediction=reading.prediction,
        output=reading.output,
        adapter=None if reading.model in (None, model.name) else reading.model,
    )
    skip_special = spec.params.skip_special_tokens
    writer = LogprobWriter(model.tokenizer, as_ids=spec.options.tokens_as_ids, skip_special=skip_special)
    answer = shape(call, reading.model or model.name, prompts, spec.options, writer)
    model.accounts.open(call, answer)
    model.accounts.count_headers(request.headers, service_of(request).settings.metrics_headers)
    stream = await model.serve(call)
    model.accounts.trace(call, record, request.headers)
    if model.budgets is not None:
        record.headers |= model.budgets.headers(call.tenant)

    def end() -> None:
        stream.close()
        model.accounts.close(call, answer, record, stream=spec.stream)

    if spec.stream:
        keep_alive = service_of(request).settings.sse_keepalive
        return EventStream(answer.events(stream), end, keep_alive, call.headers)
    try:
        content = await while_connected(request.receive, answer.whole(stream))
        cost = {} if answer.cost_usd is None else {"X-Cost-USD": f"{answer.cost_usd():.10f}"}
        return Response(content, headers=call.headers | cost, media_type="application/json")
    except ClientGone:
        record.client_gone = True
        raise
    finally:
        end()


def with_cache_header(request: Request, spec: GenerationSpec) -> GenerationSpec:
    """What the headers ask of the semantic cache wins over the body. Raises RequestError."""
    wish = request.headers.get("x-pagoda-cache")
    if wish is not None:
        return replace(spec, cache=options_of(wish))
    control = request.headers.get("cache-control", "").replace(" ", "").lower().split(",")
    return replace(spec, cache=replace(spec.cache, mode="off")) if "no-store" in control else spec


async def tokenize(request: Request) -> Response:
    """The token ids of a text, or of a conversation as the model's template renders it."""
    return await _json_read(request, "tokenize")


async def detokenize(request: Request) -> Response:
    """The text of token ids, special ones included."""
    return await _json_read(request, "detokenize")


async def _json_read(request: Request, kind: str) -> Response:
    model = service_of(request).model()
    return Response(await read_body(request, model, kind), media_type="application/json")


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
