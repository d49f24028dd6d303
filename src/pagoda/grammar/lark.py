"""Grammars in llguidance's dialect of Lark: what a request may use of it, and how schemas and texts are put in.

Refused are rules' options that change the sampling rather than the grammar, and those that cannot be rewound.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from pagoda.errors import RequestError
from pagoda.grammar.json_schema import Schema, prepare_schema
from pagoda.grammar.regex_cost import check_cost

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_RULES = 1000  # llguidance recurses from rule to rule

# Between the tokens of JSON: at most one space, or a line's end and what indents the next. llguidance's own default,
# any white space any number of times, is where small models end up and stay.
JSON_WHITESPACE = r" |\n[ \t]{0,60}"
JSON_OPTIONS: JsonCompileOptions = {"whitespace_pattern": JSON_WHITESPACE}

# What begins first: a string, a regular expression, a comment, a schema, or the options of a rule.
_PIECE = re.compile(
    r"""(?P<string>"(?:[^"\\\n]|\\.)*")
    |(?P<regex>/(?:[^/\\\n\[]|\\.|\[(?:[^\]\\\n]|\\.)*\])+/)
    |(?P<comment>(?://|\#)[^\n]*)
    |(?P<json>%json\s*(?=\S))
    |(?P<options>^[ \t]*[a-zA-Z_][\w-]*\[(?P<inside>[^\]\n]*)\])""",
    re.MULTILINE | re.VERBOSE,
)
_RULE = re.compile(r"^[ \t]*[?!]?[a-zA-Z_][\w-]*(?:\[[^\]\n]*\])?[ \t]*:", re.MULTILINE)
_OPTIONS = frozenset({"lazy", "suffix", "capture"})


def literal(text: str) -> str:
    """A text as a string of Lark."""
    return json.dumps(text, ensure_ascii=False)


def inline_schema(schema: Schema) -> str:
    """A schema that `prepare_schema` returned, as an item of a rule."""
    return "%json " + json.dumps(schema if isinstance(schema, bool) else {**schema, "x-guidance": JSON_OPTIONS})


def check_lark(text: str) -> str:
    """The grammar of a request, with its inline schemas prepared. Its syntax is not checked.

    Raises RequestError for what is refused: options of rules, schemas, regular expressions that count too much.
    """
    if len(_RULE.findall(text)) > MAX_RULES:
        raise RequestError(f"the grammar has more than {MAX_RULES} rules")
    parts: list[str] = []
    end = 0
    while piece := _PIECE.search(text, end):
        parts.append(text[end : piece.end()])
        end = piece.end()
        if piece["regex"]:
            check_cost(piece["regex"], "")
        elif piece["inside"]:
            _check_options(piece["inside"])
        elif piece["json"]:
            schema, end = _schema_at(text, end)
            parts[-1] = parts[-1].removesuffix(piece["json"]) + inline_schema(prepare_schema(schema))
    return "".join([*parts, text[end:]])


def _schema_at(text: str, at: int) -> tuple[Any, int]:
    try:
        return json.JSONDecoder().raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the grammar has a %json that is not followed by JSON: {error}") from None


def _check_options(inside: str) -> None:
    for option in re.findall(r"(?:^|,)\s*(\w+)", inside):
        if option not in _OPTIONS:
            raise RequestError(f"the grammar uses the option {option} of a rule; {', '.join(sorted(_OPTIONS))} may be")
