"""The shapes of answers, for the OpenAPI document only: answers are written without pydantic."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


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


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class CachedTokens(BaseModel):
    cached_tokens: int


class UsageBody(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class TokenLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    content: list[ChatTokenLogprob]
    refusal: str | None


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: str | None


class PromptLogprob(BaseModel):
    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class AnyChoice(BaseModel):
    index: int
    finish_reason: Literal["stop", "length"]
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


_REFUSALS = {
    400: "The request is invalid, or asks for what is not supported.",
    401: "The API key is missing or wrong.",
    404: "There is no such model.",
    413: "The body is too large.",
    429: "The queue is full; Retry-After says when to come back.",
    503: "The model is being loaded, the server is shutting down, or the engine has stopped.",
}
Responses = dict[int | str, dict[str, Any]]
ERRORS: Responses = {status: {"model": ErrorBody, "description": text} for status, text in _REFUSALS.items()}


def ok(model: type[BaseModel], *, stream: bool = False) -> Responses:
    """The 200 of a route; with `stream`, server-sent events are the other form of it."""
    entry: dict[str, Any] = {"model": model, "description": "The answer."}
    if stream:
        entry["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    return {200: entry}


def some(*statuses: int) -> Responses:
    """Those of ERRORS."""
    return {status: ERRORS[status] for status in statuses}
