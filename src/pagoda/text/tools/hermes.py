"""Hermes 2 Pro, Qwen 2.5 and Qwen 3: a JSON object between <tool_call> and </tool_call>, one pair a call.

Small models leave the tags away, or write a block of code instead. So an object at the start of a line, alone or in a
block of code, counts as a call too if it names a function that was offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagoda.text.tools.base import CallGrammar, Function, call_id
from pagoda.text.tools.grammar import CallRule, answer, bare_heads, json_calls
from pagoda.text.tools.json_call import read_call, read_calls, tagged
from pagoda.text.tools.parser import CallParser, NotACall, Reading, Trigger

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FENCES = ("```json\n", "```\n", "```tool_call\n")


@dataclass(frozen=True, slots=True)
class Hermes:
    """See the module."""

    name: str = "hermes"
    markers: tuple[str, ...] = (OPEN, CLOSE)

    def is_of(self, template: str) -> bool:
        return OPEN in template

    def parser(self, functions: Sequence[Function]) -> CallParser:
        names = frozenset(function.name for function in functions)
        return CallParser([tagged(names, OPEN, CLOSE), *untagged(names)])

    def grammar(self, wanted: CallGrammar) -> str:
        heads, bare = bare_heads(wanted)
        definitions = [*json_calls(wanted, "arguments"), *bare]
        rule = CallRule(OPEN, rf'"\n" call "\n" {wanted.marker(CLOSE)}', definitions, separator=r'"\n"')
        return answer(wanted, rule, heads=heads)

    def new_id(self) -> str:
        return call_id()


def untagged(names: frozenset[str]) -> list[Trigger]:
    """Objects at the start of a line, and in blocks of code."""

    def read(parser: CallParser) -> Reading:
        yield from read_call(parser, names)

    def read_fenced(parser: CallParser) -> Reading:
        first = yield from parser.next_solid()
        if first == "[":
            yield from read_calls(parser, names)
        elif first == "{":
            yield from read_call(parser, names)
            while (yield from parser.skip("{")):
                yield from read_call(parser, names)
        else:
            raise NotACall
        yield from parser.skip("```")

    return [Trigger("{", read, "line"), *(Trigger(fence, read_fenced, "line") for fence in FENCES)]
