"""Grammars compiled for a small vocabulary: they let through what was asked for; what is refused says why."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grammar_walk import accepts, small_tokenizer, walk
from json_schemas import FORMATS, schemas
from pagoda.errors import RequestError
from pagoda.grammar.compiler import MAX_KEPT, GrammarCompiler
from pagoda.grammar.source import GrammarKind, GrammarSource

TOKENIZER = small_tokenizer()
COMPILER = GrammarCompiler(TOKENIZER)
VALIDATOR = jsonschema.Draft202012Validator


def compile_schema(schema: Any) -> Any:
    return COMPILER.compile(GrammarSource("json_schema", json.dumps(schema)))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(schemas(), st.integers(0, 1000))
def test_whatever_a_schema_lets_through_is_valid(schema: Any, seed: int) -> None:
    text = walk(compile_schema(schema), TOKENIZER, seed)
    if text is not None:  # a text may be long, or without end
        VALIDATOR(schema, format_checker=VALIDATOR.FORMAT_CHECKER).validate(json.loads(text))


@pytest.mark.parametrize("name", FORMATS)
def test_formats_hold(name: str) -> None:
    schema = {"type": "string", "format": name}
    grammar = compile_schema(schema)
    texts = [text for seed in range(20) if (text := walk(grammar, TOKENIZER, seed, max_tokens=250))]
    assert len(set(texts)) > 1
    for text in texts:
        VALIDATOR(schema, format_checker=VALIDATOR.FORMAT_CHECKER).validate(json.loads(text))


# Kind, source, texts that it allows, and texts that it does not.
CASES: list[tuple[GrammarKind, str, list[str], list[str]]] = [
    ("json_object", "", ["{}", '{"a": [1, null, {"b": "c"}]}', '{\n  "a": 1\n}'], ["[]", '{"a": }', '{"a":\n\n1}']),
    ("json_schema", '{"type": "string", "format": "date"}', ['"2024-02-29"'], ['"2023-02-29"', '"2024-13-01"']),
    ("json_schema", "true", ["1", "{}"], ["x"]),
    ("json_schema", '{"enum": [1, "a", null]}', ["1", '"a"', "null"], ["2", '"b"']),
    ("regex", "^[a-c]{2}|x$", ["ab", "x"], ["a", "abx", ""]),
    ("choice", '["yes", "no", "not \\"now\\"", "日本"]', ["yes", "no", 'not "now"', "日本"], ["ye", "nope", ""]),
    ("lark", 'start: "a" %json {"type": "integer"} end\nend: "b" | "c"', ["a12b", "a-3c"], ['a"x"b', "a1"]),
    ("gbnf", 'root ::= [a-z]+ "end"', ["abend", "endend"], ["end", "abc"]),
    ("gbnf", 'root ::= "(" root ")" | "x"\n', ["((x))", "x"], ["((x)", ""]),
    (
        "structural_tag",
        json.dumps(
            {
                "structures": [
                    {"begin": "<f=add>", "schema": {"type": "array", "items": {"type": "integer"}}, "end": "</f>"},
                    {"begin": "<f=log>", "schema": {"type": "string"}, "end": ""},
                ],
                "triggers": ["<f="],
            }
        ),
        ["no call", "so: <f=add>[1,2]</f> and <f=log>\"x\" then", "<f", ""],
        ["<f=sub>[1]</f>", "<f=add>[1.5]</f>", "x <f=add>[1]"],
    ),
    ("built", 'start: "a"', ["a"], ["b"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "allowed", "not_allowed"), CASES)
def test_kinds(kind: GrammarKind, text: str, allowed: list[str], not_allowed: list[str]) -> None:
    grammar = COMPILER.compile(GrammarSource(kind, text))
    assert [one for one in allowed if not accepts(grammar, TOKENIZER, one)] == []
    assert [one for one in not_allowed if accepts(grammar, TOKENIZER, one)] == []


REFUSED: list[tuple[GrammarKind, str, str]] = [
    ("json_schema", "{", "the schema: this is not valid JSON"),
    ("json_schema", "false", "allows nothing"),
    ("json_schema", '{"minLenght": 3}', "minLenght is not a keyword"),
    ("json_schema", '{"oneOf": [{"type": "integer"}, {"type": "number"}]}', "oneOf needs options that exclude"),
    ("json_schema", '{"pattern": "(?=a)b"}', "pattern: .*look-ahead"),
    ("json_schema", '{"type": "array", "minItems": 3, "maxItems": 2}', "minItems \\(3\\) is greater than maxItems"),
    ("regex", "(a", "unclosed group"),
    ("regex", "(a{100}){100}", "repeats too much"),
    ("choice", "[]", "choices are a list of strings"),
    ("choice", '["a", 1]', "choices are a list of strings"),
    ("choice", json.dumps([str(i) for i in range(20_001)]), "there are 20001 choices"),
    ("lark", "start: missing", 'unknown name: "missing"'),
    ("lark", 'start[temperature=0.5]: "a"', "the option temperature"),
    ("lark", 'start: %json {"not": {}}', "keyword not is not supported"),
    ("gbnf", 'root ::= !<think> "a"', "!<token> is not supported"),
    ("structural_tag", "{}", "a list of structures"),
    ("structural_tag", '{"structures": [{"begin": "<a", "schema": {}, "end": ""}], "triggers": ["<b"]}', "no trigger"),
    ("json_object", "x" * 1_048_577, "1048577 characters"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "message"), REFUSED, ids=[f"{k}-{m[:20]}" for k, _, m in REFUSED])
def test_refusals(kind: GrammarKind, text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        COMPILER.compile(GrammarSource(kind, text))


def test_a_grammar_that_takes_long_to_step_through_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagoda.grammar.constraint.SECONDS_AT_ONCE", 0.0)
    monkeypatch.setattr("pagoda.grammar.constraint.SECONDS_A_TOKEN", 0.0)
    with pytest.raises(RequestError, match="its masks take more than"):
        COMPILER.compile(GrammarSource("regex", "a probed one"))


def test_what_was_used_lately_is_kept() -> None:
    compiler = GrammarCompiler(TOKENIZER)
    sources = [GrammarSource("regex", f"a{n}") for n in range(MAX_KEPT + 1)]
    first = compiler.compile(sources[0])
    for source in sources[1:-1]:
        compiler.compile(source)
    assert compiler.compile(sources[0]) is first
    compiler.compile(sources[-1])  # one too many: the one used longest ago goes
    assert compiler.find(sources[0]) is first
    assert compiler.find(sources[1]) is None
    assert compiler.find(GrammarSource("choice", "a1")) is None


def test_masks_are_zero_beyond_the_vocabulary() -> None:
    constraint = COMPILER.compile(GrammarSource("regex", ".*")).start()
    num_words = -(-TOKENIZER.vocab_size // 32)
    mask = np.full(num_words + 3, 2**32 - 1, np.uint32)
    assert constraint.fill(mask) is None
    assert not mask[num_words:].any()
    assert mask[:num_words].any()
