"""OpenAI's /v1/responses: create, in the background too, ask for again, cancel, delete."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import nullcontext
from functools import partial
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pagoda.errors import RequestError
from pagoda.server.answers import Answer
from pagoda.server.bodies import body_of, is_long
from pagoda.server.call import DeltaStream
from pagoda.server.dialects.responses import ResponsesAnswer
from pagoda.server.failures import describe, json_response
from pagoda.server.generation import answer_reading, open_answer, service_of
from pagoda.server.reading import Reading, framed
from pagoda.server.record import record_of
from pagoda.server.response_store import LIFETIME_S, StoredResponse
from pagoda.server.service import Model, Service
from pagoda.server.stream import while_connected

logger = logging.getLogger("pagoda.server")

PREVIOUS = re.compile(rb'"previous_response_id"\s*:\s*"(\w{1,100})"')
MAX_BACKGROUND = 256  # at once


async def create(request: Request) -> Response:
    """Answer a conversation of items."""
    service = service_of(request)
    model = service.model_for_work()
    reading = await _read(request, model)
    if not reading.spec.options.extra["background"]:
        keep = partial(_keep, service, record_of(request.scope).tenant, reading)
        return await answer_reading(request, model, ResponsesAnswer, "resp_", reading, keep)
    return await _in_background(request, model, reading)


async def retrieve(request: Request) -> Response:
    """A response that is kept."""
    return Response(_found(request).content, media_type="application/json")


async def delete(request: Request) -> Response:
    """Forget a response, and end it where it is being made."""
    stored = _found(request)
    if stored.cancel is not None:
        stored.cancel()
    id = request.path_params["response_id"]
    service_of(request).responses.pop(record_of(request.scope).tenant, id)
    return json_response({"id": id, "object": "response", "deleted": True})


async def cancel(request: Request) -> Response:
    """End a response that is made in the background."""
    stored = _found(request)
    if not orjson.loads(stored.content)["background"]:
        raise RequestError("only a response that is made in the background can be cancelled", param="response_id")
    if stored.cancel is not None:
        stored.cancel()
    return Response(_found(request).content, media_type="application/json")


def _found(request: Request) -> StoredResponse:
    id = request.path_params["response_id"]
    stored = service_of(request).responses.get(record_of(request.scope).tenant, id)
    if stored is None:
        raise HTTPException(404, _missing(id))
    return stored


def _missing(id: str) -> str:
    return f"Response with id '{id[:200]}' not found: responses are kept in memory, for {LIFETIME_S / 60:g} minutes"


async def _read(request: Request, model: Model) -> Reading:
    """What the body asks, with the conversation that it goes on with.

    Which one that is, is guessed before the body is read, so that it is read once, and looked at afterwards.
    """
    service, tenant = service_of(request), record_of(request.scope).tenant
    async with service.long_bodies if is_long(request) else nullcontext():
        data = await body_of(request)
        guess = PREVIOUS.search(data)
        previous = None if guess is None else guess.group(1).decode()
        if previous is not None and service.responses.get(tenant, previous) is None:
            previous = None
        while True:
            kind, sent = "responses", data
            if previous is not None:
                kind, sent = "continued", framed(_conversation(service, tenant, previous), data)
            reading: Reading = await while_connected(request.receive, model.readers.read(kind, sent))
            wanted = reading.spec.options.extra["previous_response_id"]
            if wanted == previous:
                return reading
            previous = wanted


def _conversation(service: Service, tenant: str, id: str) -> bytes:
    """The conversation up to and with the response. RequestError: it is not there."""
    stored = service.responses.get(tenant, id)
    if stored is None:
        raise RequestError(_missing(id), param="previous_response_id", code="previous_response_not_found")
    if stored.messages is None:
        raise RequestError("the previous response has no answer (yet)", param="previous_response_id")
    return stored.messages


def _keep(service: Service, tenant: str, reading: Reading, answer: Answer) -> None:
    """Store what the answer has become, where that is wanted."""
    assert isinstance(answer, ResponsesAnswer)
    extra = reading.spec.options.extra
    forgotten = extra["background"] and service.responses.get(tenant, answer.id) is None
    if not extra["store"] or forgotten:
        return
    messages = list(reading.messages or ())
    if extra["instructions"]:
        messages = messages[1:]  # they are of one request alone
    conversation = orjson.dumps([*messages, answer.said()])
    service.responses.put(tenant, answer.id, StoredResponse(orjson.dumps(answer.response()), conversation))


async def _in_background(request: Request, model: Model, reading: Reading) -> Response:
    """Begin, and answer at once."""
    service, tenant = service_of(request), record_of(request.scope).tenant
    if len(service.background) >= MAX_BACKGROUND:
        raise RequestError(f"{MAX_BACKGROUND} responses are being made in the background: wait", param="background")
    keep = partial(_keep, service, tenant, reading)
    answer, stream, end = await open_answer(request, model, ResponsesAnswer, "resp_", reading, keep)
    assert isinstance(answer, ResponsesAnswer)
    service.num_active += 1
    task = asyncio.create_task(_finish(service, tenant, answer, stream))
    service.background.add(task)

    def ended(task: asyncio.Task[None]) -> None:
        end()
        service.background.discard(task)
        service.num_active -= 1

    task.add_done_callback(ended)

    def stop() -> None:
        task.cancel()
        answer.status = "cancelled"
        service.responses.put(tenant, answer.id, StoredResponse(orjson.dumps(answer.response())))

    begun = orjson.dumps(answer.response())
    service.responses.put(tenant, answer.id, StoredResponse(begun, cancel=stop))
    return Response(begun, media_type="application/json")


async def _finish(service: Service, tenant: str, answer: ResponsesAnswer, stream: DeltaStream) -> None:
    """Read the answer to its end. What breaks it off is stored in its place."""
    try:
        await answer.whole(stream)
    except Exception as error:
        status, body, _ = describe(error)
        if status == 500:
            logger.error("unexpected error in a background response", exc_info=error)
        answer.fail(body)
        if service.responses.get(tenant, answer.id) is not None:
            service.responses.put(tenant, answer.id, StoredResponse(orjson.dumps(answer.response())))


ID = "/v1/responses/{response_id:str}"
ROUTES: list[Any] = [
    Route("/v1/responses", create, methods=["POST"]),
    Route(ID, retrieve),
    Route(ID, delete, methods=["DELETE"]),
    Route(f"{ID}/cancel", cancel, methods=["POST"]),
]
