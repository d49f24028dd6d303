"""Pieces of Lark that the formats' grammars share.

`answer` puts them together: an answer that is calls, or text in which calls may begin. A call in the middle of a text
is told by a head: text up to a marker, ended as soon as the marker is complete, after which only a call may follow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagoda.errors import RequestError
from pagoda.text.tools.base import CallGrammar, Function, literal

MAX_CALLS = 32  # of an answer that has to be calls: small models repeat themselves until their context is full
MORE = f"{{0,{MAX_CALLS - 1}}}"  # further calls, as Lark counts

_TEXT = r"TEXT: /(.|\n)*/"
_BLANKS = r"BLANKS: /[ \t\n]{0,20}/"


@dataclass(frozen=True, slots=True)
class CallRule:
    """How a call, or a list of them, is written: `begin`, a marker, then `rest`, an expression of Lark."""

    begin: str
    rest: str
    definitions: Sequence[str] = ()  # of the rules that `rest` uses
    separator: str = ""  # an expression between two calls; only the format of calls that stand alone needs one


def answer(wanted: CallGrammar, rule: CallRule, *, heads: Sequence[str] = (), repeats: bool = True) -> str:
    """A whole grammar.

    heads: further rules, each a head and what follows it, in text; repeats: calls may follow each other, rather than
    stand in one list.
    """
    begin = wanted.marker(rule.begin)
    repeats = repeats and wanted.parallel
    if wanted.required:
        again = f" ({rule.separator} called){MORE}" if repeats else ""
        return _joined(f"start: called{again}", [f"called: {begin} {rule.rest}", *rule.definitions])
    return _in_text([*_after_marker(begin, rule.rest), *rule.definitions], ["found"], heads, repeats)


def answer_alone(
    wanted: CallGrammar, calls: str, definitions: Sequence[str], heads: Sequence[str], marker: str | None = None
) -> str:
    """Likewise where calls, an expression, are the whole answer. `heads` tell them from text; so does `marker`."""
    if wanted.required:
        return _joined(f"start: {calls}", definitions)
    if marker is None:
        return _in_text(definitions, [], heads, False)
    return _in_text([*_after_marker(wanted.marker(marker), calls), *definitions], ["found"], heads, False)


def _after_marker(begin: str, rest: str) -> list[str]:
    """The rule `found`: text, the marker, and `rest`. A control token needs no head: no text holds it."""
    if begin.startswith("<"):
        return [f"found: TEXT {begin} {rest}"]
    return [f"head[lazy]: TEXT {begin}", f"found: head {rest}"]


def _in_text(definitions: Sequence[str], found: list[str], heads: Sequence[str], repeats: bool) -> str:
    lines = [f"found{i}: {head}" for i, head in enumerate(heads)]
    options = " | ".join([*found, *(f"found{i}" for i in range(len(heads)))])
    return _joined(f"start: ({options})* TEXT" if repeats else f"start: TEXT | {options}", [*definitions, *lines])


def _joined(start: str, definitions: Sequence[str]) -> str:
    return "\n".join([start, _TEXT, _BLANKS, *definitions])


def json_calls(wanted: CallGrammar, key: str, *, name_key: str = "name", id_key: str = "") -> list[str]:
    """The rule `call`: one call as a JSON object, its arguments under `key`; first a number, under `id_key`."""
    options = []
    lines = []
    for i, function in enumerate(wanted.functions):
        before = f'{{"{id_key}": "'
        number = f"{literal(before)} /[0-9]/ " if id_key else ""
        opening = '", ' if id_key else "{"
        opening += f'"{name_key}": {json.dumps(function.name, ensure_ascii=False)}, "{key}": '
        options.append(f"call{i}")
        lines += [
            f'call{i}: {number}{literal(opening)} arguments{i} "}}"',
            f"arguments{i}: {arguments_item(wanted, function)}",
        ]
    return [f"call: {' | '.join(options)}", *lines]


def bare_heads(wanted: CallGrammar, *, before: str = r"(.|\n)*") -> tuple[list[str], list[str]]:
    """Calls as JSON objects without a marker: they count from where a function is named and its arguments begin.

    → (heads, definitions), for `answer`; they use the rules of `json_calls`. `before`: the text before, an expression
    """
    if wanted.required:
        return [], []
    heads, definitions = [], []
    for i, function in enumerate(wanted.functions):
        name = regex_literal(json.dumps(function.name, ensure_ascii=False))
        blank = r"[ \t\n]{0,20}"
        keys = rf'\{{{blank}"name"{blank}:{blank}{name}{blank},{blank}"(arguments|parameters)"{blank}:'
        definitions.append(rf"bare{i}[lazy]: /{before}{keys}/")
        heads.append(f'bare{i} BLANKS arguments{i} BLANKS "}}"')
    return heads, definitions


def arguments_item(wanted: CallGrammar, function: Function) -> str:
    """An item that stands for JSON of the function's arguments."""
    return wanted.json_item(function.schema or {"type": "object"})


def regex_literal(text: str) -> str:
    """A text within a regular expression of Lark."""
    plain = frozenset('_ "')
    return "".join(c if c in plain or (c.isascii() and c.isalnum()) else f"\\u{{{ord(c):x}}}" for c in text)


def refuse_unenforced(function: Function, schema: Mapping[str, Any], format_name: str) -> None:
    """Raise RequestError where a strict function says more of an unquoted string than that it is one."""
    said = schema.keys() - {"type", "enum", "const"}
    if function.strict and said:
        raise RequestError(
            f"the function {function.name} asks for {sorted(said)[0]} of a string, which cannot be enforced in calls "
            f"as this model writes them ({format_name})"
        )
