"""What a request's Lark may hold, and how schemas are put into it."""

from __future__ import annotations

import json

import pytest

from pagoda.errors import RequestError
from pagoda.grammar.lark import JSON_OPTIONS, MAX_RULES, check_lark, inline_schema, literal


def test_schemas_are_prepared_where_they_stand() -> None:
    prepared = {"properties": {"a": {}}, "additionalProperties": False, "x-guidance": JSON_OPTIONS}
    text = 'start: "a" %json {"properties": {"a": {"title": "A"}}} "b" // %json {"not": {}}\nb: %json true\n'
    expected = f'start: "a" %json {json.dumps(prepared)} "b" // %json {{"not": {{}}}}\nb: %json true\n'
    assert check_lark(text) == expected
    assert inline_schema(False) == "%json false"


@pytest.mark.parametrize(
    "text",
    [
        'start: "%json x" /%json [/] x/ # %json',
        'start[lazy]: /a+b/\nrule[capture="x", suffix="</a>"]: /.*/',
        "%import common.INT\n%ignore / +/\nstart: INT",
    ],
)
def test_what_is_no_schema_stays_as_it_is(text: str) -> None:
    assert check_lark(text) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("start[max_tokens=3]: /a/", "the option max_tokens"),
        ('start[lazy, temperature=0.1]: "a"', "the option temperature"),
        ('start[stop="a"]: /b/', "the option stop"),
        ("start: /(a{500}){500}/", "repeats too much"),
        ("start: %json {", "not followed by JSON"),
        ('start: %json {"if": {}}', "keyword if"),
        ("\n".join(f'r{i}: "a"' for i in range(MAX_RULES + 1)), "more than 1000 rules"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_lark(text)


def test_literals_are_strings_of_lark() -> None:
    assert literal('a"\n\\') == '"a\\"\\n\\\\"'
