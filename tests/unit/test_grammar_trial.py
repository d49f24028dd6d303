"""Grammars that take too long to compile are found out in another process."""

from __future__ import annotations

import json

import pytest

from grammar_walk import small_tokenizer
from pagoda.errors import RequestError
from pagoda.grammar.compiler import GrammarCompiler
from pagoda.grammar.source import GrammarKind, GrammarSource
from pagoda.grammar.trial import is_risky, try_out

# What a string has to match at once: each further one doubles the time, and these would take a day.
PATTERNS = {"allOf": [{"type": "string", "pattern": f"a{i}"} for i in range(40)]}
HOSTILE: list[tuple[GrammarKind, str]] = [
    ("json_schema", json.dumps(PATTERNS)),
    ("json_schema", json.dumps({"type": "object", "properties": {"a": PATTERNS}, "required": ["a"]})),
    ("lark", "start: A\nA: " + " & ".join(f"/.*a{i}.*/" for i in range(40))),
]


@pytest.mark.parametrize(("kind", "text"), HOSTILE)
def test_what_takes_too_long_is_refused(kind: GrammarKind, text: str) -> None:
    compiler = GrammarCompiler(small_tokenizer())
    with pytest.raises(RequestError, match="too complex: it takes more than"):
        compiler.compile(GrammarSource(kind, text))
    with pytest.raises(RequestError, match="too complex: it takes more than"):  # remembered
        compiler.compile(GrammarSource(kind, text))
    compiler.compile(GrammarSource("json_object"))  # it still does its work


def test_a_few_intersections_pass() -> None:
    schema = {"allOf": [{"type": "string", "pattern": "^[a-z]+$"}, {"maxLength": 4}, {"pattern": "x"}]}
    GrammarCompiler(small_tokenizer()).compile(GrammarSource("json_schema", json.dumps(schema)))


def test_errors_are_left_to_be_found() -> None:
    try_out("this is no grammar & is not accepted")


def test_what_is_tried() -> None:
    assert not is_risky(json.dumps({"type": "object", "properties": {"a": {"type": "string", "pattern": "a{3}"}}}))
    assert is_risky(json.dumps(PATTERNS))
    assert is_risky("x" * 50_000)
