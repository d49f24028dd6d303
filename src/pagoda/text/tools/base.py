"""What a tool-call format is: how a model says that it calls a function.

A format reads: text comes in parts, events go out, and what looks like a call and is none stays text. And it writes a
grammar in llguidance's dialect of Lark, for answers that must call a function, and for the inside of calls that a model
begins by itself.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A piece of what the model says besides calls."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call of the function `name` begins."""

    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsPiece:
    """A piece of the JSON object that is the arguments of the call that began last."""

    text: str


Event = TextPiece | CallStart | ArgumentsPiece


@dataclass(frozen=True, slots=True)
class Function:
    """A function that may be called. `schema` is that of its arguments, an object."""

    name: str
    schema: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False  # a grammar that cannot hold its arguments to the schema is to be refused


class ToolParser(Protocol):
    """Turns one answer into events. What `push` and `finish` return does not depend on how the text was cut."""

    def push(self, text: str) -> list[Event]: ...

    def finish(self) -> list[Event]:
        """No more text comes."""


@dataclass(frozen=True, slots=True)
class CallGrammar:
    """What a format's grammar is made from."""

    functions: Sequence[Function]  # those that may be called, their schemas as grammars take them
    required: bool  # the answer is a call; otherwise it is text, in which calls may begin
    parallel: bool  # there may be several calls
    json_item: Callable[[Any], str]  # a schema → an item of Lark that stands for JSON of that schema
    marker: Callable[[str], str] = json.dumps  # a text → the control token of that name, or a string of Lark


class ToolFormat(Protocol):
    """One row of the table."""

    @property
    def name(self) -> str: ...

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that are control tokens in some vocabularies, and that the parser has to see."""

    def is_of(self, template: str) -> bool:
        """Whether a chat template teaches this format."""

    def parser(self, functions: Sequence[Function]) -> ToolParser: ...

    def grammar(self, wanted: CallGrammar) -> str:
        """Lark that begins at `start`."""

    def new_id(self) -> str:
        """An id for a call, of a kind that the model's template takes back."""


def literal(text: str) -> str:
    """A text as a string of Lark."""
    return json.dumps(text)


def call_id() -> str:
    """A new id, of the kind that most templates do not look at."""
    return f"call_{secrets.token_hex(12)}"
