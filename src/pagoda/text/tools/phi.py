"""Phi 4 mini: a list of JSON objects between <|tool_call|> and <|/tool_call|>."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagoda.text.tools.base import CallGrammar, Function, call_id
from pagoda.text.tools.grammar import MORE, CallRule, answer, json_calls
from pagoda.text.tools.json_call import tagged
from pagoda.text.tools.parser import CallParser

OPEN, CLOSE = "<|tool_call|>", "<|/tool_call|>"


@dataclass(frozen=True, slots=True)
class Phi:
    """See the module."""

    name: str = "phi4_mini"
    markers: tuple[str, ...] = (OPEN, CLOSE)

    def is_of(self, template: str) -> bool:
        return OPEN in template or "<|tool|>" in template

    def parser(self, functions: Sequence[Function]) -> CallParser:
        names = frozenset(function.name for function in functions)
        return CallParser([tagged(names, OPEN, CLOSE)])

    def grammar(self, wanted: CallGrammar) -> str:
        more = ' (", " call)' + MORE if wanted.parallel else ""
        rest = f'"[" call{more} "]" {wanted.marker(CLOSE)}'
        return answer(wanted, CallRule(OPEN, rest, json_calls(wanted, "arguments")), repeats=False)

    def new_id(self) -> str:
        return call_id()
