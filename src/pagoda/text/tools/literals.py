"""Values in notations that are not JSON, Python's and Gemma's, and reading them as JSON.

Python   [1, True, None, 'text', {"key": "value"}]
Gemma    [1,true,null,<|"|>text<|"|>,{key:<|"|>value<|"|>}]
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from pagoda.text.tools.parser import BLANK, CallParser, NotACall, Reading

MAX_DEPTH = 60
WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
_HEX = {"x": 2, "u": 4, "U": 8}


@dataclass(frozen=True, slots=True)
class Notation:
    """How values are written."""

    true: str
    false: str
    null: str
    quote: str | None  # around strings that have no escapes; None: as in JSON (and, when read, as in Python)
    separator: str  # between members and items
    key: str  # of an object's member, {} being the name
    sort_keys: bool = False


PYTHON = Notation("True", "False", "None", None, ", ", '"{}": ')
GEMMA = Notation("true", "false", "null", '<|"|>', ",", "{}:", sort_keys=True)


def stream_value(parser: CallParser, first: str, notation: Notation, depth: int = 0) -> Reading:
    """Pass a value, whose first character has been read, on as JSON."""
    if not first or depth > MAX_DEPTH:
        raise NotACall
    if notation.quote is not None and first == notation.quote[0]:
        yield from parser.expect(notation.quote[1:])
        yield from _quoted(parser, notation.quote)
    elif notation.quote is None and first in "'\"":
        yield from _escaped(parser, first)
    elif first in "[(":
        yield from _list(parser, notation, depth)
    elif first == "{":
        parser.arguments("{")
        yield from stream_members(parser, notation, "}", ":", depth + 1)
        parser.arguments("}")
    else:
        yield from _word(parser, first)


def stream_members(parser: CallParser, notation: Notation, end: str, equals: str, depth: int = 0) -> Reading:
    """Pass `key: value, …` on, up to `end`, which is read. The braces around them are the caller's."""
    comma = ""
    while (char := (yield from parser.next_solid())) != end:
        if not char:
            return
        if comma:
            if char != ",":
                raise NotACall
            char = yield from parser.next_solid()
            if char == end:
                return
        key = ""
        while char != equals:
            if not char or len(key) > 256:
                raise NotACall
            key += char
            char = yield from parser.next()
        name = key.strip().strip("'\"").removeprefix('<|"|>').removesuffix('<|"|>')
        parser.arguments(f"{comma}{json.dumps(name, ensure_ascii=False)}: ")
        comma = ", "
        yield from stream_value(parser, (yield from parser.next_solid()), notation, depth)


def _list(parser: CallParser, notation: Notation, depth: int) -> Reading:
    parser.arguments("[")
    comma = ""
    while (char := (yield from parser.next_solid())) and char not in "])":
        if char == ",":
            continue
        parser.arguments(comma)
        comma = ", "
        yield from stream_value(parser, char, notation, depth + 1)
    parser.arguments("]")


def _word(parser: CallParser, first: str) -> Reading:
    """A number, or one of WORDS; anything else becomes a string."""
    word = first
    while (char := (yield from parser.next())) and char not in ",)]}" and char not in BLANK:
        word += char
    if char:
        parser.back()
    try:
        text = WORDS.get(word) or json.dumps(json.loads(word))
    except (ValueError, RecursionError):
        text = json.dumps(word, ensure_ascii=False)
    parser.arguments(text)


def _quoted(parser: CallParser, quote: str) -> Reading:
    """A string that ends with `quote`, whatever stands in it."""
    parser.arguments('"')
    held = ""
    while held != quote and (char := (yield from parser.next())):
        held += char
        while not quote.startswith(held):
            parser.arguments(_json_char(held[0]))
            held = held[1:]
    parser.arguments('"')


def _escaped(parser: CallParser, quote: str) -> Reading:
    """A string of Python, with its escapes."""
    parser.arguments('"')
    while (char := (yield from parser.next())) and char != quote:
        if char == "\\":
            kind = yield from parser.next()
            digits = ""
            while len(digits) < _HEX.get(kind, 0) and (digit := (yield from parser.next())):
                digits += digit
            char = _unescaped(kind, digits)
        parser.arguments("".join(map(_json_char, char)))
    parser.arguments('"')


def _unescaped(kind: str, digits: str) -> str:
    if not digits:
        return _ESCAPES.get(kind, kind if kind in "\\'\"" else "\\" + kind)
    try:
        return chr(int(digits, 16))
    except (ValueError, OverflowError):
        return "\\" + kind + digits


def _json_char(char: str) -> str:
    return json.dumps(char, ensure_ascii="\ud800" <= char <= "\udfff")[1:-1]
