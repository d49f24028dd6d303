"""What a request may say: OpenAI's fields and vLLM's extras, as pydantic models.

Every field here is obeyed, except the harmless ones of `Harmless`. Anything else is refused by name: by the schema
(`extra="forbid"`), or by `unsupported_fields.py` when it is a field of the APIs that is not served. `null` means the
default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pagoda.cache.policy import MAX_TAG_CHARS, MAX_TAGS, MAX_TTL, MIN_TTL, CacheOptions, Mode
from pagoda.server.schema_base import HOTTEST, MAX_TOKENS, Int, Int64, Strict, Text, TokenIds
from pagoda.server.schema_messages import Message
from pagoda.server.schema_output import Structured, Tools
from pagoda.server.unsupported_fields import NEUTRAL_IN_COMPLETION, without_neutral


def _no_limit(value: object) -> object:
    """-1 is how some clients say that there is none."""
    return None if value == -1 and not isinstance(value, bool) else value


def _no_stop(value: object) -> object:
    """Empty texts are how some clients say that nothing stops the answer."""
    return [text for text in value if text != ""] if isinstance(value, list) else value or None


Limit = Annotated[Annotated[Int, Field(ge=1, le=MAX_TOKENS)] | None, BeforeValidator(_no_limit)]
Texts = Annotated[list[str], Field(fail_fast=True)]
# What is looked at for every token has to be short. OpenAI allows 4 stop strings and 300 biases.
StopText = Annotated[str, Field(min_length=1, max_length=1024)]
StopTexts = Annotated[list[StopText], Field(max_length=128)]
BadWords = Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Field(max_length=256)]
Bias = Annotated[float, Field(ge=-100, le=100)]
LogitBias = Annotated[dict[Annotated[str, Field(pattern="^[0-9]+$", max_length=10)], Bias], Field(max_length=1024)]


NumLogprobs = Annotated[Int, Field(ge=-1, le=MAX_TOKENS)]  # as far as --max-logprobs allows; -1: of all tokens


class StreamOptions(Strict):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None  # harmless: pads chunks against eavesdroppers; there is no padding here


class Harmless(Strict):
    """Fields that change nothing in the answer: accepted and not looked at."""

    user: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class PredictedPart(Strict):
    type: Literal["text"]
    text: str


class Prediction(Strict):
    """OpenAI's Predicted Outputs: what the answer will mostly be. It makes the answer faster, not another."""

    type: Literal["content"]
    content: str | list[PredictedPart]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Speculation(Strict):
    """Whether tokens of this request may be guessed ahead, and how many in one step."""

    enabled: bool | None = None
    max_tokens: Annotated[Int, Field(ge=1, le=MAX_TOKENS)] | None = None

    @property
    def most(self) -> int | None:
        return 0 if self.enabled is False else self.max_tokens


Tag = Annotated[str, Field(min_length=1, max_length=MAX_TAG_CHARS)]


class CacheWish(Strict):
    """Whether and how the semantic cache may be used; the header X-Pagoda-Cache says the same and wins."""

    mode: Mode = "on"
    ttl: Annotated[float, Field(ge=MIN_TTL, le=MAX_TTL)] | None = None  # seconds
    tags: Annotated[list[Tag], Field(max_length=MAX_TAGS)] | None = None

    @property
    def options(self) -> CacheOptions:
        return CacheOptions(self.mode, self.ttl, tuple(dict.fromkeys(self.tags or ())))


def _wish(value: object) -> object:
    """`"cache": "off"` is short for `"cache": {"mode": "off"}`."""
    return {"mode": value} if isinstance(value, str) else value


