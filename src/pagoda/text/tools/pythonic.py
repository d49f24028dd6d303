"""Calls as Python writes them, in a list: [f(a=1, b="x"), g()]. Llama 3.2 and 4, and LFM 2 between tags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagoda.text.tools.base import CallGrammar, Function, call_id, literal
from pagoda.text.tools.grammar import MORE, CallRule, answer, answer_alone, regex_literal
from pagoda.text.tools.literal_rules import ValueRules
from pagoda.text.tools.literals import PYTHON, stream_members
from pagoda.text.tools.parser import CallParser, NotACall, Reading, Trigger


@dataclass(frozen=True, slots=True)
class Pythonic:
    """See the module. `open` and `close` are tags around the list, if there are any."""

    name: str
    signs: tuple[str, ...]  # texts of templates that teach it
    open: str = ""
    close: str = ""

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.open, self.close) if self.open else ()

    def is_of(self, template: str) -> bool:
        return any(sign in template for sign in self.signs)

    def parser(self, functions: Sequence[Function]) -> CallParser:
        names = frozenset(function.name for function in functions)

        def read(parser: CallParser) -> Reading:
            yield from _read_list(parser, names)

        def read_tagged(parser: CallParser) -> Reading:
            if (yield from parser.next_solid()) != "[":
                raise NotACall
            yield from _read_list(parser, names)
            yield from parser.skip(self.close)

        return CallParser([Trigger(self.open, read_tagged) if self.open else Trigger("[", read, "start")])

    def grammar(self, wanted: CallGrammar) -> str:
        definitions = [f"call: {' | '.join(f'call{i}' for i in range(len(wanted.functions)))}"]
        for i, function in enumerate(wanted.functions):
            rules = ValueRules(wanted, function, PYTHON, f"f{i}")
            arguments = rules.members(function.schema, "{}=")
            definitions += [f'rest{i}: {arguments} ")"', *rules.lines]
            definitions.append(f"call{i}: {literal(function.name + '(')} rest{i}")
        more = '(", " call)' + MORE if wanted.parallel else ""
        if self.open:
            rest = f'"[" call {more} "]" {wanted.marker(self.close)}'
            return answer(wanted, CallRule(self.open, rest, definitions), repeats=False)
        heads: list[str] = []
        for i, function in enumerate(() if wanted.required else wanted.functions):
            definitions.append(rf"head{i}[lazy]: /\[{regex_literal(function.name)}\(/")
            heads.append(f'head{i} rest{i} {more} "]"')
        return answer_alone(wanted, f'"[" call {more} "]"', definitions, heads)

    def new_id(self) -> str:
        return call_id()


def _read_list(parser: CallParser, names: frozenset[str]) -> Reading:
    """Calls in a list whose [ has been read."""
    while True:
        name = yield from parser.next_solid()
        while (char := (yield from parser.next())) and char != "(" and len(name) < 256:
            name += char
        if char != "(" or name.strip() not in names:
            raise NotACall
        parser.announce(name.strip())
        parser.arguments("{")
        yield from stream_members(parser, PYTHON, ")", "=")
        parser.arguments("}")
        if not (yield from parser.skip(",")):
            break
    yield from parser.skip("]")
