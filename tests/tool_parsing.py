"""Answers through a tool-call parser, cut in several ways, and what comes out of it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pagoda.text.tools.base import ArgumentsPiece, CallStart, Event, Function, TextPiece, ToolFormat

WEATHER = Function(
    "get_weather",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "options": {"type": "object"}},
        "required": ["city"],
    },
)
ADD = Function("add", {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": ["number", "string"]}}})
FUNCTIONS = (WEATHER, ADD)

Said = str | tuple[str, str]  # a text, or (function, arguments)


def said(row: ToolFormat, text: str, functions: Sequence[Function] = FUNCTIONS) -> list[Said]:
    """Texts and calls of an answer, which are the same however it is cut."""
    found = [_put_together(_events(row, text, functions, seed)) for seed in range(5)]
    assert all(one == found[0] for one in found[1:]), found
    return found[0]


def _events(row: ToolFormat, text: str, functions: Sequence[Function], seed: int) -> list[Event]:
    rng = random.Random(seed)
    parser = row.parser(functions)
    events: list[Event] = []
    at = 0
    while at < len(text):
        size = len(text) if seed == 0 else rng.choice([1, 1, 2, 3, 8])
        events += parser.push(text[at : at + size])
        at += size
    return events + parser.finish()


def _put_together(events: Sequence[Event]) -> list[Said]:
    result: list[Said] = []
    for event in events:
        match event:
            case TextPiece(text):
                if result and isinstance(result[-1], str):
                    result[-1] += text
                else:
                    result.append(text)
            case CallStart(name):
                result.append((name, ""))
            case ArgumentsPiece(text):
                name, so_far = result[-1]
                result[-1] = (name, so_far + text)
    return result
