"""A list of JSON objects behind a tag, perhaps before another: Phi 4 mini, Granite 3, Nemotron, Command R7B and A."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagoda.text.tools.base import CallGrammar, Function, call_id
from pagoda.text.tools.grammar import MORE, CallRule, answer, json_calls
from pagoda.text.tools.json_call import tagged
from pagoda.text.tools.parser import CallParser


@dataclass(frozen=True, slots=True)
class JsonList:
    """`signs`: any of them in a chat template tells the format, unless one of `others` is there, too.

    numbered: calls are {"tool_call_id": "0", "tool_name": …, "parameters": …}, not {"name": …, "arguments": …}.
    """

    name: str
    start: str
    end: str  # empty: the answer ends with the list
    signs: tuple[str, ...]
    others: tuple[str, ...] = ()
    numbered: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.start, self.end) if self.end else (self.start,)

    def is_of(self, template: str) -> bool:
        return any(sign in template for sign in self.signs) and not any(sign in template for sign in self.others)

    def parser(self, functions: Sequence[Function]) -> CallParser:
        names = frozenset(function.name for function in functions)
        return CallParser([tagged(names, self.start, self.end)])

    def grammar(self, wanted: CallGrammar) -> str:
        more = ' (", " call)' + MORE if wanted.parallel else ""
        rest = f'"[" call{more} "]"' + (f" {wanted.marker(self.end)}" if self.end else "")
        keys = ("tool_name", "parameters", "tool_call_id") if self.numbered else ("name", "arguments", "")
        calls = json_calls(wanted, keys[1], name_key=keys[0], id_key=keys[2])
        return answer(wanted, CallRule(self.start, rest, calls), repeats=False)

    def new_id(self) -> str:
        return call_id()


PHI = JsonList("phi4_mini", "<|tool_call|>", "<|/tool_call|>", ("<|/tool_call|>", "<|tool|>"))
GRANITE = JsonList("granite", "<|tool_call|>", "", ("<|tool_call|>",), others=PHI.signs)
NEMOTRON = JsonList("nemotron", "<TOOLCALL>", "</TOOLCALL>", ("<TOOLCALL>",))
COHERE = JsonList("cohere", "<|START_ACTION|>", "<|END_ACTION|>", ("<|START_ACTION|>",), numbered=True)
