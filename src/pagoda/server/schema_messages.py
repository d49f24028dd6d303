"""Messages of a conversation, those of tools among them, as clients send them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pagoda.server.schema_base import Int, Strict, Text, without_marks


class TextPart(Strict):
    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def drop_marks(cls, data: object) -> object:
        return without_marks(data, frozenset(cls.model_fields))


class CalledFunction(Strict):
    name: Text
    arguments: str | dict[str, Any] = "{}"

    @model_validator(mode="before")
    @classmethod
    def drop_marks(cls, data: object) -> object:
        return without_marks(data, frozenset(cls.model_fields))


class ToolCall(Strict):
    """A call that an earlier answer made."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Int | None = None  # of streamed answers, which some clients keep

    @model_validator(mode="before")
    @classmethod
    def drop_marks(cls, data: object) -> object:
        return without_marks(data, frozenset(cls.model_fields))

    def plain(self) -> dict[str, Any]:
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return {"id": self.id, "type": self.type, "function": function}


class Message(Strict):
    """Unknown fields that are empty pass: clients send an answer's fields back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=1024, fail_fast=True)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the same under its newer name

    @model_validator(mode="before")
    @classmethod
    def drop_marks(cls, data: object) -> object:
        return without_marks(data, frozenset(cls.model_fields))

    @model_validator(mode="after")
    def check_role(self) -> Message:
        """Calls and thoughts are the assistant's; who only says something has to say it."""
        if self.role in ("system", "developer", "user") and self.content is None:
            raise ValueError(f"a message of the role {self.role} needs a content")
        if self.role != "assistant" and (self.tool_calls or self.reasoning_content or self.reasoning):
            raise ValueError("tool_calls and reasoning_content belong to messages of the assistant")
        return self

    def plain(self) -> dict[str, Any]:
        """As templates expect it: `developer` goes by its older name, what is not there is left out."""
        content = [part.model_dump() for part in self.content] if isinstance(self.content, list) else self.content
        thought = self.reasoning_content or self.reasoning
        optional = {
            "name": self.name,
            "tool_calls": [call.plain() for call in self.tool_calls or ()],
            "tool_call_id": self.tool_call_id,
            "reasoning_content": thought,
            "reasoning": thought,
        }
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content} | {name: value for name, value in optional.items() if value}
