"""The OpenAPI document: what each route takes, and the shapes of answers, written without pydantic.

FastAPI draws the frame. Imported when the document is asked for, so that the server starts sooner.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import pagoda
from pagoda.server import adapter_routes, routes, system, vectors
from pagoda.server.adapter_routes import AliasBody, LoadBody, UnloadBody
from pagoda.server.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeChat, TokenizeText
from pagoda.server.schema_embeddings import EmbeddingRequest, RerankRequest, ScoreRequest


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    digest: str | None = None  # of an adapter's files


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class CachedTokens(BaseModel):
    cached_tokens: int


class CompletionDetails(BaseModel):
    """Each where there was any."""

    reasoning_tokens: int | None = None
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None
    draft_tokens: int | None = None  # guessed ahead, by whomever, and checked
    accepted_draft_tokens: int | None = None


class UsageBody(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: CompletionDetails | None = None


class TokenLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    content: list[ChatTokenLogprob]
    refusal: str | None


class CalledFunction(BaseModel):
    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class PromptLogprob(BaseModel):
    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class AnyChoice(BaseModel):
    index: int
    finish_reason: Literal["stop", "length", "tool_calls"]
    stop_reason: int | str | None
    token_ids: list[int] | None = None


class ChatChoice(AnyChoice):
    message: AnswerMessage
    logprobs: ChatLogprobs | None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None


class CompletionLogprobs(BaseModel):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(AnyChoice):
    text: str
    logprobs: CompletionLogprobs | None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody


class VectorUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str  # base64 of little-endian float32, where that is asked for
    truncated: bool = False


class Embeddings(BaseModel):
    id: str
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: VectorUsage


class Score(BaseModel):
    index: int
    object: Literal["score"]
    score: float
    truncated: bool = False


class Scores(BaseModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: VectorUsage


class ShownDocument(BaseModel):
    text: str


class Ranked(BaseModel):
    index: int
    document: ShownDocument | None = None
    relevance_score: float
    truncated: bool = False


class Reranked(BaseModel):
    id: str
    model: str
    usage: VectorUsage
    results: list[Ranked]


class Tokenized(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(BaseModel):
    prompt: str


class Health(BaseModel):
    status: str


class Version(BaseModel):
    version: str


class Aliased(BaseModel):
    lora_name: str
    digest: str
    path: str


class Plan(BaseModel):
    """As `pagoda plan --json` prints it, for this model on this machine; docs/planning.md says what each figure is."""

    model: dict[str, Any]
    request: dict[str, Any]
    plans: list[dict[str, Any]]
    engine: dict[str, Any]


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
}
REFUSALS = {
    400: "The request is invalid, or asks for what is not supported.",
    401: "The API key is missing or wrong.",
    403: "This needs the admin key.",
    404: "There is no such model.",
    413: "The body is too large.",
    429: "The queue is full; Retry-After says when to come back.",
    503: "The model is being loaded, the server is shutting down, or the engine has stopped.",
}
READS = (401, 404, 503)
POSTS = (400, 401, 404, 413, 503)

# path → its answer, and the ways in which it is refused; None: plain text
ANSWERS: dict[str, tuple[type[BaseModel] | None, tuple[int, ...]]] = {
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
    "/tokenize": (Tokenized, POSTS),
    "/detokenize": (Detokenized, POSTS),
    "/health": (Health, (503,)),
    "/ready": (Health, (401, 503)),
    "/version": (Version, (401,)),
    "/metrics": (None, (401, 503)),
    "/plan": (Plan, (400, 401, 503)),
}
TAKES: dict[str, list[type[BaseModel]]] = {
    "/v1/chat/completions": [ChatRequest],
    "/v1/completions": [CompletionRequest],
    "/v1/embeddings": [EmbeddingRequest],
    **{path: [ScoreRequest] for path in ("/score", "/v1/score")},
    **{path: [RerankRequest] for path in ("/rerank", "/v1/rerank", "/v2/rerank")},
    "/v1/load_lora_adapter": [LoadBody],
    "/v1/unload_lora_adapter": [UnloadBody],
    "/v1/alias_lora_adapter": [AliasBody],
    "/tokenize": [TokenizeText, TokenizeChat],
    "/detokenize": [DetokenizeRequest],
}
STREAMED = {"/v1/chat/completions", "/v1/completions"}
TEXT = {"schema": {"type": "string"}}
LIMITS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
REF = "#/components/schemas/{model}"


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document."""
    api = FastAPI(title="Pagoda", version=pagoda.__version__, description=DESCRIPTION)
    for route in (*routes.ROUTES, *vectors.ROUTES, *adapter_routes.ROUTES, *system.ROUTES):
        methods = sorted((route.methods or set()) - {"HEAD"})
        api.add_api_route(route.path, route.endpoint, methods=methods, tags=[TAGS.get(route.path, "system")])
    return _complete(api.openapi())


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    """The document of the routes, with what they take and answer."""
    given = [(model, "validation") for models in TAKES.values() for model in models]
    made = [(model, "serialization") for model, _ in ANSWERS.values() if model is not None]
    pairs: Any = [*given, *made, (ErrorBody, "serialization")]
    _, definitions = models_json_schema(pairs, ref_template=REF)
    document["components"] = {"schemas": _with_limits(definitions["$defs"])}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"] = _responses(path)
            if "{model_id}" in path:
                operation["parameters"] = [{"name": "model_id", "in": "path", "required": True} | TEXT]
            if path in TAKES:
                operation["requestBody"] = {"required": True, "content": _json(*TAKES[path])}
    return document


def _with_limits(schema: Any) -> Any:
    """Limits of numbers under JSON Schema's names, where pydantic leaves its own: on numbers that it converts first."""
    if isinstance(schema, list):
        return [_with_limits(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    is_number = schema.get("type") in ("integer", "number")
    return {LIMITS.get(name, name) if is_number else name: _with_limits(part) for name, part in schema.items()}


def _responses(path: str) -> dict[str, Any]:
    model, refusals = ANSWERS[path]
    content = {"text/plain": TEXT} if model is None else _json(model)
    if path in STREAMED:
        content["text/event-stream"] = {}  # OpenAPI 3.1 has no words for the shape of an event
    refused = {str(status): {"description": REFUSALS[status], "content": _json(ErrorBody)} for status in refusals}
    return {"200": {"description": "The answer.", "content": content}} | refused


def _json(*models: type[BaseModel]) -> dict[str, Any]:
    refs = [{"$ref": REF.format(model=model.__name__)} for model in models]
    return {"application/json": {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}}}
