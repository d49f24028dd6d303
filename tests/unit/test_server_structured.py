"""Which fields ask for which grammar."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pagoda.errors import RequestError
from pagoda.grammar.source import GrammarKind
from pagoda.server.schema import CompletionRequest
from pagoda.server.structured import grammar_asked

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TEXT = json.dumps(SCHEMA)


def body(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"prompt": "x"} | fields)


ASKS: list[tuple[dict[str, Any], GrammarKind, str, str]] = [
    ({"response_format": {"type": "json_object"}}, "json_object", "", "response_format"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}},
        "json_schema", TEXT, "response_format",
    ),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "json_schema", TEXT, "response_format"),
    ({"structured_outputs": {"json": SCHEMA}}, "json_schema", TEXT, "structured_outputs.json"),
    ({"structured_outputs": {"json": TEXT}}, "json_schema", TEXT, "structured_outputs.json"),
    ({"structured_outputs": {"json_object": True, "regex": None}}, "json_object", "", "structured_outputs.json_object"),
    ({"structured_outputs": {"regex": "a+"}}, "regex", "a+", "structured_outputs.regex"),
    ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", '["a", "b"]', "structured_outputs.choice"),
    ({"structured_outputs": {"grammar": "root ::= \"a\""}}, "gbnf", "root ::= \"a\"", "structured_outputs.grammar"),
    ({"structured_outputs": {"grammar": "start: \"a\""}}, "lark", "start: \"a\"", "structured_outputs.grammar"),
    ({"guided_json": SCHEMA}, "json_schema", TEXT, "guided_json"),
    ({"guided_regex": "a+", "guided_decoding_backend": "xgrammar"}, "regex", "a+", "guided_regex"),
    ({"guided_choice": ["a"]}, "choice", '["a"]', "guided_choice"),
    ({"guided_grammar": "start: \"a\""}, "lark", "start: \"a\"", "guided_grammar"),
    ({"json_schema": SCHEMA}, "json_schema", TEXT, "json_schema"),
    ({"grammar": "root ::= \"a\""}, "gbnf", "root ::= \"a\"", "grammar"),
    ({"structural_tag": "{}"}, "structural_tag", "{}", "structural_tag"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "kind", "text", "param"), ASKS)
def test_fields_that_ask(fields: dict[str, Any], kind: str, text: str, param: str) -> None:
    asked = grammar_asked(body(**fields))
    assert asked is not None
    assert (asked.source.kind, asked.source.text, asked.param) == (kind, text, param)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"structured_outputs": {}},
        {"structured_outputs": {"json": None, "choice": None}},
        {"grammar": ""},
        {"guided_json": None, "json_schema": None},
    ],
)
def test_fields_that_ask_for_nothing(fields: dict[str, Any]) -> None:
    assert grammar_asked(body(**fields)) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"guided_json": "{"}, "guided_json"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        grammar_asked(body(**fields))
    assert caught.value.param == param
