"""What prepare_schema rewrites, drops and refuses: the keyword and its place are named."""

from __future__ import annotations

from typing import Any

import pytest

from pagoda.errors import RequestError
from pagoda.grammar.json_schema import MAX_DEPTH, MAX_NESTED, MAX_OPTIONAL, prepare_schema

CLOSED = {"additionalProperties": False}

REWRITTEN: list[tuple[Any, Any]] = [
    (True, True),
    ({"title": "T", "description": "d", "default": 3, "x-order": 1, "$schema": "https://…", "$id": "urn:a"}, {}),
    ({"type": "object", "properties": {"a": {}}}, {"type": "object", "properties": {"a": {}}} | CLOSED),
    # open by declaration, or since something else is said of the same object
    ({"properties": {"a": {}}, "additionalProperties": True}, {"properties": {"a": {}}, "additionalProperties": True}),
    ({"properties": {"a": {}}, "required": ["b"]}, {"properties": {"a": {}}, "required": ["b"]}),
    (
        {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
        {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
    ),
    (
        {"properties": {"a": {}}, "anyOf": [{"required": ["a"]}, {"properties": {"b": {}}}]},
        {"properties": {"a": {}}, "anyOf": [{"required": ["a"]}, {"properties": {"b": {}}}]},
    ),
    # the one option that says something of an object
    ({"anyOf": [{"properties": {}}, {"type": "null"}]}, {"anyOf": [{"properties": {}} | CLOSED, {"type": "null"}]}),
    ({"allOf": [{"properties": {}}], "title": "T"}, {"allOf": [{"properties": {}} | CLOSED]}),
    # references get names of their own; the same target may be closed in one place and open in another
    (
        {"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"type": "null"}}},
        {"$ref": "#/$defs/d0", "$defs": {"d0": {"type": "null"}}},
    ),
    (
        {
            "items": {"$ref": "#/definitions/o"},
            "allOf": [{"$ref": "#/definitions/o"}, {}],
            "definitions": {"o": {"properties": {}}},
        },
        {
            "items": {"$ref": "#/$defs/d0"},
            "allOf": [{"$ref": "#/$defs/d1"}, {}],
            "$defs": {"d0": {"properties": {}} | CLOSED, "d1": {"properties": {}}},
        },
    ),
    ({"items": {"$ref": "#"}}, {"items": {"$ref": "#/$defs/d0"}, "$defs": {"d0": {"items": {"$ref": "#/$defs/d0"}}}}),
    # exclusion is looked for in oneOf, not behind its references
    (
        {
            "oneOf": [{"$ref": "#/$defs/a"}, {"type": "null"}],
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"type": "array"}},
        },
        {
            "oneOf": [{"type": "array"}, {"type": "null"}],
            "$defs": {"d0": {"$ref": "#/$defs/d1"}, "d1": {"type": "array"}},
        },
    ),
    # drafts before 2020-12
    ({"items": [{"type": "null"}], "additionalItems": False}, {"prefixItems": [{"type": "null"}], "items": False}),
    ({"items": {}, "additionalItems": False}, {"items": {}}),
    ({"minItems": 2.0}, {"minItems": 2}),
    ({"type": "integer", "format": "int32"}, {"type": "integer"}),
    ({"uniqueItems": False, "nullable": False}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "expected"), REWRITTEN)
def test_rewrites(schema: Any, expected: Any) -> None:
    assert prepare_schema(schema) == expected


def test_a_date_keeps_a_pattern_of_its_own() -> None:
    prepared = prepare_schema({"type": "string", "format": "date", "pattern": "^2", "allOf": [{"minLength": 1}]})
    assert isinstance(prepared, dict)
    assert prepared["pattern"] == "^2"
    assert [list(schema) for schema in prepared["allOf"]] == [["pattern"], ["minLength"]]


REFUSED: list[tuple[Any, str]] = [
    (3, "the top of the schema: a schema is an object"),
    ({"properties": {"a": {"minLenght": 1}}}, "at properties.a.minLenght of the schema: minLenght is not a keyword"),
    ({"not": {}}, "at not of the schema: the keyword not is not supported"),
    ({"items": {"uniqueItems": True}}, "at items.uniqueItems"),
    ({"if": {}, "then": {}}, "keyword if is not supported"),
    ({"dependentRequired": {"a": ["b"]}}, "keyword dependentRequired"),
    ({"propertyNames": {"pattern": "a"}}, "keyword propertyNames"),
    ({"nullable": True}, "keyword nullable"),
    ({"$anchor": "a"}, "keyword \\$anchor"),
    ({"items": {"$id": "urn:b"}}, "items.\\$id"),
    ({"$ref": "https://example.com/s.json"}, "followed within the schema only"),
    ({"$ref": "#/$defs/missing"}, "'#/\\$defs/missing', which is not in the schema"),
    ({"$ref": "#/items/x", "items": [{}]}, "which is not in the schema"),
    ({"type": "text"}, "type is 'text'"),
    ({"type": []}, "type is \\[\\]"),
    ({"enum": []}, "at enum of the schema: enum must be a list"),
    ({"enum": [2**53 + 1]}, "beyond 2\\^53"),
    ({"const": {"a": [2**60]}}, "beyond 2\\^53"),
    ({"minimum": 2**53 + 1}, "at minimum of the schema"),
    ({"minimum": "1"}, "must be a number"),
    ({"minLength": -1}, "whole number"),
    ({"minLength": True}, "whole number"),
    ({"multipleOf": 0}, "above 0"),
    ({"multipleOf": 0.123456}, "too many digits"),
    ({"multipleOf": 1e-11}, "too many digits"),
    ({"minProperties": 2}, "minProperties above 1 needs additionalProperties: false"),
    ({"required": "a"}, "list of names"),
    ({"properties": []}, "object of schemas"),
    ({"anyOf": []}, "list of schemas that is not empty"),
    ({"pattern": 3}, "pattern must be a string"),
    ({"pattern": "(a{100}){100}"}, "at pattern: the regular expression repeats too much"),
    ({"patternProperties": {"(a{100}){100}": {}}}, "at patternProperties: the regular expression"),
    ({"type": "string", "format": "iri"}, "the format 'iri' is not supported; these are: date"),
    ({"properties": {f"p{i}": {} for i in range(MAX_OPTIONAL + 1)}}, f"lists {MAX_OPTIONAL + 1} that are optional"),
    ({"anyOf": [{}] * 20_001}, "more than 20000 schemas"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "message"), REFUSED)
def test_refuses(schema: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        prepare_schema(schema)


def test_depth_is_bounded() -> None:
    nested: Any = {"type": "null"}
    for _ in range(MAX_NESTED):
        nested = {"items": nested}
    prepare_schema(nested)
    with pytest.raises(RequestError, match=f"nested more than {MAX_NESTED} deep"):
        prepare_schema({"items": nested})


def test_chains_of_references_are_bounded() -> None:
    def chain(length: int) -> Any:
        links = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(length)}
        return {"$ref": "#/$defs/d0", "$defs": links | {f"d{length}": {"type": "null"}}}

    prepare_schema(chain(MAX_DEPTH - 1))
    with pytest.raises(RequestError, match=f"more than {MAX_DEPTH} schemas deep"):
        prepare_schema(chain(MAX_DEPTH))


def test_constants_may_not_be_nested_without_end() -> None:
    value: Any = 1
    for _ in range(40):
        value = [value]
    with pytest.raises(RequestError, match="nested more than 30 deep"):
        prepare_schema({"const": value})
