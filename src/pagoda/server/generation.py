"""From an HTTP request to the model's answer: what every dialect shares."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from pagoda.cache.policy import CacheOptions, options_of
from pagoda.errors import RequestError
from pagoda.routing.prefixes import HEADER, read_pieces
from pagoda.server.accounts import Accounts
from pagoda.server.answers import Answer
from pagoda.server.bodies import body_of, is_long
from pagoda.server.budgets import Budgets
from pagoda.server.call import Call, DeltaStream, Serve
from pagoda.server.logprob_json import LogprobWriter
from pagoda.server.reading import Reading
from pagoda.server.record import record_of
from pagoda.server.requests import GenerationSpec, answer_id, make_call
from pagoda.server.service import Model, Service
from pagoda.server.stream import ClientGone, EventStream, while_connected
from pagoda.types import PromptPieces

OnComplete = Callable[[Answer], None] | None


class Answers(Protocol):
    """Something that answers calls, and writes down what they took: a model, or a gateway."""

    accounts: Accounts
    budgets: Budgets | None
    serve: Serve


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def read_body(request: Request, model: Model, kind: str) -> Any:
    """What the body asks, read where its length allows. A client that goes away gives up its place."""
    async with service_of(request).long_bodies if is_long(request) else nullcontext():
        data = await body_of(request)
        return await while_connected(request.receive, model.readers.read(kind, data))


async def generate(request: Request, shape: type[Answer], prefix: str, kind: str) -> Response:
    """Answer the body, which is one of those that `Reader` calls `kind`, in the shape of `shape`."""
    model = service_of(request).model_for_work()
    return await answer_reading(request, model, shape, prefix, await read_body(request, model, kind))


async def answer_reading(
    request: Request, model: Model, shape: type[Answer], prefix: str, reading: Reading, on_complete: OnComplete = None
) -> Response:
    """Let the model answer. `prefix` begins the answer's id; `on_complete` is called before the end is told."""
    answer, stream, end = await open_answer(request, model, shape, prefix, reading, on_complete)
    return await write_answer(request, answer, stream, end, streams=reading.spec.stream)


async def write_answer(
    request: Request, answer: Answer, stream: DeltaStream, end: Callable[[], None], *, streams: bool
) -> Response:
    """The response that tells the client of the answer, as it comes or at once. `end` is called when it has ended."""
    record = record_of(request.scope)
    if streams:
        keep_alive = service_of(request).settings.sse_keepalive
        events, headers = answer.events(stream), answer.headers
        return EventStream(events, end, keep_alive, headers, answer.failure, answer.stream_type)
    try:
        content = await while_connected(request.receive, answer.whole(stream))
        cost = {} if answer.cost_usd is None else {"X-Cost-USD": f"{answer.cost_usd():.10f}"}
        return Response(content, headers={**answer.headers, **cost}, media_type="application/json")
    except ClientGone:
        record.client_gone = True
        raise
    finally:
        end()


async def open_answer(
    request: Request, model: Model, shape: type[Answer], prefix: str, reading: Reading, on_complete: OnComplete = None
) -> tuple[Answer, DeltaStream, Callable[[], None]]:
    """The answer that has begun, its deltas, and what to call when it has ended, whatever ends it."""
    spec, prompts = with_cache_header(request, reading.spec), reading.prompts
    call = make_call(
        spec,
        prompts,
        id=answer_id(prefix, spec),
        tenant=record_of(request.scope).tenant,
        messages=reading.messages,
        prediction=reading.prediction,
        output=reading.output,
        adapter=None if reading.model in (None, model.name) else reading.model,
        pieces=pieces_of(request, model),
    )
    skip_special = spec.params.skip_special_tokens
    writer = LogprobWriter(model.tokenizer, as_ids=spec.options.tokens_as_ids, skip_special=skip_special)
    answer = shape(call, reading.model or model.name, prompts, spec.options, writer)
    answer.on_complete = on_complete
    stream, end = await open_stream(request, model, call, answer, streams=spec.stream)
    return answer, stream, end


async def open_stream(
    request: Request, model: Answers, call: Call, answer: Answer, *, streams: bool
) -> tuple[DeltaStream, Callable[[], None]]:
    """The deltas of a call, and what to call when the answer made of them has ended, whatever ends it."""
    record = record_of(request.scope)
    model.accounts.open(call, answer)
    model.accounts.count_headers(request.headers, service_of(request).settings.metrics_headers)
    stream = await model.serve(call)
    model.accounts.trace(call, record, request.headers)
    if model.budgets is not None:
        record.headers |= model.budgets.headers(call.tenant)

    def end() -> None:
        stream.close()
        model.accounts.close(call, answer, record, stream=streams)

    return stream, end


def with_cache_header(request: Request, spec: GenerationSpec) -> GenerationSpec:
    """What the headers ask of the semantic cache wins over the body. Raises RequestError."""
    return replace(spec, cache=cache_options(request, spec.cache))


def pieces_of(request: Request, model: Model) -> PromptPieces | None:
    """How a router that listens to the prefix cache calls the pieces of the prompt. Raises RequestError."""
    told = request.headers.get(HEADER)
    if told is None or not model.prefix_events.are_wanted or not may_look_on(request):
        return None
    pieces = read_pieces(told)
    if pieces is None:
        raise RequestError(f"the header {HEADER} is damaged: it is for routers that listen to /v1/kv_events")
    return pieces


def may_look_on(request: Request) -> bool:
    """Whether the request may learn of others: with the admin key, and where no keys are asked for, without."""
    settings = service_of(request).settings
    has_keys = settings.api_keys or settings.keys_file is not None or settings.admin_key is not None
    return not has_keys or record_of(request.scope).admin


def cache_options(request: Request, body: CacheOptions) -> CacheOptions:
    """What the headers, or else the body, ask of the semantic cache. Raises RequestError."""
    wish = request.headers.get("x-pagoda-cache")
    if wish is not None:
        return options_of(wish)
    control = request.headers.get("cache-control", "").replace(" ", "").lower().split(",")
    return replace(body, mode="off") if "no-store" in control else body


async def json_read(request: Request, kind: str) -> Response:
    """What a reader answers by itself."""
    model = service_of(request).model()
    return Response(await read_body(request, model, kind), media_type="application/json")
