"""The OpenAPI document: what each route takes, and the shapes of answers, written without pydantic.

FastAPI draws the frame. Imported when the document is asked for, so that the server starts sooner.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import pagoda
from pagoda.server import adapter_routes, cache_routes, routes, system, vectors
from pagoda.server import openapi_dialects as dialects
from pagoda.server.adapter_routes import AliasBody, LoadBody, UnloadBody
from pagoda.server.dialects.llama_schema import LlamaTokenizeRequest
from pagoda.server.openapi_bodies import (
    Aliased,
    ChatCompletion,
    Completion,
    Detokenized,
    Embeddings,
    EntriesDeleted,
    EntryDeleted,
    ErrorBody,
    Health,
    ModelCard,
    ModelList,
    Plan,
    Reranked,
    Scores,
    TokenizeAnswer,
    Version,
)
from pagoda.server.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeChat, TokenizeText
from pagoda.server.schema_embeddings import EmbeddingRequest, RerankRequest, ScoreRequest

T = TypeVar("T")


DESCRIPTION = "An OpenAI-compatible API: point an OpenAI client's `base_url` at `/v1`."
TAGS = {
    "/v1/models": "models",
    "/v1/models/{model_id:name}": "models",
    "/v1/chat/completions": "generation",
    "/v1/completions": "generation",
    "/tokenize": "tokens",
    "/detokenize": "tokens",
    **{route.path: "vectors and scores" for route in vectors.ROUTES},
    **{route.path: "adapters" for route in adapter_routes.ROUTES},
    **{route.path: "cache" for route in cache_routes.ROUTES},
}
REFUSALS = {
    400: "The request is invalid, or asks for what is not supported.",
    401: "The API key is missing or wrong.",
    403: "This needs the admin key.",
    404: "There is no such model, response or entry.",
    413: "The body is too large.",
    429: "The queue is full; Retry-After says when to come back.",
    503: "The model is being loaded, the server is shutting down, or the engine has stopped.",
}
READS = (401, 404, 503)
POSTS = (400, 401, 404, 413, 503)

# path → its answer, and the ways in which it is refused; None: plain text
ANSWERS: dict[str, tuple[type[BaseModel] | None, tuple[int, ...]]] = dialects.ANSWERS | {
    "/v1/models": (ModelList, (401, 503)),
    "/v1/models/{model_id}": (ModelCard, READS),
    "/v1/chat/completions": (ChatCompletion, (*POSTS, 429)),
    "/v1/completions": (Completion, (*POSTS, 429)),
    "/v1/embeddings": (Embeddings, (*POSTS, 429)),
    **dict.fromkeys(("/score", "/v1/score"), (Scores, (*POSTS, 429))),
    **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), (Reranked, (*POSTS, 429))),
    "/v1/load_lora_adapter": (None, (*POSTS, 403)),
    "/v1/unload_lora_adapter": (None, (*POSTS, 403)),
    "/v1/alias_lora_adapter": (Aliased, (*POSTS, 403)),
    "/v1/cache/entries": (EntriesDeleted, (400, 401, 403, 404, 503)),
    "/v1/cache/entries/{id}/wrong": (EntryDeleted, (401, 404, 503)),
    "/tokenize": (TokenizeAnswer, POSTS),
    "/detokenize": (Detokenized, POSTS),
    "/health": (Health, (503,)),
    "/ready": (Health, (401, 503)),
    "/version": (Version, (401,)),
    "/metrics": (None, (401, 503)),
    "/plan": (Plan, (400, 401, 503)),
}
TAKES: dict[str, list[type[BaseModel]]] = dialects.TAKES | {
    "/v1/chat/completions": [ChatRequest],
    "/v1/completions": [CompletionRequest],
    "/v1/embeddings": [EmbeddingRequest],
    **{path: [ScoreRequest] for path in ("/score", "/v1/score")},
    **{path: [RerankRequest] for path in ("/rerank", "/v1/rerank", "/v2/rerank")},
    "/v1/load_lora_adapter": [LoadBody],
    "/v1/unload_lora_adapter": [UnloadBody],
    "/v1/alias_lora_adapter": [AliasBody],
    "/tokenize": [TokenizeText, TokenizeChat, LlamaTokenizeRequest],
    "/detokenize": [DetokenizeRequest],
}
QUERIES = {"/v1/cache/entries": cache_routes.SELECTED_BY}  # path → names of what its query may say
STREAMED = dict.fromkeys(("/v1/chat/completions", "/v1/completions"), "text/event-stream") | dialects.STREAMED
TEXT = {"schema": {"type": "string"}}
LIMITS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
REF = "#/components/schemas/{model}"


@cache
def document(paths: frozenset[str] | None = None) -> dict[str, Any]:
    """The OpenAPI document, of all paths of the server or of those among them that are given."""
    api = FastAPI(title="Pagoda", version=pagoda.__version__, description=DESCRIPTION)
    own = (*adapter_routes.ROUTES, *cache_routes.ROUTES, *system.ROUTES)
    for route in (*routes.ROUTES, *dialects.ROUTES, *vectors.ROUTES, *own):
        methods = sorted((route.methods or set()) - {"HEAD"})
        tag = _by_prefix(dialects.TAGS, route.path) or TAGS.get(route.path, "system")
        api.add_api_route(route.path, route.endpoint, methods=methods, tags=[tag])
    drawn = api.openapi()
    if paths is not None:
        drawn["paths"] = {path: operations for path, operations in drawn["paths"].items() if path in paths}
    return _complete(drawn)


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    """The document of the routes, with what they take and answer, and the shapes of that."""
    given = [(model, "validation") for models in TAKES.values() for model in models]
    made = [(model, "serialization") for model, _ in ANSWERS.values() if model is not None]
    errors = [(model, "serialization") for model in (ErrorBody, *dialects.ERRORS.values())]
    pairs: Any = [*given, *made, *errors]
    _, definitions = models_json_schema(pairs, ref_template=REF)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["responses"] = _responses(method, path)
            if names := re.findall(r"{(\w+)}", path):
                operation["parameters"] = [{"name": name, "in": "path", "required": True} | TEXT for name in names]
            if path in QUERIES:
                operation["parameters"] = [{"name": name, "in": "query"} | TEXT for name in QUERIES[path]]
            if path in TAKES:
                operation["requestBody"] = {"required": True, "content": _json(*TAKES[path])}
    document["components"] = {"schemas": _named(document["paths"], _with_limits(definitions["$defs"]))}
    return document


def _named(paths: Any, shapes: dict[str, Any]) -> dict[str, Any]:
    """Those of `shapes` that the paths name, or that such shapes name."""
    names, new = set(), _refs(paths)
    while new:
        names |= new
        new = {name for found in new for name in _refs(shapes[found])} - names
    return {name: shape for name, shape in shapes.items() if name in names}


def _refs(part: Any) -> set[str]:
    return set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(part)))


def _with_limits(schema: Any) -> Any:
    """Limits of numbers under JSON Schema's names, where pydantic leaves its own: on numbers that it converts first."""
    if isinstance(schema, list):
        return [_with_limits(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    is_number = schema.get("type") in ("integer", "number")
    return {LIMITS.get(name, name) if is_number else name: _with_limits(part) for name, part in schema.items()}


def _by_prefix(table: Mapping[str, T], path: str) -> T | None:
    return next((value for prefix, value in table.items() if path.startswith(prefix)), None)


def _responses(method: str, path: str) -> dict[str, Any]:
    model, refusals = ANSWERS.get(path) or ANSWERS[f"{method} {path}"]
    error = _by_prefix(dialects.ERRORS, path) or ErrorBody
    content = {"text/plain": TEXT} if model is None else _json(model)
    if path in STREAMED:
        content[STREAMED[path]] = {}  # OpenAPI 3.1 has no words for the shape of an event
    refused = {str(status): {"description": REFUSALS[status], "content": _json(error)} for status in refusals}
    return {"200": {"description": "The answer.", "content": content}} | refused


def _json(*models: type[BaseModel]) -> dict[str, Any]:
    refs = [{"$ref": REF.format(model=model.__name__)} for model in models]
    return {"application/json": {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}}}
