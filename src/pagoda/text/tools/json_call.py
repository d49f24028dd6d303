"""One call written as a JSON object: {"name": "f", "arguments": {…}}, its keys in any order.

The arguments go out as they come, once the name is known. Arguments may also be a string that holds an object, or be
left out; `parameters` is another name for them. An object that begins otherwise, or names no function, is no call.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Generator

from pagoda.text.tools.parser import BLANK, CallParser, NotACall, Reading, Trigger

ARGUMENTS = frozenset({"arguments", "parameters"})
NAMES = frozenset({"name", "tool_name"})
FIRST_KEYS = ARGUMENTS | NAMES | {"id", "type", "index", "tool_call_id"}
MAX_NAME = 256  # characters

ReadingText = Generator[None, str, str]


def read_call(parser: CallParser, names: Collection[str]) -> Reading:
    """A call whose { has been read. Raises NotACall as long as none is announced."""
    name: str | None = None
    announced = False
    arguments = "{}"
    key: str | None = yield from _key(parser)
    if key not in FIRST_KEYS:
        raise NotACall
    while key is not None:
        if key in NAMES and name is None:
            name = yield from _name(parser, names)
        elif key in ARGUMENTS and name is not None and not announced:
            announced = yield from _arguments(parser, name)
        elif key in ARGUMENTS and not announced:
            arguments = _object((yield from read_value(parser, (yield from parser.next_solid()))))
        else:
            yield from read_value(parser, (yield from parser.next_solid()))
        key = yield from _next_key(parser)
    if not announced:
        if name is None:
            raise NotACall
        parser.announce(name)
        parser.arguments(arguments)


def read_calls(parser: CallParser, names: Collection[str]) -> Reading:
    """Calls in a list whose [ has been read."""
    while True:
        if (yield from parser.next_solid()) != "{":
            raise NotACall
        yield from read_call(parser, names)
        if not (yield from parser.skip(",")):
            break
    yield from parser.skip("]")


def read_value(parser: CallParser, first: str) -> ReadingText:
    """The text of a JSON value, which begins with the character read last. Raises NotACall where it has no end."""
    parts = [first]
    if first == '"':
        parts.append((yield from _rest_of_string(parser)))
    elif first in ("{", "["):
        depth = 1
        while depth:
            char = yield from _more(parser)
            parts.append(char)
            if char == '"':
                parts.append((yield from _rest_of_string(parser)))
            depth += (char in "{[") - (char in "}]")
    else:
        while (char := (yield from _more(parser))) not in ",}]" and char not in BLANK:
            parts.append(char)
        parser.back()
    return "".join(parts)


def stream_object(parser: CallParser) -> Reading:
    """Pass an object, whose { has been read, on as arguments, up to its end or that of the text."""
    parser.arguments("{")
    depth, in_string, escaped = 1, False, False
    while depth and (char := (yield from parser.next())):
        parser.arguments(char)
        if in_string:
            in_string = escaped or char != '"'
            escaped = char == "\\" and not escaped
        else:
            in_string = char == '"'
            depth += (char in "{[") - (char in "}]")


def _arguments(parser: CallParser, name: str) -> Generator[None, str, bool]:
    """Announce the call and pass its arguments on."""
    first = yield from parser.next_solid()
    if first == "{":
        parser.announce(name)
        yield from stream_object(parser)
    else:
        text = _object((yield from read_value(parser, first)))
        parser.announce(name)
        parser.arguments(text)
    return True


def _object(text: str) -> str:
    """The object that `text` is, or holds as a string; null is the empty one."""
    try:
        value = json.loads(text)
        if isinstance(value, str):
            text, value = value, json.loads(value)
    except (ValueError, RecursionError):
        raise NotACall from None
    if value is None:
        return "{}"
    if not isinstance(value, dict):
        raise NotACall
    return text


def _name(parser: CallParser, names: Collection[str]) -> ReadingText:
    if (yield from parser.next_solid()) != '"':
        raise NotACall
    text = yield from _rest_of_string(parser, MAX_NAME)
    try:
        name = json.loads('"' + text)
    except ValueError:
        raise NotACall from None
    if name not in names:
        raise NotACall
    return str(name)


def _next_key(parser: CallParser) -> Generator[None, str, str | None]:
    """The key after a comma; None: the object has ended, or the text."""
    char = yield from parser.next_solid()
    if char == ",":
        return (yield from _key(parser))
    if char and char != "}":
        raise NotACall
    return None


def _key(parser: CallParser) -> ReadingText:
    """A key and its colon."""
    if (yield from parser.next_solid()) != '"':
        raise NotACall
    text = yield from _rest_of_string(parser, MAX_NAME)
    if (yield from parser.next_solid()) != ":":
        raise NotACall
    return text[:-1]


def _rest_of_string(parser: CallParser, limit: int | None = None) -> ReadingText:
    """Up to the quote that ends the string, that included."""
    parts: list[str] = []
    escaped = False
    while True:
        char = yield from _more(parser)
        parts.append(char)
        if char == '"' and not escaped:
            return "".join(parts)
        escaped = char == "\\" and not escaped
        if limit is not None and len(parts) > limit:
            raise NotACall


def _more(parser: CallParser) -> ReadingText:
    char = yield from parser.next()
    if not char:
        raise NotACall
    return char


def tagged(names: Collection[str], start: str, end: str) -> Trigger:
    """Calls between two tags: an object, or a list of them."""

    def read(parser: CallParser) -> Reading:
        first = yield from parser.next_solid()
        if first == "[":
            yield from read_calls(parser, names)
        elif first == "{":
            yield from read_call(parser, names)
        else:
            raise NotACall
        yield from parser.skip(end)

    return Trigger(start, read)
