"""The endpoints of OpenAI's API, and vLLM's /tokenize and /detokenize.

They read their requests themselves, as plain Starlette: FastAPI, which would do it for them, takes a third of a second
of every start. `openapi.py` says what they take.
"""

from __future__ import annotations

from typing import Any, TypeVar

import orjson
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pagoda.errors import RequestError
from pagoda.server.answers import Answer, ChatAnswer, CompletionAnswer
from pagoda.server.failures import json_response
from pagoda.server.logprob_json import LogprobWriter
from pagoda.server.prompts import Prompt
from pagoda.server.record import record_of
from pagoda.server.requests import GenerationSpec, chat_spec, check_total, completion_spec, make_call, new_id
from pagoda.server.schema import (
    ChatRequest,
    CompletionRequest,
    Conversation,
    DetokenizeRequest,
    Generation,
    TokenizeChat,
    TokenizeText,
)
from pagoda.server.service import Model, Service
from pagoda.server.stream import EventStream, while_connected

M = TypeVar("M", bound=BaseModel)


async def body_of(request: Request, model: type[M]) -> M:
    """The body as `model`. Raises RequestError when it is not JSON, ValidationError when it is another shape."""
    return model.model_validate(await json_of(request))


async def json_of(request: Request) -> Any:
    """Read with orjson: no NaN, no lone surrogates, no bottomless nesting."""
    try:
        return orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from None


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def list_models(request: Request) -> Response:
    """The models served here: one."""
    return json_response({"object": "list", "data": [service_of(request).model().describe()]})


async def show_model(request: Request) -> Response:
    """One model."""
    return json_response(service_of(request).model(request.path_params["model_id"]).describe())


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    body = await body_of(request, ChatRequest)
    model = service_of(request).model_for_work(body.model)
    spec = chat_spec(body)
    prompt = await model.prompts.of_chat(body)
    return await _generate(request, model, ChatAnswer, "chatcmpl", body, spec, [prompt])


async def completions(request: Request) -> Response:
    """Continue one or several prompts."""
    body = await body_of(request, CompletionRequest)
    model = service_of(request).model_for_work(body.model)
    spec = completion_spec(body)
    check_total(len(body.prompts), spec.params.n)
    prompts = await model.prompts.of_completion(body)
    return await _generate(request, model, CompletionAnswer, "cmpl", body, spec, prompts)


async def _generate(
    request: Request,
    model: Model,
    shape: type[Answer],
    prefix: str,
    body: Generation,
    spec: GenerationSpec,
    prompts: list[Prompt],
) -> Response:
    truncate, limit = body.truncate_prompt_tokens, spec.params.max_tokens
    prompts = [model.prompts.truncated(prompt, limit, truncate) for prompt in prompts]
    record = record_of(request.scope)
    messages = body.plain_messages() if isinstance(body, Conversation) else None
    call = make_call(spec, body, prompts, id=new_id(prefix), tenant=record.tenant, messages=messages)
    writer = LogprobWriter(model.tokenizer, as_ids=bool(body.return_tokens_as_token_ids))
    answer = shape(call, model.name, prompts, spec.options, writer)
    stream = await model.serve(call)

    def end() -> None:
        stream.close()
        answer.record(model.metrics)
        record.answer = answer.facts(record.start)

    if body.stream:
        return EventStream(answer.events(stream), end)
    try:
        return json_response(await while_connected(request.receive, answer.whole(stream)))
    finally:
        end()


async def tokenize(request: Request) -> Response:
    """The token ids of a text, or of a conversation as the model's template renders it."""
    data = await json_of(request)
    body: TokenizeChat | TokenizeText
    if isinstance(data, dict) and "messages" in data:
        body = TokenizeChat.model_validate(data)
        model = service_of(request).model(body.model)
        prompt = await model.prompts.of_chat(body)
    else:
        body = TokenizeText.model_validate(data)
        model = service_of(request).model(body.model)
        prompt = await model.prompts.of_text(body.prompt, add_special=body.add_special_tokens is not False)
    writer = LogprobWriter(model.tokenizer)
    texts = [writer.text(token_id) for token_id in prompt.ids] if body.return_token_strs else None
    count = len(prompt.ids)
    shape = {"count": count, "max_model_len": model.max_context, "tokens": prompt.ids, "token_strs": texts}
    return json_response(shape)


async def detokenize(request: Request) -> Response:
    """The text of token ids, special ones included."""
    body = await body_of(request, DetokenizeRequest)
    model = service_of(request).model(body.model)
    model.prompts.check_ids(body.tokens, "tokens")
    return json_response({"prompt": model.tokenizer.decode(body.tokens, skip_special=False)})


ROUTES = [
    Route("/v1/models", list_models),
    Route("/v1/models/{model_id:path}", show_model),
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
]
