"""The machine below the parsers: what begins a call, what is taken back, and what becomes of blank space."""

from __future__ import annotations

import pytest

from pagoda.text.tools.base import ArgumentsPiece, CallStart, Event, TextPiece
from pagoda.text.tools.parser import CallParser, NotACall, Reading, Trigger


def read_word(parser: CallParser) -> Reading:
    """[word!] : a call of f with the word as its argument."""
    word = ""
    while (char := (yield from parser.next())) and char.isalpha():
        word += char
    if char != "!":
        raise NotACall
    parser.announce("f")
    parser.arguments(word)
    yield from parser.skip("]")


def parse(text: str, *triggers: Trigger) -> list[Event]:
    """The events of a text, whole and a character at a time."""
    whole = CallParser(triggers or [Trigger("<c>", read_word)])
    events = _joined(whole.push(text) + whole.finish())
    single = CallParser(triggers or [Trigger("<c>", read_word)])
    assert _joined([event for char in text for event in single.push(char)] + single.finish()) == events
    return events


def _joined(events: list[Event]) -> list[Event]:
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, CallStart) or isinstance(last, CallStart) or type(last) is not type(event):
            result.append(event)
        else:
            result[-1] = type(event)(last.text + event.text)
    return result


CALL = [CallStart("f"), ArgumentsPiece("x")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("plain < text <", [TextPiece("plain < text <")]),
        ("  \n", [TextPiece("  \n")]),
        ("<c>x!]", CALL),
        # blank space where text and calls meet belongs to neither
        ("a \n<c>x!]\n\n<c>x!] b ", [TextPiece("a"), *CALL, *CALL, TextPiece("b ")]),
        (" <c>x!] \n", CALL),
        # what is no call is text, and looked at again from its second character on
        ("<c>x?", [TextPiece("<c>x?")]),
        ("<c>x<c>x!]", [TextPiece("<c>x"), *CALL]),
        ("<<c>x!]", [TextPiece("<"), *CALL]),
        ("a <c>", [TextPiece("a <c>")]),
        ("<c>x", [TextPiece("<c>x")]),
        # without what ends it, a call that was announced is still one
        ("<c>x!", CALL),
        ("<c>x! b", [*CALL, TextPiece("b")]),
    ],
)
def test_calls_in_text(text: str, expected: list[Event]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("where", "text", "found"),
    [
        ("line", "a\n  {x!", True),
        ("line", "a {x!", False),
        ("start", " \n{x!", True),
        ("start", "a\n{x!", False),
        ("anywhere", "a{x!", True),
    ],
)
def test_where_a_call_may_begin(where: str, text: str, found: bool) -> None:
    events = parse(text, Trigger("{", read_word, where))  # type: ignore[arg-type]
    assert (CallStart("f") in events) == found


def test_a_trigger_is_told_from_another_by_what_differs() -> None:
    triggers = [Trigger("<ab>", read_word), Trigger("<ac>", read_word), Trigger("{", read_word, "line")]
    assert parse("<ac>x!]<ab>x!]", *triggers) == [*CALL, *CALL]
    assert parse("<ad>", *triggers) == [TextPiece("<ad>")]


def test_skip_reads_all_or_nothing() -> None:
    def read(parser: CallParser) -> Reading:
        parser.announce("f")
        found = [(yield from parser.skip("</c>")), (yield from parser.skip("</d>"))]
        parser.arguments(str(found))

    assert parse("<c> </c>\n</d>", Trigger("<c>", read)) == [CallStart("f"), ArgumentsPiece("[True, True]")]
    assert parse("<c> </dx", Trigger("<c>", read)) == [
        CallStart("f"),
        ArgumentsPiece("[False, False]"),
        TextPiece("</dx"),
    ]
