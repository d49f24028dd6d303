"""The keywords of JSON Schema, as tables: which mean nothing here, which are refused, and what the others may say.

A function of `VALUES` takes a keyword's value, the other keywords of its schema and its place, and returns what
llguidance is to see instead, as keywords. It raises RequestError for values that the keyword cannot have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pagoda.errors import RequestError
from pagoda.grammar.regex_cost import check_cost

MAX_EXACT = 2**53  # integers that 64-bit floats tell apart
MAX_VALUE_DEPTH = 30  # of lists and objects within a constant
MAX_DIVISOR = 20_000  # of multipleOf, in units of its last decimal: as many states of an automaton

ANNOTATIONS = frozenset(
    {
        "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema",
        "contentMediaType", "contentEncoding", "contentSchema", "$vocabulary",
        "discriminator", "example", "externalDocs", "xml", "markdownDescription", "enumNames", "enumDescriptions",
    }
)  # fmt: skip

# Of JSON Schema, but not enforced by llguidance: the keyword, and what to write instead.
UNSUPPORTED = {
    "not": "state what is allowed instead",
    "if": "use anyOf with an option a case",
    "then": "use anyOf with an option a case",
    "else": "use anyOf with an option a case",
    "dependentRequired": "use anyOf with an option a case",
    "dependentSchemas": "use anyOf with an option a case",
    "dependencies": "use anyOf with an option a case",
    "contains": "use prefixItems, or items",
    "minContains": "use prefixItems, or items",
    "maxContains": "use prefixItems, or items",
    "uniqueItems": "leave it out, and drop what comes twice",
    "propertyNames": "use patternProperties",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use items",
    "$dynamicRef": "use $ref",
    "$dynamicAnchor": "use $ref with #/$defs/…",
    "$recursiveRef": "use $ref",
    "$recursiveAnchor": "use $ref with #/$defs/…",
    "$anchor": "use $ref with #/$defs/…",
    "nullable": 'use {"anyOf": [{"type": "null"}, …]}',
}
ASKS_NOTHING: dict[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    "nullable": (False,),
    "unevaluatedProperties": (True,),
    "unevaluatedItems": (True,),
    "propertyNames": (True, {}),
}

TYPES = frozenset({"null", "boolean", "object", "array", "number", "integer", "string"})

_LEAP = "(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[13579][26]|[2468][048])00)-02-29"
_DATE = (
    "(?:[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP})"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
# RFC 3339, less leap seconds and years before 1000. llguidance's own know no leap years.
PATTERNS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}
FORMATS = frozenset({*PATTERNS, "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})

Prepared = dict[str, Any]


def refusal(where: str, message: str) -> RequestError:
    """An error that says where in the schema it is."""
    return RequestError(f"at {where or 'the top'} of the schema: {message}")


def shown(value: object) -> str:
    """A value, for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def whole_number(value: Any, where: str) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_EXACT:
        raise refusal(where, f"this must be a whole number from 0, not {shown(value)}")
    return value


def _count(keyword: str, value: Any, keywords: Mapping[str, Any], where: str) -> Prepared:
    return {keyword: whole_number(value, where)}


def _min_properties(keyword: str, value: Any, keywords: Mapping[str, Any], where: str) -> Prepared:
    count = whole_number(value, where)
    is_closed = keywords.get("additionalProperties") is False and not keywords.get("patternProperties")
    if count > 1 and not is_closed:
        raise refusal(where, "minProperties above 1 needs additionalProperties: false, since other keys may come twice")
    return {keyword: count}


def _number(keyword: str, value: Any, keywords: Mapping[str, Any], where: str) -> Prepared:
    if not isinstance(value, (int, float)):
        raise refusal(where, f"this must be a number, not {shown(value)}")
    if abs(value) > MAX_EXACT:
        raise refusal(where, f"{value} is beyond 2^53, from where on numbers are not exact")
    return {keyword: value}


def _multiple_of(keyword: str, value: Any, keywords: Mapping[str, Any], where: str) -> Prepared:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise refusal(where, f"multipleOf must be a number above 0, not {shown(value)}")
    decimal = f"{value:.9f}"
    if float(decimal) != value or int(decimal.replace(".", "").strip("0")) > MAX_DIVISOR:
        raise refusal(where, f"multipleOf {value} has too many digits: without zeros at its ends at most {MAX_DIVISOR}")
    return {keyword: value}


def _pattern(keyword: str, value: Any, keywords: Mapping[str, Any], where: str) -> Prepared:
    if not isinstance(value, str):
        raise refusal(where, f"pattern must be a string, not {shown(value)}")
    check_cost(value, where)
    return {keyword: value}


def _format(keyword: str, value: Any, keywords: Mapping[str, Any], where: str) -> Prepared:
    """Formats say something of strings; of numbers they are annotations, such as OpenAPI's int32."""
    types = keywords.get("type", "string")
    if "string" not in (types if isinstance(types, list) else [types]):
        return {}
    if not isinstance(value, str) or value not in FORMATS:
        known = ", ".join(sorted(FORMATS))
        raise refusal(where, f"the format {shown(value)} is not supported; these are: {known}")
    return {"allOf": [{"pattern": PATTERNS[value]}]} if value in PATTERNS else {keyword: value}


def _type(keyword: str, value: Any, keywords: Mapping[str, Any], where: str) -> Prepared:
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name in TYPES for name in names):
        raise refusal(where, f"type is {shown(value)}; types are {', '.join(sorted(TYPES))}")
    return {keyword: value}


def _required(keyword: str, value: Any, keywords: Mapping[str, Any], where: str) -> Prepared:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise refusal(where, f"required must be a list of names, not {shown(value)}")
    return {keyword: value}


def _enum(keyword: str, value: Any, keywords: Mapping[str, Any], where: str) -> Prepared:
    if not isinstance(value, list) or not value:
        raise refusal(where, "enum must be a list that is not empty")
    return _const(keyword, value, keywords, where)


def _const(keyword: str, value: Any, keywords: Mapping[str, Any], where: str) -> Prepared:
    level = [value]
    for _ in range(MAX_VALUE_DEPTH):
        for number in level:
            if isinstance(number, (int, float)) and abs(number) > MAX_EXACT:
                raise refusal(where, f"{number} is beyond 2^53, from where on numbers are not exact")
        level = [inner for outer in level if isinstance(outer, (dict, list)) for inner in _values(outer)]
    if level:
        raise refusal(where, f"the value is nested more than {MAX_VALUE_DEPTH} deep")
    return {keyword: value}


def _values(container: dict[str, Any] | list[Any]) -> list[Any]:
    return list(container.values()) if isinstance(container, dict) else container


VALUES: dict[str, Callable[[str, Any, Mapping[str, Any], str], Prepared]] = {
    "const": _const,
    "enum": _enum,
    "type": _type,
    "required": _required,
    "pattern": _pattern,
    "format": _format,
    "multipleOf": _multiple_of,
    "minProperties": _min_properties,
    **dict.fromkeys(("minItems", "maxItems", "maxProperties", "minLength", "maxLength"), _count),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _number),
}
