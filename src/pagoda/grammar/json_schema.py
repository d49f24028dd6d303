"""A JSON Schema becomes one that llguidance enforces to the letter, or is refused with the keyword and its place.

llguidance raises for keywords that it knows and lacks, but lets pass what it does not know: a client who misspells
`minLength` would get an answer without it. So every keyword is looked at here. Annotations are dropped; the rest is
checked, rewritten where llguidance and JSON Schema (draft 2020-12) differ, or refused:

    minProperties ≥ 2      refused where undeclared keys are allowed, since those may come twice
    bounds beyond 2^53     refused, since they are compared as 64-bit floats
    date, time, date-time  get patterns of their own: llguidance's have a 29 February every year
    oneOf of references    what they lead to is put in place, since behind references no difference is looked for
    properties alone       nothing else is generated: an answer within the schema either way, and a shorter one

References are followed within the document only (`#/…`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from pagoda.errors import RequestError
from pagoda.grammar.regex_cost import check_cost
from pagoda.grammar.schema_keywords import ANNOTATIONS, ASKS_NOTHING, UNSUPPORTED, VALUES, refusal, shown

Schema = bool | dict[str, Any]

MAX_NESTED = 50  # schemas written within schemas; llguidance's parser ends at about 60
MAX_DEPTH = 100  # likewise with what references lead to, where it is first met; llguidance recurses
MAX_NODES = 20_000  # schemas within a schema
MAX_ALTERNATIVES = 1000  # that anyOf, oneOf and allOf make of one value, what their references lead to written out
MAX_OPTIONAL = 450  # optional properties of one object: each costs 4 of the 2,000 items of llguidance's parser

_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAPS = frozenset({"properties", "patternProperties"})
_SINGLE = frozenset({"items", "additionalProperties"})
_KEYWORDS = frozenset({*_LISTS, *_MAPS, *_SINGLE, *VALUES, "$ref", "additionalItems"})
_NO_SCHEMA = frozenset({*ANNOTATIONS, "$defs", "definitions"})


def prepare_schema(schema: Any) -> Schema:
    """What llguidance is to be given for `schema`. Raises RequestError naming the keyword and its place.

    All that it accepts is valid under `schema`; the reverse does not hold, see above.
    """
    preparation = _Preparation(schema)
    prepared = preparation.subschema(schema, "", depth=0, closable=True)
    _check_alternatives(prepared, preparation.definitions)
    preparation.unfold_one_of()
    if isinstance(prepared, dict) and preparation.definitions:
        return {**prepared, "$defs": preparation.definitions}
    return prepared


class _Preparation:
    """One walk over a schema. `where` is the place in it, such as `properties.age`."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self.definitions: dict[str, Schema] = {}
        self._names: dict[tuple[str, bool], str] = {}  # (reference, closable) → name in `definitions`
        self._one_of: list[list[Schema]] = []
        self._num_nodes = 0
        self._root_depth = 0  # of the definition that is being prepared

    def subschema(self, schema: Any, where: str, *, depth: int, closable: bool) -> Schema:
        """`closable`: nothing else is said about the same value, so that undeclared properties may be ruled out."""
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise RequestError(f"the schema consists of more than {MAX_NODES} schemas")
        if depth - self._root_depth > MAX_NESTED:
            raise refusal(where[:200], f"schemas are nested more than {MAX_NESTED} deep; use $defs and $ref")
        if depth > MAX_DEPTH:
            raise refusal(where[:200], f"references to references are more than {MAX_DEPTH} schemas deep")
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise refusal(where, f"a schema is an object or a boolean, not {shown(schema)}")
        keywords = {name: value for name, value in schema.items() if _asserts(name, value, where)}
        alone = closable and _is_alone(keywords)
        prepared: dict[str, Any] = {}
        for name, value in keywords.items():
            made = self._prepared(name, value, keywords, _join(where, name), depth, alone)
            both = [*prepared.get("allOf", ()), *made.get("allOf", ())]  # a format adds one
            prepared |= made | ({"allOf": both} if both else {})
        if alone and _lists_all(keywords):
            prepared["additionalProperties"] = False
        _check_optional(prepared, where)
        return prepared

    def _prepared(
        self, name: str, value: Any, keywords: Mapping[str, Any], where: str, depth: int, alone: bool
    ) -> dict[str, Any]:
        """The keyword as llguidance is to see it."""
        if name == "$ref":
            return {name: self._reference(value, where, depth, alone)}
        if name in _MAPS:
            return {name: self._map(value, where, depth)}
        if name in _LISTS:
            return {name: self._list(name, value, where, depth, alone or name == "prefixItems")}
        if name == "items" and isinstance(value, list):  # drafts before 2020-12
            rest = self.subschema(keywords.get("additionalItems", True), where, depth=depth + 1, closable=True)
            return {"prefixItems": self._list(name, value, where, depth, True), "items": rest}
        if name in _SINGLE:
            return {name: self.subschema(value, where, depth=depth + 1, closable=True)}
        if name == "additionalItems":  # belongs to a list of items alone
            return {}
        return VALUES[name](name, value, keywords, where)

    def _list(self, name: str, value: Any, where: str, depth: int, closable: bool) -> list[Schema]:
        if not isinstance(value, list) or not value:
            raise refusal(where, "this must be a list of schemas that is not empty")
        made = [self.subschema(v, f"{where}.{i}", depth=depth + 1, closable=closable) for i, v in enumerate(value)]
        if name == "oneOf":
            self._one_of.append(made)
        return made

    def _map(self, value: Any, where: str, depth: int) -> dict[str, Schema]:
        if not isinstance(value, Mapping):
            raise refusal(where, f"this must be an object of schemas, not {shown(value)}")
        if where.endswith("patternProperties"):
            for pattern in value:
                check_cost(pattern, where)
        return {k: self.subschema(v, f"{where}.{k}", depth=depth + 1, closable=True) for k, v in value.items()}

    def _reference(self, reference: Any, where: str, depth: int, closable: bool) -> str:
        """A reference to the definition of what `reference` leads to, which is made when it is first met."""
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise refusal(where, f"$ref leads to {shown(reference)}; references are followed within the schema only")
        key = (reference, closable)
        if key not in self._names:
            name = self._names[key] = f"d{len(self._names)}"
            target = self._target(reference, where)
            outer, self._root_depth = self._root_depth, depth + 1
            self.definitions[name] = self.subschema(target, reference, depth=depth + 1, closable=closable)
            self._root_depth = outer
        return f"#/$defs/{self._names[key]}"

    def _target(self, reference: str, where: str) -> Any:
        found = self._root
        for part in reference.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (LookupError, TypeError, ValueError):
                raise refusal(where, f"$ref leads to {shown(reference)}, which is not in the schema") from None
        return found

    def unfold_one_of(self) -> None:
        """Put what references directly in oneOf lead to in their place."""
        for options in self._one_of:
            for i, option in enumerate(options):
                for _ in range(len(self.definitions)):
                    if not isinstance(option, dict) or option.keys() != {"$ref"}:
                        break
                    option = self.definitions[option["$ref"].removeprefix("#/$defs/")]
                options[i] = option


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _asserts(name: str, value: Any, where: str) -> bool:
    """Whether the keyword restricts anything. Raises RequestError where it is unknown or unsupported."""
    if name in _NO_SCHEMA or name.startswith("x-") or (name in ("$id", "id") and not where):
        return False
    if name in UNSUPPORTED:
        if value not in ASKS_NOTHING.get(name, ()):
            raise refusal(_join(where, name), f"the keyword {name} is not supported: {UNSUPPORTED[name]}")
        return False
    if name not in _KEYWORDS:
        raise refusal(_join(where, name), f"{name} is not a keyword of JSON Schema that is supported")
    return True


