"""Mistral: [TOOL_CALLS] and a list of JSON objects, or since version 11 [TOOL_CALLS]name[ARGS]{…}, one a call."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass

from pagoda.text.tools.base import CallGrammar, Function, literal
from pagoda.text.tools.grammar import MORE, CallRule, answer, arguments_item, json_calls
from pagoda.text.tools.json_call import read_calls, stream_object
from pagoda.text.tools.parser import CallParser, NotACall, Reading, Trigger

CALLS, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
ID_LENGTH = 9  # which the templates insist on


@dataclass(frozen=True, slots=True)
class Mistral:
    """See the module. `named`: the newer form; its parser takes both."""

    name: str
    named: bool
    markers: tuple[str, ...] = (CALLS, ARGS, CALL_ID)

    def is_of(self, template: str) -> bool:
        return CALLS in template and (ARGS in template) == self.named

    def parser(self, functions: Sequence[Function]) -> CallParser:
        names = frozenset(function.name for function in functions)

        def read(parser: CallParser) -> Reading:
            first = yield from parser.next_solid()
            if first == "[":
                yield from read_calls(parser, names)
            else:
                parser.back()
                yield from _read_named(parser, names)

        return CallParser([Trigger(CALLS, read)])

    def grammar(self, wanted: CallGrammar) -> str:
        if self.named:
            options = [_named(wanted, i, function) for i, function in enumerate(wanted.functions)]
            calls = [f"call: {' | '.join(f'call{i}' for i in range(len(options)))}", *options]
            return answer(wanted, CallRule(CALLS, "call", calls))
        more = ' (", " call)' + MORE if wanted.parallel else ""
        return answer(wanted, CallRule(CALLS, f'"[" call{more} "]"', json_calls(wanted, "arguments")), repeats=False)

    def new_id(self) -> str:
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(ID_LENGTH))


def _named(wanted: CallGrammar, number: int, function: Function) -> str:
    return f"call{number}: {literal(function.name)} {wanted.marker(ARGS)} {arguments_item(wanted, function)}"


def _read_named(parser: CallParser, names: frozenset[str]) -> Reading:
    """A name, perhaps an id, then [ARGS] and an object."""
    read = ""
    while ARGS not in read:
        char = yield from parser.next()
        if not char or len(read) > 300:
            raise NotACall
        read += char
    name = read.removesuffix(ARGS).split(CALL_ID)[0].strip()
    if name not in names or (yield from parser.next_solid()) != "{":
        raise NotACall
    parser.announce(name)
    yield from stream_object(parser)
