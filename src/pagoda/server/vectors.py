"""The endpoints of vectors and scores: /v1/embeddings as OpenAI has it, /score as vLLM, /v1/rerank as Jina and Cohere.

Inputs go through the same layers and the same engine as chats do, so many at once as the queue likes.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pagoda.engine.vectors import cosine, probability
from pagoda.models.pooling import unit
from pagoda.server.answers import error_of
from pagoda.server.call import Call
from pagoda.server.generation import read_body, service_of
from pagoda.server.record import RequestRecord, record_of
from pagoda.server.requests import new_id
from pagoda.server.service import Model
from pagoda.server.stream import while_connected
from pagoda.server.vector_reading import VectorReading
from pagoda.text.framing import TokenizedText
from pagoda.types import FloatArray, SamplingParams
from pagoda.types import Request as TokenRequest

AT_ONCE = 256  # inputs of one HTTP request that are in the queue together


async def embeddings(request: Request) -> Response:
    """The vector of each input."""
    model, reading, vectors, facts = await _computed(request, "embeddings", "embd")
    data = [
        {"object": "embedding", "index": i, "embedding": _written(vector, reading), **_cut(text)}
        for i, (vector, text) in enumerate(zip(_shortened(vectors, reading, model), reading.inputs, strict=True))
    ]
    usage = {"prompt_tokens": facts["prompt_tokens"], "total_tokens": facts["prompt_tokens"]}
    return await _json(
        {"id": facts["id"], "object": "list", "data": data, "model": reading.model or model.name, "usage": usage}
    )


async def score(request: Request) -> Response:
    """How well each text of the second list answers its text of the first."""
    model, reading, vectors, facts = await _computed(request, "score", "score")
    data = [
        {"index": i, "object": "score", "score": one, **_cut(*texts)}
        for i, (one, texts) in enumerate(_scores(reading, vectors))
    ]
    usage = {"prompt_tokens": facts["prompt_tokens"], "total_tokens": facts["prompt_tokens"]}
    body = {
        "id": facts["id"],
        "object": "list",
        "created": int(time.time()),
        "model": reading.model or model.name,
        "data": data,
    }
    return await _json(body | {"usage": usage})


async def rerank(request: Request) -> Response:
    """The documents by how well they answer the query, best first."""
    model, reading, vectors, facts = await _computed(request, "rerank", "rerank")
    results: list[dict[str, Any]] = [
        {
            "index": i,
            **({"document": {"text": reading.documents[i]}} if reading.documents else {}),
            "relevance_score": one,
            **_cut(*texts),
        }
        for i, (one, texts) in enumerate(_scores(reading, vectors))
    ]
    results.sort(key=lambda result: -result["relevance_score"])
    usage = {"prompt_tokens": facts["prompt_tokens"], "total_tokens": facts["prompt_tokens"]}
    return await _json(
        {"id": facts["id"], "model": reading.model or model.name, "usage": usage, "results": results[: reading.top_n]}
    )


async def _computed(
    request: Request, kind: str, prefix: str
) -> tuple[Model, VectorReading, list[FloatArray], dict[str, Any]]:
    model = service_of(request).model_for_work()
    reading: VectorReading = await read_body(request, model, kind)
    record, call_id = record_of(request.scope), new_id(prefix)
    num_tokens = sum(len(text.token_ids) for text in reading.inputs)
    record.answer = {"id": call_id, "prompt_tokens": num_tokens, "completion_tokens": 0, "finish": "error"}
    vectors = await while_connected(request.receive, _vectors(model, reading, call_id, record))
    record.answer["finish"] = "stop"
    model.accounts.count_vectors(record.tenant, num_tokens)
    return model, reading, vectors, record.answer


async def _vectors(model: Model, reading: VectorReading, call_id: str, record: RequestRecord) -> list[FloatArray]:
    """What the model makes of each input. Raises what ended one early."""
    vectors: dict[str, FloatArray] = {}
    names = [f"{call_id}-{i}" for i in range(len(reading.inputs))]
    at_once = min(AT_ONCE, model.max_at_once)
    adapter = None if reading.model in (None, model.name) else reading.model
    for first in range(0, len(names), at_once):
        requests = tuple(
            _request(name, text, reading.priority, record.tenant)
            for name, text in zip(names[first : first + at_once], reading.inputs[first : first + at_once], strict=True)
        )
        stream = await model.serve(Call(call_id, requests, tenant=record.tenant, adapter=adapter))
        try:
            async for deltas in stream:
                for delta in deltas:
                    if delta.finish_reason in ("error", "abort"):
                        raise error_of(delta)
                    if delta.embedding is not None:
                        vectors[delta.request_id] = delta.embedding
        finally:
            stream.close()
    return [vectors[name] for name in names]


def _request(name: str, text: TokenizedText, priority: int, tenant: str) -> TokenRequest:
    return TokenRequest(
        id=name,
        prompt_token_ids=text.token_ids,
        params=SamplingParams(max_tokens=1),
        arrival=time.monotonic(),
        priority=priority,
        tenant=tenant,
        pooled=True,
        token_types=text.token_types,
    )


def _shortened(vectors: Sequence[FloatArray], reading: VectorReading, model: Model) -> list[FloatArray]:
    """The first `dimensions` numbers of each, of length 1 again where the whole vectors are."""
    size = reading.dimensions
    if size is None or size == model.traits.dimensions:
        return list(vectors)
    return [unit(vector[:size]) if model.traits.normalize else vector[:size] for vector in vectors]


def _written(vector: FloatArray, reading: VectorReading) -> Any:
    """A list, or base64 of little-endian float32, which a client asks for by name."""
    contiguous = np.ascontiguousarray(vector, "<f4")
    return base64.b64encode(contiguous.tobytes()).decode() if reading.base64 else contiguous


def _scores(reading: VectorReading, vectors: Sequence[FloatArray]) -> list[tuple[float, tuple[TokenizedText, ...]]]:
    """The score of each pair, and what was computed for it: a probability, or the cosine of two vectors."""
    inputs = reading.inputs
    if not reading.pairs:
        return [(probability(one), (text,)) for one, text in zip(vectors, inputs, strict=True)]
    return [(cosine(vectors[a], vectors[b]), (inputs[a], inputs[b])) for a, b in reading.pairs]


def _cut(*texts: TokenizedText) -> Mapping[str, bool]:
    """Said only of what was truncated."""
    return {"truncated": True} if any(text.truncated for text in texts) else {}


async def _json(body: Mapping[str, Any]) -> Response:
    content = await asyncio.to_thread(orjson.dumps, body, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, media_type="application/json")


ROUTES = [
    Route("/v1/embeddings", embeddings, methods=["POST"]),
    Route("/score", score, methods=["POST"]),
    Route("/v1/score", score, methods=["POST"]),
    Route("/rerank", rerank, methods=["POST"]),
    Route("/v1/rerank", rerank, methods=["POST"]),
    Route("/v2/rerank", rerank, methods=["POST"]),
]
