"""Tools as a whole conversation meets them: told to the model in the way its chat template has, found in its answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pagoda.text.tools.base import ArgumentsPiece, CallStart, Function, TextPiece
from pagoda.text.tools.table import GENERIC, format_of


class MarkerTokenizer(Protocol):
    """What finding control tokens needs of a tokenizer."""

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...

    def is_special(self, token_id: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """One call in an answer. `arguments` are JSON as the model wrote it, which need not be valid."""

    id: str
    name: str
    arguments: str


class OfferedTools:
    """Tools in OpenAI's shape, for a model with the chat template `template`."""

    def __init__(self, tools: Sequence[Mapping[str, Any]], template: str) -> None:
        self._tools = tools
        self._format = format_of(template)
        self._functions = [Function(one["function"]["name"], one["function"].get("parameters") or {}) for one in tools]
        self._template_knows = self._format is not GENERIC or "tools" in template

    def told(self, messages: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], dict[str, Any]]:
        """The messages, and arguments of the template, that tell of the tools."""
        if self._template_knows:
            return messages, {"tools": list(self._tools)}
        return GENERIC.told(messages, self._tools), {}

    def shown_ids(self, tokenizer: MarkerTokenizer) -> frozenset[int]:
        """The control tokens that stand around calls: an answer's text has to hold them."""
        return control_ids(tokenizer, self._format.markers)

    def divided(self, text: str) -> tuple[str, tuple[FunctionCall, ...]]:
        """A whole answer as what it says, and what it calls."""
        parser = self._format.parser(self._functions)
        said: list[str] = []
        calls: list[FunctionCall] = []
        for event in (*parser.push(text), *parser.finish()):
            match event:
                case TextPiece(piece):
                    said.append(piece)
                case CallStart(name):
                    calls.append(FunctionCall(self._format.new_id(), name, ""))
                case ArgumentsPiece(piece):
                    last = calls[-1]
                    calls[-1] = FunctionCall(last.id, last.name, last.arguments + piece)
        return "".join(said), tuple(calls)


def control_ids(tokenizer: MarkerTokenizer, markers: Iterable[str]) -> frozenset[int]:
    """Those of the markers' tokens that are control tokens."""
    ids = (i for text in markers for i in tokenizer.encode(text, add_special=False, parse_special=True))
    return frozenset(token_id for token_id in ids if tokenizer.is_special(token_id))
