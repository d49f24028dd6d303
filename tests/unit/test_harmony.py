"""gpt-oss's answers as messages on channels. Answers are those of llama.cpp's tests, and broken ones."""

from __future__ import annotations

import random

import pytest

from pagoda.text.harmony import HarmonyParser, Piece, ThoughtPiece
from pagoda.text.tools.base import ArgumentsPiece, CallStart, TextPiece
from pagoda.text.tools.table import FORMATS
from tool_parsing import said

FUNCTIONS = frozenset({"add", "get_weather"})
ASSISTANT = "<|start|>assistant"

Told = tuple[str, str, list[tuple[str, str]]]  # thought, said, calls


def told(text: str, seed: int, *, thinking: bool = False) -> Told:
    rng = random.Random(seed)
    parser, pieces, at = HarmonyParser(FUNCTIONS, thinking=thinking), list[Piece](), 0
    while at < len(text):
        size = len(text) if seed == 0 else rng.choice([1, 1, 2, 5, 9])
        pieces += parser.push(text[at : at + size])
        at += size
    thought, content, calls = "", "", list[tuple[str, str]]()
    for piece in [*pieces, *parser.finish()]:
        match piece:
            case ThoughtPiece(part):
                thought += part
            case TextPiece(part):
                content += part
            case CallStart(name):
                calls.append((name, ""))
            case ArgumentsPiece(part):
                calls[-1] = (calls[-1][0], calls[-1][1] + part)
    return thought, content, calls


JSON = "<|constrain|>json"
FINAL = f"<|end|>{ASSISTANT}<|channel|>final<|message|>"
PYTHON = "<|channel|>commentary to=python code<|message|>print()"
ADDS = ("", "", [("add", '{"a": 1}')])

ANSWERS: list[tuple[str, Told]] = [
    ("<|channel|>final<|message|>Hello,\nworld", ("", "Hello,\nworld", [])),
    ("<|channel|>final<|message|>Hello<|return|>", ("", "Hello", [])),
    ("<|channel|>commentary<|message|>Hello", ("", "Hello", [])),
    (f"<|channel|>analysis<|message|>I'm\nthinking{FINAL}Hello", ("I'm\nthinking", "Hello", [])),
    ("<|channel|>analysis<|message|>I'm think", ("I'm think", "", [])),
    (' to=functions.add<|channel|>analysis<|message|>{"a": 1}', ADDS),
    ('<|channel|>analysis to=functions.add<|message|>{"a": 1}', ADDS),
    (f' to=functions.add<|channel|>commentary {JSON}<|message|>{{"a": 1}}<|call|>', ADDS),
    ('<|channel|>commentary to=functions.add json<|message|>{"a": "<|', ("", "", [("add", '{"a": "<|')])),
    (
        f"<|channel|>analysis<|message|>One.<|end|>{ASSISTANT}<|channel|>analysis<|message|>Two.<|end|>{ASSISTANT}"
        f"<|channel|>commentary<|message|>I add.<|end|>{ASSISTANT} to=functions.add<|channel|>commentary json"
        '<|message|>{"a": 1}',
        ("One.\n\nTwo.", "I add.", [("add", '{"a": 1}')]),
    ),
    # an end that is missing, and a header that is cut off
    ('I see.<|channel|>commentary to=functions.add json<|message|>{"a": 1}', ("", "I see.", [("add", '{"a": 1}')])),
    (f"<|channel|>analysis<|message|>So{ASSISTANT}<|channel|>final<|message|>Yes", ("So", "Yes", [])),
    (f"<|channel|>analysis<|message|>So<|end|>{ASSISTANT}<|channel|>fin", ("So", "", [])),
    # a function that nobody offers stays text; so does what is no message at all, and a mark that is none
    (PYTHON, ("", PYTHON, [])),
    ("Just text <b>, 1 < 2 <|", ("", "Just text <b>, 1 < 2 <|", [])),
    ("<|channel|>final<|message|>a <|endof", ("", "a <|endof", [])),
    ("", ("", "", [])),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), ANSWERS, ids=range(len(ANSWERS)))
@pytest.mark.parametrize("seed", range(5))
def test_messages(text: str, expected: Told, seed: int) -> None:
    assert told(text, seed) == expected


def test_a_prompt_may_have_begun_the_thinking() -> None:
    text = f"and so{FINAL}Yes"
    assert all(told(text, seed, thinking=True) == ("and so", "Yes", []) for seed in range(5))


def test_a_header_is_bounded() -> None:
    for mark in ("<|channel|>", "<|start|>", " <|channel|>", " to="):
        for seed in range(5):
            text = mark + "x" * 600
            assert told(text, seed) == ("", text, [])
            assert told(f"{text}<|channel|>final<|message|>Yes", seed) == ("", f"{text}\n\nYes", [])


def test_as_a_tool_format() -> None:
    call = f"{ASSISTANT} to=functions.get_weather<|channel|>commentary json<|message|>"
    answer = f'<|channel|>analysis<|message|>So.<|end|>{call}{{"city": "Paris"}}'
    assert said(FORMATS["harmony"], answer) == [("get_weather", '{"city": "Paris"}')]
    assert said(FORMATS["harmony"], "<|channel|>final<|message|>No.") == ["No."]
