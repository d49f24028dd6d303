"""Rules of Lark for the arguments of a function, in notations that are not JSON (`literals.Notation`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pagoda.text.tools.base import CallGrammar, Function, literal
from pagoda.text.tools.grammar import refuse_unenforced
from pagoda.text.tools.literals import Notation

_UP_TO_QUOTE = r'/(.|\n)*<\|"\|>/'  # the rest of a string of Gemma's, where the quote is no control token


@dataclass(slots=True)
class ValueRules:
    """The rules of Lark for the arguments of one function. `prefix` keeps its names apart from other functions'."""

    wanted: CallGrammar
    function: Function
    notation: Notation
    prefix: str
    lines: list[str] = field(default_factory=list)
    _definitions: dict[str, str] = field(default_factory=dict)

    def members(self, schema: Mapping[str, Any], key: str) -> str:
        """The rule for the members of an object, in order, those that are not required left out or not."""
        properties = schema.get("properties", {})
        names = sorted(properties) if self.notation.sort_keys else list(properties)
        required = frozenset(schema.get("required", ()))
        rules = []
        for name in names:
            item = self.value(properties[name])
            rules.append((self._rule(f"{literal(key.format(name))} {item}"), name in required))
        return self._sequence(rules)

    def value(self, schema: Any) -> str:
        """An expression for a value."""
        if not isinstance(schema, Mapping) or not schema:
            return self._any()
        if "$ref" in schema:
            return self._reference(schema["$ref"])
        if "enum" in schema or "const" in schema:
            return self._options([self._constant(value) for value in schema.get("enum", [schema.get("const")])])
        for combined in ("anyOf", "oneOf", "allOf"):
            if combined in schema and "type" not in schema:
                return self._options([self.value(option) for option in schema[combined]])
        types = schema.get("type", ())
        listed = [types] if isinstance(types, str) else list(types)
        return self._options([self._typed(name, schema) for name in listed]) if listed else self._any()

    def _typed(self, name: str, schema: Mapping[str, Any]) -> str:
        match name:
            case "boolean":
                return f"({literal(self.notation.true)} | {literal(self.notation.false)})"
            case "null":
                return literal(self.notation.null)
            case "string" if self.notation.quote is not None:
                refuse_unenforced(self.function, schema, "gemma")
                return self._string()
            case "array":
                item = self.value(schema.get("items", {}))
                low, high = schema.get("minItems", 0), schema.get("maxItems")
                return self._rule(f'"[" {_repeated(item, literal(self.notation.separator), low, high)} "]"')
            case "object":
                return self._rule(f'"{{" {self.members(schema, self.notation.key)} "}}"')
        return self.wanted.json_item({**schema, "type": name})

    def _constant(self, value: Any) -> str:
        if isinstance(value, bool):
            return literal(self.notation.true if value else self.notation.false)
        if value is None:
            return literal(self.notation.null)
        if isinstance(value, str) and self.notation.quote is not None:
            quote = self.wanted.marker(self.notation.quote)
            return f"{quote} {literal(value)} {quote}" if value else f"{quote} {quote}"
        return literal(json.dumps(value, ensure_ascii=False))

    def _string(self) -> str:
        assert self.notation.quote is not None
        quote = self.wanted.marker(self.notation.quote)
        if quote.startswith("<"):
            return self._rule(rf"{quote} /(.|\n)*/ {quote}")
        return self._rule(f"{quote} {self._rule(_UP_TO_QUOTE, '[lazy]')}")

    def _any(self) -> str:
        """Any value: in JSON's own notation, where strings have quotes as JSON's."""
        return (
            self.wanted.json_item({})
            if self.notation.quote is None
            else self._options([self._string(), self.wanted.json_item({"type": ["number", "boolean", "null"]})])
        )

    def _reference(self, reference: str) -> str:
        if reference not in self._definitions:
            name = self._definitions[reference] = f"{self.prefix}ref{len(self._definitions)}"
            target = self.function.schema.get("$defs", {}).get(reference.removeprefix("#/$defs/"), {})
            self.lines.append(f"{name}: {self.value(target)}")
        return self._definitions[reference]

    def _sequence(self, rules: Sequence[tuple[str, bool]]) -> str:
        """Members divided by separators: from the last to the first, what may follow at the start and after another."""
        separator = literal(self.notation.separator)
        at_start = after = '""'
        for rule, is_required in reversed(rules):
            here, there = f"{rule} {after}", f"{separator} {rule} {after}"
            if is_required:
                at_start, after = self._rule(here), self._rule(there)
            else:
                at_start, after = self._rule(f"{here} | {at_start}"), self._rule(f"{there} | {after}")
        return at_start

    def _options(self, options: Sequence[str]) -> str:
        return options[0] if len(options) == 1 else f"({' | '.join(options)})"

    def _rule(self, body: str, options: str = "") -> str:
        name = f"{self.prefix}v{len(self.lines)}"
        self.lines.append(f"{name}{options}: {body}")
        return name


def _repeated(item: str, separator: str, low: int, high: int | None) -> str:
    if high == 0:
        return '""'
    more = f"({separator} {item}){{{max(low - 1, 0)},{'' if high is None else high - 1}}}"
    return f"{item} {more}" if low else f"({item} {more})?"
