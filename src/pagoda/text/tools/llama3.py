"""Llama 3.1 to 3.3: the answer is one JSON object {"name": …, "parameters": {…}}, sometimes after <|python_tag|>."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagoda.text.tools.base import CallGrammar, Function, call_id
from pagoda.text.tools.grammar import answer_alone, bare_heads, json_calls
from pagoda.text.tools.json_call import read_call
from pagoda.text.tools.parser import CallParser, NotACall, Reading, Trigger

TAG = "<|python_tag|>"


@dataclass(frozen=True, slots=True)
class Llama3:
    """See the module."""

    name: str = "llama3_json"
    markers: tuple[str, ...] = (TAG,)

    def is_of(self, template: str) -> bool:
        return TAG in template or ('"parameters": ' in template and "<|start_header_id|>" in template)

    def parser(self, functions: Sequence[Function]) -> CallParser:
        names = frozenset(function.name for function in functions)

        def read(parser: CallParser) -> Reading:
            yield from read_call(parser, names)
            yield from parser.skip(";")

        def read_tagged(parser: CallParser) -> Reading:
            if (yield from parser.next_solid()) != "{":
                raise NotACall
            yield from read(parser)

        return CallParser([Trigger("{", read, "start"), Trigger(TAG, read_tagged)])

    def grammar(self, wanted: CallGrammar) -> str:
        heads, bare = bare_heads(wanted, before="")
        return answer_alone(wanted, "call", [*json_calls(wanted, "parameters"), *bare], heads, TAG)

    def new_id(self) -> str:
        return call_id()