class Generation(Harmless, Structured):
    """What chat and text completions share."""

    model: str | None = None
    request_id: Annotated[str, Field(pattern="^[!-~]{1,200}$")] | None = None
    prediction: Prediction | None = None
    speculation: Speculation | None = None
    n: Annotated[Int, Field(ge=1, le=128)] | None = None
    best_of: Annotated[Int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    deadline_ms: Annotated[Int, Field(ge=1, le=86_400_000)] | None = None  # after which the answer is of no use
    include_cost: bool | None = None  # usage.cost_usd, where the machine has a price

    # The maximum is that of these paths (`reading.py`), not of the dialects that become such a body.
    temperature: Annotated[float, Field(ge=0, json_schema_extra={"maximum": HOTTEST})] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    logit_bias: LogitBias | None = None
    seed: Int64 | None = None

    min_tokens: Annotated[Int, Field(ge=0, le=MAX_TOKENS)] | None = None
    stop: Annotated[StopText | StopTexts | None, BeforeValidator(_no_stop)] = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    allowed_token_ids: Annotated[TokenIds, Field(min_length=1)] | None = None
    bad_words: BadWords | None = None

    top_n_sigma: Annotated[float, Field(ge=-1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    xtc_probability: Annotated[float, Field(ge=0, le=1)] | None = None
    xtc_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    dynatemp_range: Annotated[float, Field(ge=0, le=100)] | None = None
    dynatemp_exponent: Annotated[float, Field(ge=0, le=100)] | None = None
    mirostat: Annotated[Int, Field(ge=0, le=2)] | None = None
    mirostat_tau: Annotated[float, Field(ge=0, le=100)] | None = None
    mirostat_eta: Annotated[float, Field(ge=0, le=1)] | None = None
    temperature_last: bool | None = None
    dry_multiplier: Annotated[float, Field(ge=0, le=100)] | None = None
    dry_base: Annotated[float, Field(ge=1, le=100)] | None = None
    dry_allowed_length: Annotated[Int, Field(ge=1, le=MAX_TOKENS)] | None = None
    dry_penalty_last_n: Annotated[Int, Field(ge=-1, le=MAX_TOKENS)] | None = None
    dry_sequence_breakers: Annotated[list[StopText], Field(max_length=32)] | None = None

    prompt_logprobs: NumLogprobs | None = None
    logprob_token_ids: TokenIds | None = None
    include_reasoning: bool | None = None  # false: chat answers without what the model thought
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    timings_per_token: bool | None = None  # llama-server's timings in the answer, and in each chunk
    return_progress: bool | None = None  # streams: how much of the prompt is computed, step by step
    truncate_prompt_tokens: Annotated[Int, Field(ge=-1, le=MAX_TOKENS)] | None = None  # -1: to the whole context

    cache: Annotated[CacheWish | None, BeforeValidator(_wish)] = None
    priority: Int64 | None = None
    cache_salt: Annotated[Text, Field(max_length=1024)] | None = None

    @model_validator(mode="before")
    @classmethod
    def refuse_unserved(cls, data: object) -> object:
        return without_neutral(data)


class CompletionRequest(Generation):
    """POST /v1/completions."""

    @model_validator(mode="before")
    @classmethod
    def refuse_fields_of_chats(cls, data: object) -> object:
        return without_neutral(data, NEUTRAL_IN_COMPLETION)

    prompt: (
        str
        | Annotated[Texts, Field(min_length=1)]
        | Annotated[TokenIds, Field(min_length=1)]
        | Annotated[list[Annotated[TokenIds, Field(min_length=1)]], Field(min_length=1, fail_fast=True)]
    )
    max_tokens: Annotated[Int, Field(ge=-1, le=MAX_TOKENS)] | None = None  # -1: no limit
    suffix: Annotated[str | None, BeforeValidator(lambda value: value or None)] = None  # what is to follow the answer
    logprobs: NumLogprobs | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One string or list of ids a prompt."""
        if isinstance(self.prompt, list) and not isinstance(self.prompt[0], int):
            return self.prompt  # type: ignore[return-value]
        return [self.prompt]


class Conversation(Tools):
    """Messages, tools, and how the template is to render them."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    add_generation_prompt: bool | None = None  # null: unless the final message is continued
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    add_special_tokens: Literal[False] | None = None  # the template, and BOS once, are all that is added

    def plain_messages(self) -> list[dict[str, Any]]:
        """The messages as templates expect them."""
        return [message.plain() for message in self.messages]


class ChatRequest(Generation, Conversation):
    """POST /v1/chat/completions."""

    max_tokens: Limit = None
    max_completion_tokens: Limit = None
    thinking_token_budget: Annotated[Int, Field(ge=0, le=MAX_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = None


class TokenizeText(Strict):
    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChat(Conversation):
    model: str | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Strict):
    """POST /detokenize."""

    model: str | None = None
    tokens: TokenIds
