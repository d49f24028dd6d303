"""From the fields that ask for a form of answer, OpenAI's, vLLM's and llama-server's, to a grammar."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pagoda.errors import RequestError
from pagoda.grammar.source import GrammarKind, GrammarSource
from pagoda.server.schema_output import ResponseFormat, Structured, StructuredOutputs


@dataclass(frozen=True, slots=True)
class Asked:
    """A grammar, the field that asks for it, and its schema if it is one of JSON."""

    source: GrammarSource
    param: str
    schema: Any = None


def grammar_asked(body: Structured) -> Asked | None:
    """Raises RequestError where two fields ask, or one says half."""
    found = [asked for asked in _all_asked(body) if asked is not None]
    if len(found) > 1:
        raise RequestError(f"{found[0].param} and {found[1].param} exclude each other", param=found[1].param)
    return found[0] if found else None


def _all_asked(body: Structured) -> Iterator[Asked | None]:
    if body.response_format is not None:
        yield _response_format(body.response_format)
    if body.structured_outputs is not None:
        yield from _structured_outputs(body.structured_outputs)
    yield _json("guided_json", body.guided_json)
    yield _text("guided_regex", "regex", body.guided_regex)
    yield _choice("guided_choice", body.guided_choice)
    yield _grammar("guided_grammar", body.guided_grammar)
    yield _text("structural_tag", "structural_tag", body.structural_tag)
    yield _json("json_schema", body.json_schema)
    yield _grammar("grammar", body.grammar)


def _response_format(wanted: ResponseFormat) -> Asked | None:
    param = "response_format"
    match wanted.type:
        case "json_object":
            return _json(param, wanted.schema_) or Asked(GrammarSource("json_object"), param, {"type": "object"})
        case "json_schema":
            schema = wanted.schema_ if wanted.json_schema is None else wanted.json_schema.schema_
            if schema is None:
                raise RequestError("response_format of type json_schema needs json_schema.schema", param=param)
            return _json(param, schema)
        case "structural_tag":
            tag = {"structures": wanted.structures or [], "triggers": wanted.triggers or []}
            return _text(param, "structural_tag", json.dumps(tag))
    return None


def _structured_outputs(wanted: StructuredOutputs) -> Iterator[Asked | None]:
    yield _json("structured_outputs.json", wanted.json_)
    yield _text("structured_outputs.regex", "regex", wanted.regex)
    yield _choice("structured_outputs.choice", wanted.choice)
    yield _grammar("structured_outputs.grammar", wanted.grammar)
    if wanted.json_object:
        yield Asked(GrammarSource("json_object"), "structured_outputs.json_object", {"type": "object"})
    yield _text("structured_outputs.structural_tag", "structural_tag", wanted.structural_tag)


def _json(param: str, schema: Any) -> Asked | None:
    """A schema, as an object or as its text."""
    if schema is None:
        return None
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{param} is not valid JSON: {error}", param=param) from None
    return Asked(GrammarSource("json_schema", json.dumps(schema)), param, schema)


def _choice(param: str, choices: list[str] | None) -> Asked | None:
    return None if choices is None else Asked(GrammarSource("choice", json.dumps(choices)), param)


def _grammar(param: str, text: str | None) -> Asked | None:
    """vLLM's grammars may be in either notation: rules of GBNF are defined by ::=."""
    return _text(param, "gbnf" if text and "::=" in text else "lark", text or None)


def _text(param: str, kind: GrammarKind, text: str | None) -> Asked | None:
    return None if text is None else Asked(GrammarSource(kind, text), param)
