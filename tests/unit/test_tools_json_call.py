"""Calls as JSON objects: keys in any order, arguments in any guise, and what is no call."""

from __future__ import annotations

import pytest

from pagoda.text.tools.base import ArgumentsPiece, CallStart
from pagoda.text.tools.hermes import Hermes
from tool_parsing import FUNCTIONS, said

HERMES = Hermes()


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"name": "add", "arguments": {"a": 1}}', '{"a": 1}'),
        ('{ "name" : "add" ,\n "arguments" : { "a" : 1 } }', '{ "a" : 1 }'),
        ('{"arguments": {"a": 1}, "name": "add"}', '{"a": 1}'),
        ('{"name": "add", "parameters": {"a": 1}}', '{"a": 1}'),
        ('{"id": "x", "type": "function", "name": "add", "arguments": {"a": 1}, "more": [1, {"b": "]"}]}', '{"a": 1}'),
        ('{"name": "add", "arguments": {"a": "}{\\"]["}}', '{"a": "}{\\"]["}'),
        ('{"name": "add", "arguments": "{\\"a\\": 1}"}', '{"a": 1}'),
        ('{"arguments": "{\\"a\\": 1}", "name": "add"}', '{"a": 1}'),
        ('{"name": "add"}', "{}"),
        ('{"name": "add", "arguments": null}', "{}"),
        ('{"name": "\\u0061dd", "arguments": {}}', "{}"),
        # cut short: what is there goes out
        ('{"name": "add", "arguments": {"a": "b', '{"a": "b'),
    ],
)
def test_a_call(text: str, arguments: str) -> None:
    assert said(HERMES, text) == [("add", arguments)]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "unknown", "arguments": {}}',
        '{"name": 3, "arguments": {}}',
        '{"answer": 42, "name": "add"}',
        '{"name": "add", "arguments": 3}',
        '{"name": "add", "arguments": "text"}',
        '{"name": "add" "arguments": {}}',
        '{"arguments": {"a": 1}}',
        '{"name": "' + "a" * 300 + '", "arguments": {}}',
        '{"name',
        "{}",
        "{",
    ],
)
def test_no_call(text: str) -> None:
    assert said(HERMES, text) == [text]


def test_arguments_go_out_as_they_come() -> None:
    parser = HERMES.parser(FUNCTIONS)
    assert parser.push('{"name": "add", "argu') == []
    assert parser.push('ments": {"a"') == [CallStart("add"), ArgumentsPiece('{"a"')]
    assert parser.push(": 1") == [ArgumentsPiece(": 1")]
    assert parser.push("}}") == [ArgumentsPiece("}")]
    assert parser.finish() == []
