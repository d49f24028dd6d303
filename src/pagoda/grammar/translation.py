"""How each kind of grammar is written for llguidance."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from llguidance import LLMatcher

from pagoda.errors import RequestError
from pagoda.grammar.gbnf import gbnf_to_lark
from pagoda.grammar.json_schema import prepare_schema
from pagoda.grammar.lark import JSON_OPTIONS, check_lark, inline_schema, literal
from pagoda.grammar.regex_cost import check_cost
from pagoda.grammar.source import GrammarKind, GrammarSource

MAX_TEXT = 256 * 1024  # characters of a source
MAX_CHOICES = 20_000


def to_llguidance(source: GrammarSource) -> str:
    """The source as llguidance takes it. Raises RequestError, for what is wrong with it or not supported."""
    if len(source.text) > MAX_TEXT:
        raise RequestError(f"the grammar has {len(source.text)} characters; at most {MAX_TEXT} may be")
    return _KINDS[source.kind](source.text)


def _json_object(text: str) -> str:
    return LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=JSON_OPTIONS)


def _json_schema(text: str) -> str:
    prepared = prepare_schema(_loaded(text, "the schema"))
    if prepared is False:
        raise RequestError("the schema false allows nothing")
    anything: dict[str, Any] = {}
    return LLMatcher.grammar_from_json_schema(
        json.dumps(anything if prepared is True else prepared), overrides=JSON_OPTIONS
    )


def _regex(text: str) -> str:
    check_cost(text, "")
    return LLMatcher.grammar_from_regex(text)


def _choice(text: str) -> str:
    choices = _loaded(text, "the choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(one, str) for one in choices):
        raise RequestError("choices are a list of strings that is not empty")
    if len(choices) > MAX_CHOICES:
        raise RequestError(f"there are {len(choices)} choices; at most {MAX_CHOICES} may be")
    return LLMatcher.grammar_from_lark("start: CHOICE\nCHOICE: " + " | ".join(map(literal, choices)))


def _lark(text: str) -> str:
    return LLMatcher.grammar_from_lark(check_lark(text))


def _gbnf(text: str) -> str:
    return LLMatcher.grammar_from_lark(gbnf_to_lark(text))


def _structural_tag(text: str) -> str:
    tag = _loaded(text, "the structural tag")
    if not isinstance(tag, Mapping) or not isinstance(tag.get("structures"), list) or not tag["structures"]:
        raise RequestError("a structural tag has a list of structures, each with begin, schema and end, and triggers")
    triggers = tag.get("triggers")
    if not isinstance(triggers, list) or not all(isinstance(one, str) and one for one in triggers):
        raise RequestError("a structural tag has a list of triggers, texts that its structures begin with")
    lines = ["start: (" + " | ".join(f"tag{i}" for i in range(len(tag["structures"]))) + ")* TEXT", r"TEXT: /(.|\n)*/"]
    for i, structure in enumerate(tag["structures"]):
        lines += _structure(i, structure, triggers)
    return LLMatcher.grammar_from_lark("\n".join(lines))


def _structure(number: int, structure: Any, triggers: list[str]) -> list[str]:
    begin, schema, end = _fields(structure)
    trigger = next((one for one in triggers if begin.startswith(one)), None)
    if trigger is None:
        raise RequestError(f"no trigger begins the structure {begin!r}")
    begin = begin.removeprefix(trigger)
    inside = inline_schema(prepare_schema(schema))
    rest = " ".join([literal(begin) if begin else "", inside, literal(end) if end else ""])
    return [f"head{number}[lazy]: TEXT {literal(trigger)}", f"tag{number}: head{number} {rest}"]


def _fields(structure: Any) -> tuple[str, Any, str]:
    if isinstance(structure, Mapping):
        begin, end = structure.get("begin"), structure.get("end")
        if isinstance(begin, str) and isinstance(end, str) and "schema" in structure:
            return begin, structure["schema"], end
    raise RequestError("a structure has begin and end, which are texts, and a schema")


def _built(text: str) -> str:
    return LLMatcher.grammar_from_lark(text)


def _loaded(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{what}: this is not valid JSON: {error}") from None


_KINDS: dict[GrammarKind, Callable[[str], str]] = {
    "json_object": _json_object,
    "json_schema": _json_schema,
    "regex": _regex,
    "choice": _choice,
    "lark": _lark,
    "gbnf": _gbnf,
    "structural_tag": _structural_tag,
    "built": _built,
}