def _is_alone(keywords: Mapping[str, Any]) -> bool:
    """Whether one keyword at most has a say in which properties there are."""
    combining = [name for name in ("allOf", "anyOf", "oneOf", "$ref") if name in keywords]
    if not combining:
        return True
    is_single = combining != ["allOf"] or len(keywords["allOf"]) == 1
    return len(combining) == 1 and is_single and not keywords.keys() - {*combining, "type"}


def _lists_all(keywords: Mapping[str, Any]) -> bool:
    """Whether an object's schema declares properties, and leaves open by silence alone that there may be others."""
    declared, required = keywords.get("properties"), keywords.get("required", [])
    if declared is None or {"additionalProperties", "patternProperties", "minProperties"} & keywords.keys():
        return False
    return all(name in declared for name in required)


def _check_alternatives(prepared: Schema, definitions: Mapping[str, Schema]) -> None:
    """Raise RequestError where few references to references make very many alternatives, which llguidance compares."""
    counted: dict[str, int] = {}

    def count(schema: Any) -> int:
        """Those of the schema. → at most one more than there may be"""
        if not isinstance(schema, dict):
            return 1
        found = math.prod(sum(map(count, schema[name])) for name in ("anyOf", "oneOf") if name in schema)
        found *= math.prod(map(count, schema.get("allOf", ())))
        if "$ref" in schema:
            found *= count_of_definition(schema["$ref"].removeprefix("#/$defs/"))
        if found > MAX_ALTERNATIVES:
            raise RequestError(f"the schema's anyOf, oneOf and allOf make more than {MAX_ALTERNATIVES} alternatives")
        return found

    def count_of_definition(name: str) -> int:
        if name not in counted:
            counted[name] = 1  # where it leads to itself
            counted[name] = count(definitions[name])
        return counted[name]

    for schema in (prepared, *definitions.values()):
        for inner in _within(schema):
            count(inner)


def _within(schema: Any) -> Iterator[Any]:
    """The schema and all that are written in it, less those that combining keywords count by themselves."""
    if isinstance(schema, dict):
        yield schema
        nested = [schema[name] for name in _SINGLE if name in schema]
        nested += [inner for name in _MAPS if name in schema for inner in schema[name].values()]
        nested += [inner for name in _LISTS if name in schema for inner in schema[name]]
        for inner in nested:
            yield from _within(inner)


def _check_optional(prepared: Mapping[str, Any], where: str) -> None:
    optional = prepared.get("properties", {}).keys() - set(prepared.get("required", ()))
    if len(optional) > MAX_OPTIONAL:
        raise refusal(where, f"properties lists {len(optional)} that are optional; {MAX_OPTIONAL} may be")
