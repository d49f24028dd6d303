"""Every format's grammar: what it lets through is what its parser reads, with arguments that match their schemas."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from grammar_walk import accepts, allowed_ids, small_tokenizer, walk
from pagoda.constraint import TokenConstraint
from pagoda.errors import RequestError
from pagoda.grammar.compiler import GrammarCompiler
from pagoda.grammar.constraint import CompiledGrammar
from pagoda.grammar.json_schema import prepare_schema
from pagoda.grammar.lark import inline_schema
from pagoda.grammar.source import GrammarSource
from pagoda.text.tools.base import CallGrammar, Function
from pagoda.text.tools.grammar import MAX_CALLS
from pagoda.text.tools.table import FORMATS
from tool_parsing import Said, said

TOKENIZER = small_tokenizer()
COMPILER = GrammarCompiler(TOKENIZER)
SCHEMAS: dict[str, Any] = {
    "forecast": {
        "type": "object",
        "properties": {
            "unit": {"type": "string", "enum": ["C", 'F "old"']},
            "days": {"type": "integer", "minimum": 1, "maximum": 7},
            "hourly": {"type": "boolean"},
            "ratios": {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 2},
        },
        "required": ["days"],
    },
    "stop": {"type": "object", "properties": {}},
    'odd "name"': {
        "type": "object",
        "properties": {"tree": {"$ref": "#/$defs/tree"}, "size": {"type": ["number", "null"]}},
        "required": ["tree"],
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {"x": {"const": 1}, "next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}},
                "required": ["x"],
            }
        },
    },
}
ASKED = [Function(name, schema) for name, schema in SCHEMAS.items()]
PREPARED = [Function(name, prepare_schema(schema)) for name, schema in SCHEMAS.items()]  # type: ignore[arg-type]
SINGLE = {"llama3_json", "harmony"}  # whose templates know one call an answer
BEGINNINGS = {
    "gemma4": "<|tool_call>",
    "mistral": "[TOOL_CALLS]",
    "mistral_v11": "[TOOL_CALLS]",
    "phi4_mini": "<|tool_call|>",
    "granite": "<|tool_call|>",
    "nemotron": "<TOOLCALL>",
    "cohere": "<|START_ACTION|>",
    "seed_oss": "<seed:tool_call>",
    "lfm2": "<|tool_call_start|>",
    "harmony": "<|channel|>commentary to=functions.",
    "pythonic": "[stop(",
    "llama3_json": '{"name": "stop", "parameters": ',
}


def compiled(name: str, *, required: bool, parallel: bool) -> CompiledGrammar:
    wanted = CallGrammar(PREPARED, required, parallel, inline_schema)
    return COMPILER.compile(GrammarSource("built", FORMATS[name].grammar(wanted)))


def calls_of(answers: list[Said]) -> list[tuple[str, str]]:
    return [one for one in answers if isinstance(one, tuple)]


def check_arguments(calls: list[tuple[str, str]]) -> None:
    for name, arguments in calls:
        jsonschema.validate(json.loads(arguments), SCHEMAS[name])


@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "single"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_required_answer_is_calls_alone(name: str, parallel: bool) -> None:
    grammar = compiled(name, required=True, parallel=parallel)
    texts = [text for seed in range(12) if (text := walk(grammar, TOKENIZER, seed, max_tokens=250))]
    assert texts
    counts = set()
    for text in texts:
        answers = said(FORMATS[name], text, ASKED)
        assert len(calls_of(answers)) == len(answers) > 0, text
        check_arguments(calls_of(answers))
        counts.add(len(answers))
    assert (max(counts) > 1) == (parallel and name not in SINGLE)


def test_a_required_answer_ends_after_many_calls() -> None:
    """A model that repeats itself does not go on until its context is full."""
    grammar = compiled("hermes", required=True, parallel=True)
    call = '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
    assert accepts(grammar, TOKENIZER, "\n".join([call] * MAX_CALLS))
    assert not accepts(grammar, TOKENIZER, "\n".join([call] * (MAX_CALLS + 1)))


@pytest.mark.parametrize("name", FORMATS)
def test_in_text_a_call_that_begins_is_brought_to_its_end(name: str) -> None:
    beginning = BEGINNINGS.get(name, "<tool_call>")
    text = beginning if name in ("pythonic", "llama3_json") else f"Let me see. {beginning}"
    grammar = compiled(name, required=False, parallel=True)
    for seed in range(6):
        answer = walk(Begun(grammar, text), TOKENIZER, seed, max_tokens=250)
        if answer is not None:
            found = calls_of(said(FORMATS[name], text + answer, ASKED))
            assert found, text + answer
            check_arguments(found)


@pytest.mark.parametrize("name", ["hermes", "generic"])
def test_a_call_without_tags_is_held_to_its_schema_once_it_is_one(name: str) -> None:
    grammar = compiled(name, required=False, parallel=True)
    for text in ('```json\n{\n  "name": "forecast",\n  "arguments":', '{"name":"forecast", "parameters" :'):
        answer = walk(Begun(grammar, text), TOKENIZER, 1, max_tokens=250)
        assert answer is not None
        ((called, arguments), *_) = calls_of(said(FORMATS[name], text + answer, ASKED))
        assert called == "forecast"
        jsonschema.validate(json.loads(arguments), SCHEMAS["forecast"])


@pytest.mark.parametrize("name", FORMATS)
def test_text_stays_free(name: str) -> None:
    grammar = compiled(name, required=False, parallel=True)
    for text in ("Hello!\n\n- one\n", '{"name": "Bob"}', "a < b [1, 2] { x }", "<tool", "```json\n{}\n```"):
        constraint = Begun(grammar, text).start()
        assert any(i in TOKENIZER.eos_ids for i in allowed_ids(constraint, TOKENIZER.vocab_size)), text


@pytest.mark.parametrize("name", ["qwen3_coder", "gemma4"])
def test_a_strict_function_is_refused_where_the_notation_cannot_hold_it(name: str) -> None:
    schema = {"type": "object", "properties": {"code": {"type": "string", "pattern": "^[0-9]+$"}}}
    loose, strict = Function("f", schema), Function("f", schema, strict=True)
    FORMATS[name].grammar(CallGrammar([loose], True, False, inline_schema))
    with pytest.raises(RequestError, match="asks for pattern of a string"):
        FORMATS[name].grammar(CallGrammar([strict], True, False, inline_schema))


def test_markers_that_are_control_tokens_are_tokens_in_the_grammar() -> None:
    control = TOKENIZER.encode("<|im_start|>", add_special=False, parse_special=True)[0]
    wanted = CallGrammar(PREPARED, True, False, inline_schema, marker=lambda text: f"<[{control}]>")
    constraint = COMPILER.compile(GrammarSource("built", FORMATS["mistral"].grammar(wanted))).start()
    assert allowed_ids(constraint, TOKENIZER.vocab_size) == [control]


class Begun:
    """A grammar whose sequences have a beginning behind them."""

    def __init__(self, grammar: CompiledGrammar, text: str) -> None:
        self._grammar, self._text = grammar, text

    def start(self) -> TokenConstraint:
        constraint = self._grammar.start()
        for token_id in TOKENIZER.encode(self._text, add_special=False):
            assert token_id in allowed_ids(constraint, TOKENIZER.vocab_size), (self._text, token_id)
            constraint.accept(token_id)
        return constraint
