"""The shapes of answers that the OpenAPI document shows. Answers themselves are written without pydantic."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, RootModel


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail


class ModelState(BaseModel):
    value: Literal["loaded", "unloaded"]


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    digest: str | None = None  # of an adapter's files
    status: ModelState | None = None  # of an adapter: whether it is in memory


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
    cached: bool | None = None  # the answer came from the semantic cache


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


class TokenPiece(BaseModel):
    id: int
    piece: str | list[int]


class TokenizedContent(BaseModel):
    tokens: list[int] | list[TokenPiece]


class TokenizeAnswer(RootModel[Tokenized | TokenizedContent]):
    """vLLM's where a prompt or messages came, llama-server's where a content came."""


class Detokenized(BaseModel):
    prompt: str
    content: str


class Health(BaseModel):
    status: str


class Version(BaseModel):
    version: str


class Aliased(BaseModel):
    lora_name: str
    digest: str
    path: str


class EntriesDeleted(BaseModel):
    deleted: int


class EntryDeleted(BaseModel):
    id: str
    deleted: bool


class Plan(BaseModel):
    """As `pagoda plan --json` prints it, for this model on this machine; docs/planning.md says what each figure is."""

    model: dict[str, Any]
    request: dict[str, Any]
    plans: list[dict[str, Any]]
    engine: dict[str, Any]
