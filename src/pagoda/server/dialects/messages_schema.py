"""What a request to Anthropic's Messages API may say. Beyond it: `docs/doors.md`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pagoda.server.schema_base import HOTTEST, MAX_TOKENS, Int, Strict, without_marks
from pagoda.server.schema_output import MAX_TOOLS


class Marked(Strict):
    """Unknown fields that are empty pass, and so does `cache_control`: the prefix cache needs no marks."""

    @model_validator(mode="before")
    @classmethod
    def drop_marks(cls, data: object) -> object:
        return without_marks(data, frozenset(cls.model_fields))


class TextBlock(Marked):
    type: Literal["text"]
    text: str


class ThinkingBlock(Marked):
    """What an earlier answer thought. There is nothing to verify a signature with."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(Marked):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(Marked):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | Annotated[list[TextBlock], Field(fail_fast=True)] | None = None
    is_error: bool | None = None  # what is wrong, the content says


AnyBlock = Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class MessageParam(Marked):
    role: Literal["user", "assistant"]
    content: str | Annotated[list[AnyBlock], Field(min_length=1, fail_fast=True)]

    @model_validator(mode="after")
    def check_role(self) -> MessageParam:
        """Calls and thoughts are the assistant's, results the user's."""
        kinds = set() if isinstance(self.content, str) else {block.type for block in self.content}
        foreign = {"tool_result"} if self.role == "assistant" else {"tool_use", "thinking"}
        if kinds & foreign:
            raise ValueError(f"messages of the {self.role} hold no blocks of type {min(kinds & foreign)}")
        return self


class CustomTool(Marked):
    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    eager_input_streaming: bool | None = None  # harmless: arguments come as they are written


class ToolChoice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def check_name(self) -> ToolChoice:
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("a name belongs to tool_choice of type tool, and to no other")
        return self


class Thinking(Strict):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[Int, Field(ge=1, le=MAX_TOKENS)] | None = None
    display: Literal["summarized", "omitted"] | None = None

    @model_validator(mode="after")
    def check_budget(self) -> Thinking:
        if self.type == "enabled" and self.budget_tokens is None:
            raise ValueError("thinking of type enabled needs budget_tokens")
        return self


class OutputFormat(Strict):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(Strict):
    user_id: str | None = None


class CountTokensRequest(Marked):
    """POST /v1/messages/count_tokens."""

    model: str | None = None
    messages: Annotated[list[MessageParam], Field(min_length=1, fail_fast=True)]
    system: str | Annotated[list[TextBlock], Field(fail_fast=True)] | None = None
    tools: Annotated[list[CustomTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountTokensRequest):
    """POST /v1/messages."""

    max_tokens: Annotated[Int, Field(ge=1, le=MAX_TOKENS)]
    temperature: Annotated[float, Field(ge=0, le=HOTTEST)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Int, Field(ge=0, le=MAX_TOKENS)] | None = None
    stop_sequences: Annotated[list[str], Field(max_length=128)] | None = None
    stream: bool | None = None
    # harmless: who asks, and where it may be computed
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    speed: Literal["standard"] | None = None
    user_profile_id: str | None = None
    workspace_id: str | None = None
