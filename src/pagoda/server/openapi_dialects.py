"""What the OpenAPI document says of other dialects' routes, in the tables that `openapi.py` reads."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, RootModel

from pagoda.server import llama_routes, messages_routes, ollama_routes, responses_routes
from pagoda.server.dialects.llama_schema import InfillRequest, LlamaCompletionRequest
from pagoda.server.dialects.messages_schema import CountTokensRequest, MessagesRequest
from pagoda.server.dialects.ollama_schema import OllamaChatRequest, OllamaGenerateRequest, OllamaShowRequest
from pagoda.server.dialects.responses_schema import ResponsesRequest
from pagoda.server.schema import TokenizeChat


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseObject(BaseModel):
    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]
    error: dict[str, Any] | None
    incomplete_details: dict[str, str] | None
    model: str
    output: list[dict[str, Any]]
    usage: ResponseUsage | None
    background: bool
    previous_response_id: str | None
    store: bool


class DeletedResponse(BaseModel):
    id: str
    object: Literal["response"]
    deleted: bool


class MessageUsage(BaseModel):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageObject(BaseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(BaseModel):
    input_tokens: int


class Timings(BaseModel):
    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float


class LlamaResult(BaseModel):
    """Less, where `response_fields` says so."""

    index: int = 0
    content: str = ""
    tokens: list[int] = []
    stop: bool = True
    model: str = ""
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    prompt: str = ""
    stop_type: Literal["eos", "limit", "word"] = "eos"
    stopping_word: str = ""
    timings: Timings | None = None


class LlamaResults(RootModel[LlamaResult | list[LlamaResult]]):
    """One for a prompt, a list for a list of prompts."""


class RenderedPrompt(BaseModel):
    prompt: str


class LlamaProps(BaseModel):
    default_generation_settings: dict[str, Any]
    total_slots: int
    model_alias: str
    chat_template: str
    build_info: str


class LlamaSlot(BaseModel):
    id: int
    n_ctx: int
    is_processing: bool


class LlamaSlots(RootModel[list[LlamaSlot]]):
    pass


class OllamaCounts(BaseModel):
    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length"]
    total_duration: int
    load_duration: int
    prompt_eval_count: int
    prompt_eval_duration: int
    eval_count: int
    eval_duration: int


class OllamaChatResponse(OllamaCounts):
    message: dict[str, Any]


class OllamaGenerateResponse(OllamaCounts):
    response: str


class OllamaModel(BaseModel):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: dict[str, Any]


class OllamaModels(BaseModel):
    models: list[OllamaModel]


class OllamaVersion(BaseModel):
    version: str


class OllamaShown(BaseModel):
    modified_at: str
    details: dict[str, Any]
    template: str
    model_info: dict[str, Any]
    capabilities: list[str]


class OllamaErrorBody(BaseModel):
    error: str


class MessagesErrorDetail(BaseModel):
    type: str
    message: str


class MessagesError(BaseModel):
    type: Literal["error"]
    error: MessagesErrorDetail


ROUTES = [*responses_routes.ROUTES, *messages_routes.ROUTES, *llama_routes.ROUTES, *ollama_routes.ROUTES]
POSTS = (400, 401, 404, 413, 503)
GENERATES = (*POSTS, 429)
RESPONSE = "/v1/responses/{response_id}"

# path, or method and path → its answer, and the ways in which it is refused
ANSWERS: dict[str, tuple[type[BaseModel] | None, tuple[int, ...]]] = {
    "/v1/responses": (ResponseObject, GENERATES),
    f"get {RESPONSE}": (ResponseObject, (401, 404)),
    f"delete {RESPONSE}": (DeletedResponse, (401, 404)),
    f"{RESPONSE}/cancel": (ResponseObject, (400, 401, 404)),
    "/v1/messages": (MessageObject, GENERATES),
    "/v1/messages/count_tokens": (TokenCount, POSTS),
    "/completion": (LlamaResults, GENERATES),
    "/completions": (LlamaResults, GENERATES),
    "/infill": (LlamaResults, GENERATES),
    "/apply-template": (RenderedPrompt, POSTS),
    "/props": (LlamaProps, (401, 503)),
    "/slots": (LlamaSlots, (401, 503)),
    "/api/chat": (OllamaChatResponse, GENERATES),
    "/api/generate": (OllamaGenerateResponse, GENERATES),
    "/api/tags": (OllamaModels, (401, 503)),
    "/api/ps": (OllamaModels, (401, 503)),
    "/api/show": (OllamaShown, POSTS),
    "/api/version": (OllamaVersion, (401,)),
}
TAKES: dict[str, list[type[BaseModel]]] = {
    "/v1/responses": [ResponsesRequest],
    "/v1/messages": [MessagesRequest],
    "/v1/messages/count_tokens": [CountTokensRequest],
    "/completion": [LlamaCompletionRequest],
    "/completions": [LlamaCompletionRequest],
    "/infill": [InfillRequest],
    "/apply-template": [TokenizeChat],
    "/api/chat": [OllamaChatRequest],
    "/api/generate": [OllamaGenerateRequest],
    "/api/show": [OllamaShowRequest],
}
EVENTS, LINES = "text/event-stream", "application/x-ndjson"
STREAMED = dict.fromkeys(("/v1/responses", "/v1/messages", "/completion", "/completions", "/infill"), EVENTS)
STREAMED |= dict.fromkeys(("/api/chat", "/api/generate"), LINES)
ERRORS: dict[str, type[BaseModel]] = {
    "/v1/messages": MessagesError,
    "/api/": OllamaErrorBody,
}  # by the beginning of the path
TAGS = {"/v1/responses": "Responses API", "/v1/messages": "Messages API", "/api/": "Ollama"}
TAGS |= dict.fromkeys(("/completion", "/infill", "/apply-template", "/props", "/slots"), "llama-server")
