"""What a request may say: OpenAI's fields and vLLM's extras, as pydantic models.

Every field here is obeyed, except the harmless ones of `Harmless`. Anything else is refused by name: by the schema
(`extra="forbid"`), or by `unsupported_fields.py` when it is a field of the APIs that is not served. `null` means the
default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pagoda.server.unsupported_fields import NEUTRAL_IN_MESSAGE, without_neutral


def _whole(value: object) -> object:
    """JSON does not tell 16 from 16.0, and neither do its clients."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(_whole)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
Text = Annotated[str, Field(min_length=1)]
Int64 = Annotated[Int, Field(ge=-(2**63), le=2**63 - 1)]
# What is looked at for every token has to be short. OpenAI allows 4 stop strings and 300 biases.
StopText = Annotated[str, Field(min_length=1, max_length=1024)]
StopTexts = Annotated[list[StopText], Field(max_length=128)]
BadWords = Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Field(max_length=256)]
Bias = Annotated[float, Field(ge=-100, le=100)]
LogitBias = Annotated[dict[Annotated[str, Field(pattern="^[0-9]+$", max_length=10)], Bias], Field(max_length=1024)]
MAX_TOKENS = 2**31 - 1


class Strict(BaseModel):
    """No unknown fields, no conversions: "1" is not 1."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, ser_json_inf_nan="null")


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
    request_id: str | None = None
    include_reasoning: bool | None = None


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


class Generation(Harmless):
    """What chat and text completions share."""

    model: str | None = None
    prediction: Prediction | None = None
    speculation: Speculation | None = None
    n: Annotated[Int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    logit_bias: LogitBias | None = None
    seed: Int64 | None = None

    min_tokens: Annotated[Int, Field(ge=0, le=MAX_TOKENS)] | None = None
    stop: StopText | StopTexts | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    allowed_token_ids: Annotated[TokenIds, Field(min_length=1)] | None = None
    bad_words: BadWords | None = None

    prompt_logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    truncate_prompt_tokens: Annotated[Int, Field(ge=-1, le=MAX_TOKENS)] | None = None  # -1: to the whole context

    priority: Int64 | None = None
    cache_salt: Annotated[Text, Field(max_length=1024)] | None = None

    @model_validator(mode="before")
    @classmethod
    def refuse_unserved(cls, data: object) -> object:
        return without_neutral(data)


class CompletionRequest(Generation):
    """POST /v1/completions."""

    prompt: (
        str
        | Annotated[Texts, Field(min_length=1)]
        | Annotated[TokenIds, Field(min_length=1)]
        | Annotated[list[Annotated[TokenIds, Field(min_length=1)]], Field(min_length=1, fail_fast=True)]
    )
    max_tokens: Annotated[Int, Field(ge=0, le=MAX_TOKENS)] | None = None
    logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One string or list of ids a prompt."""
        if isinstance(self.prompt, list) and not isinstance(self.prompt[0], int):
            return self.prompt  # type: ignore[return-value]
        return [self.prompt]


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None

    def plain(self) -> dict[str, Any]:
        """As templates expect it: `developer` goes by its older name."""
        content = [part.model_dump() for part in self.content] if isinstance(self.content, list) else self.content
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content} | ({"name": self.name} if self.name else {})


class Conversation(Strict):
    """Messages and how the template is to render them."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    add_generation_prompt: bool | None = None  # null: unless the final message is continued
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: Literal[False] | None = None  # the template, and BOS once, are all that is added

    def plain_messages(self) -> list[dict[str, Any]]:
        """The messages as templates expect them."""
        return [message.plain() for message in self.messages]

    @model_validator(mode="before")
    @classmethod
    def refuse_unserved_in_messages(cls, data: object) -> object:
        if not isinstance(data, dict) or not isinstance(data.get("messages"), list):
            return data
        messages = enumerate(data["messages"])
        return data | {
            "messages": [without_neutral(m, NEUTRAL_IN_MESSAGE, where=f"messages[{i}].") for i, m in messages]
        }


class ChatRequest(Generation, Conversation):
    """POST /v1/chat/completions."""

    max_tokens: Annotated[Int, Field(ge=1, le=MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[Int, Field(ge=1, le=MAX_TOKENS)] | None = None
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
