"""Gemma 4: <|tool_call>call:name{key:<|"|>text<|"|>,other:1}<tool_call|>, one pair of tags a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagoda.text.tools.base import CallGrammar, Function, call_id, literal
from pagoda.text.tools.grammar import CallRule, answer
from pagoda.text.tools.literal_rules import ValueRules
from pagoda.text.tools.literals import GEMMA, stream_members
from pagoda.text.tools.parser import CallParser, NotACall, Reading, Trigger

OPEN, CLOSE, QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'


@dataclass(frozen=True, slots=True)
class Gemma:
    """See the module."""

    name: str = "gemma4"
    markers: tuple[str, ...] = (OPEN, CLOSE, QUOTE)

    def is_of(self, template: str) -> bool:
        return OPEN in template and "call:" in template

    def parser(self, functions: Sequence[Function]) -> CallParser:
        names = frozenset(function.name for function in functions)

        def read(parser: CallParser) -> Reading:
            yield from parser.expect("call:")
            name = ""
            while (char := (yield from parser.next())) and char != "{" and len(name) < 256:
                name += char
            if char != "{" or name not in names:
                raise NotACall
            parser.announce(name)
            parser.arguments("{")
            yield from stream_members(parser, GEMMA, "}", ":")
            parser.arguments("}")
            yield from parser.skip(CLOSE)

        return CallParser([Trigger(OPEN, read)])

    def grammar(self, wanted: CallGrammar) -> str:
        definitions = [f"call: {' | '.join(f'call{i}' for i in range(len(wanted.functions)))}"]
        for i, function in enumerate(wanted.functions):
            rules = ValueRules(wanted, function, GEMMA, f"f{i}")
            arguments = rules.members(function.schema, GEMMA.key)
            definitions += [f'call{i}: {literal(f"call:{function.name}{{")} {arguments} "}}"', *rules.lines]
        return answer(wanted, CallRule(OPEN, f"call {wanted.marker(CLOSE)}", definitions))

    def new_id(self) -> str:
        return call_id()
