"""Qwen 3 Coder: <tool_call><function=name><parameter=key>value</parameter>…</function></tool_call>, values unquoted.
Seed-OSS with a tag of its own.

Whether a value is a string, the function's schema says; without a word from it, what reads as JSON is JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagoda.text.tools.base import CallGrammar, Function, call_id, literal
from pagoda.text.tools.grammar import CallRule, answer, refuse_unenforced
from pagoda.text.tools.parser import CallParser, NotACall, Reading, Trigger

FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class Qwen3Coder:
    """See the module. apart: what stands between a value and its tags."""

    name: str = "qwen3_coder"
    start: str = "<tool_call>"
    end: str = "</tool_call>"
    apart: str = "\n"

    @property
    def markers(self) -> tuple[str, ...]:
        return self.start, self.end

    def is_of(self, template: str) -> bool:
        return self.start in template and FUNCTION in template and PARAMETER in template

    def parser(self, functions: Sequence[Function]) -> CallParser:
        schemas = {function.name: function.schema for function in functions}

        def read_function(parser: CallParser) -> Reading:
            yield from _read_function(parser, schemas)

        def read(parser: CallParser) -> Reading:
            if not (yield from parser.skip(FUNCTION)):
                raise NotACall
            yield from _read_function(parser, schemas)
            yield from parser.skip(self.end)

        return CallParser([Trigger(self.start, read), Trigger(FUNCTION, read_function)])

    def grammar(self, wanted: CallGrammar) -> str:
        definitions = [f"call: {' | '.join(f'call{i}' for i in range(len(wanted.functions)))}"]
        for i, function in enumerate(wanted.functions):
            definitions += _function_rules(wanted, i, function, self.apart)
        rest = rf'"\n{FUNCTION}" call "{FUNCTION_END}\n" {wanted.marker(self.end)}'
        unquoted = _UNQUOTED if self.apart else _UNQUOTED_CLOSE
        return answer(wanted, CallRule(self.start, rest, [*definitions, unquoted], separator=r'"\n"'))

    def new_id(self) -> str:
        return call_id()


def _read_function(parser: CallParser, schemas: Mapping[str, Mapping[str, Any]]) -> Reading:
    """A call whose <function= has been read."""
    name = yield from _until(parser, ">")
    if name not in schemas:
        raise NotACall
    parser.announce(name)
    parser.arguments("{")
    comma = ""
    while (yield from parser.skip(PARAMETER)):
        key = yield from _until(parser, ">")
        parser.arguments(f"{comma}{json.dumps(key, ensure_ascii=False)}: ")
        yield from _read_value(parser, schemas[name].get("properties", {}).get(key))
        comma = ", "
    parser.arguments("}")
    yield from parser.skip(FUNCTION_END)


def _read_value(parser: CallParser, schema: Any) -> Reading:
    """Text up to </parameter>, less one line's end on each side. Strings go out as they come."""
    types = _types(schema)
    if types == {"string"}:
        parser.arguments('"')
        yield from _value_pieces(parser, lambda text: parser.arguments(json.dumps(text, ensure_ascii=False)[1:-1]))
        parser.arguments('"')
        return
    pieces: list[str] = []
    yield from _value_pieces(parser, pieces.append)
    parser.arguments(_as_json("".join(pieces), types))


def _value_pieces(parser: CallParser, take: Callable[[str], None]) -> Reading:
    held = ""
    first = True
    while not held.endswith(PARAMETER_END):
        char = yield from parser.next()
        if not char:
            take(held)
            return
        if first and char == "\n":
            first = False
            continue
        first = False
        held += char
        while held and not ("\n" + PARAMETER_END).startswith(held) and not PARAMETER_END.startswith(held):
            take(held[0])
            held = held[1:]


def _as_json(text: str, types: frozenset[str]) -> str:
    """The value as JSON: as it stands, where it reads as JSON of a type that is declared; otherwise a string."""
    spelled = {"True": "true", "False": "false", "None": "null"}.get(text.strip(), text)
    try:
        value = json.loads(spelled)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    if types and not isinstance(value, str) and "string" in types and _type_of(value) not in types:
        return json.dumps(text, ensure_ascii=False)
    return spelled


def _type_of(value: object) -> str:
    names = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null"}
    return names[type(value)]


def _types(schema: Any) -> frozenset[str]:
    if not isinstance(schema, Mapping):
        return frozenset()
    if schema.get("enum") and all(isinstance(value, str) for value in schema["enum"]):
        return frozenset({"string"})
    types = schema.get("type", ())
    return frozenset([types] if isinstance(types, str) else types)


def _until(parser: CallParser, end: str) -> Generator[None, str, str]:
    name = ""
    while (char := (yield from parser.next())) != end:
        if not char or char == "\n" or len(name) >= MAX_NAME:
            raise NotACall
        name += char
    return name


_UNQUOTED = r"unquoted[lazy]: /(.|\n)*\n<\/parameter>\n/"
_UNQUOTED_CLOSE = r"unquoted[lazy]: /(.|\n)*<\/parameter>\n/"


def _function_rules(wanted: CallGrammar, number: int, function: Function, apart: str) -> list[str]:
    schema = function.schema
    required = schema.get("required", ())
    lines = []
    parameters = []
    for i, (key, value) in enumerate(schema.get("properties", {}).items()):
        rule = f"parameter{number}_{i}"
        lines.append(f"{rule}: {literal(f'{PARAMETER}{key}>{apart}')} {_value_item(wanted, function, value, apart)}")
        parameters.append(rule if key in required else f"{rule}?")
    return [f"call{number}: {literal(function.name + '>' + chr(10))} {' '.join(parameters)}", *lines]


def _value_item(wanted: CallGrammar, function: Function, value: Any, apart: str) -> str:
    end = literal(f"{apart}{PARAMETER_END}\n")
    if _types(value) == {"string"}:
        constants = value.get("enum", [value["const"]] if "const" in value else None)
        if constants is not None:
            return f"({' | '.join(map(literal, constants))}) {end}"
        refuse_unenforced(function, value, "qwen3_coder")
        return "unquoted"
    inner = value if isinstance(value, bool) else {**value, "$defs": function.schema.get("$defs", {})}
    return f"{wanted.json_item(inner)} {end}"
