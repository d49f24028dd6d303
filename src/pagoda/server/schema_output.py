"""What an answer is to look like, and what it may call: the fields of OpenAI, vLLM and llama-server for both."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from pagoda.server.schema_base import Strict, Text, without_marks

Schema = dict[str, Any] | bool
Choices = Annotated[list[str], Field(min_length=1, fail_fast=True)]
FunctionName = Annotated[str, Field(pattern="^[a-zA-Z0-9_.:/-]{1,128}$")]
MAX_TOOLS = 128  # OpenAI's limit


class JsonSchemaFormat(Strict):
    """`strict` changes nothing: a schema is always held to."""

    model_config = ConfigDict(protected_namespaces=())

    name: str | None = None
    description: str | None = None
    schema_: Schema | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """OpenAI's, with llama-server's `schema` beside json_object and vLLM's structural tags."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    schema_: Schema | None = Field(None, alias="schema")
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None


class StructuredOutputs(Strict):
    """vLLM's: one of the kinds."""

    json_: Schema | str | None = Field(None, alias="json")
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = None
    json_object: bool | None = None
    structural_tag: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def drop_empty(cls, data: object) -> object:
        known = frozenset({*cls.model_fields, "json"})
        return without_marks(data, known) if isinstance(data, dict) else data


class Structured(Strict):
    """Fields of a request of which at most one asks for something."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | str | None = None
    guided_regex: Text | None = None
    guided_choice: Choices | None = None
    guided_grammar: Text | None = None
    structural_tag: Text | None = None
    json_schema: Schema | None = None
    grammar: str | None = None
    guided_decoding_backend: str | None = None  # harmless: there is one


class FunctionDefinition(Strict):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def drop_marks(cls, data: object) -> object:
        return without_marks(data, frozenset(cls.model_fields))


class Tool(Strict):
    type: Literal["function"]
    function: FunctionDefinition

    @model_validator(mode="before")
    @classmethod
    def drop_marks(cls, data: object) -> object:
        return without_marks(data, frozenset(cls.model_fields))

    def plain(self) -> dict[str, Any]:
        """As templates expect it, with parameters even where there are none."""
        described = {} if self.function.description is None else {"description": self.function.description}
        parameters = self.function.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": {"name": self.function.name, **described, "parameters": parameters}}


class NamedFunction(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


class Tools(Strict):
    """Fields of a conversation."""

    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    @property
    def offered(self) -> list[Tool]:
        """The tools that may be called."""
        return [] if self.tool_choice == "none" else self.tools or []
