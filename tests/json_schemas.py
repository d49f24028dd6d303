"""JSON Schemas as hypothesis generates them: what clients use, nested and combined, within what Pagoda enforces."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = ["a", "id", "name", "kind", "tags", 'with "quotes"', "naïve", "日本", "x y", ""]
PATTERNS = ["^[a-z]{2,4}$", "[0-9]+", "^(red|green|blue)$", r"^\d{3}-\d{2}$", r"^\w+@\w+\.com$", "^$|^x", "[^a-z]{1,3}"]
FORMATS = ["date", "date-time", "time", "uuid", "ipv4", "ipv6", "email", "hostname", "duration", "uri"]

# The default model's vocabulary cannot say what lies beyond.
texts = st.text(st.characters(codec="utf-8", max_codepoint=0x3FFFF), max_size=6)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.sampled_from([0.5, -2.25, 1e3]) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=4,
)


def _bounded(low: str, high: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(values, values).map(lambda pair: {low: min(pair), high: max(pair)})


def _subset(
    low: str, high: str, values: st.SearchStrategy[Any], kept: st.SearchStrategy[set[str]]
) -> st.SearchStrategy[dict[str, Any]]:
    pair = st.tuples(_bounded(low, high, values), kept)
    return pair.map(lambda made: {k: v for k, v in made[0].items() if k in made[1]})


def _some(low: str, high: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return _subset(low, high, values, st.sets(st.sampled_from([low, high])))


@st.composite
def numbers(draw: st.DrawFn) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": draw(st.sampled_from(["integer", "number"]))}
    bounds = st.integers(-1000, 1000) if schema["type"] == "integer" else st.integers(-400, 400).map(lambda n: n / 4)
    schema |= draw(_some("minimum", "maximum", bounds))
    if not schema.keys() & {"minimum", "maximum"}:
        schema |= draw(st.sampled_from([{}, {"exclusiveMinimum": 0}, {"exclusiveMaximum": 10}, {"multipleOf": 5}]))
    return schema


@st.composite
def strings(draw: st.DrawFn) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    match draw(st.integers(0, 3)):
        case 0:
            schema |= draw(_some("minLength", "maxLength", st.integers(0, 12)))
        case 1:
            schema["pattern"] = draw(st.sampled_from(PATTERNS))
        case 2:
            schema["format"] = draw(st.sampled_from(FORMATS))
    return schema


constants = st.one_of(
    st.lists(json_values, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    json_values.map(lambda value: {"const": value}),
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": ["string", "null"]}]),
)


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": draw(inner)} | draw(
        _some("minItems", "maxItems", st.integers(0, 4))
    )
    if draw(st.integers(0, 3)) == 0:
        schema["prefixItems"] = draw(st.lists(inner, min_size=1, max_size=2))
    return schema


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))
    schema: dict[str, Any] = {"type": "object", "properties": {name: draw(inner) for name in names}}
    schema["required"] = [name for name in names if draw(st.booleans())]
    match draw(st.integers(0, 4)):
        case 0:
            schema["additionalProperties"] = False
        case 1:
            schema["additionalProperties"] = draw(inner)
        case 2:
            schema["patternProperties"] = {"^p_": draw(inner)}
    schema |= draw(st.sampled_from([{}, {"title": "T", "description": "An object.", "x-order": 1}]))
    return schema


def unions(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    kinds = st.lists(st.sampled_from(["cat", "dog", "fox"]), unique=True, min_size=1, max_size=3)
    tagged = st.tuples(kinds, inner).map(lambda made: {"oneOf": [_tagged(kind, made[1]) for kind in made[0]]})
    return st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}) | tagged


def _tagged(kind: str, schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"kind": {"const": kind}, "value": schema}, "required": ["kind"]}


values = st.recursive(
    numbers() | strings() | constants, lambda inner: arrays(inner) | objects(inner) | unions(inner), max_leaves=6
)


@st.composite
def schemas(draw: st.DrawFn) -> dict[str, Any]:
    """A schema, sometimes with definitions that it refers to, one of them recursive."""
    schema: dict[str, Any] = draw(objects(values) | arrays(values) | values)
    if draw(st.booleans()):
        return schema
    tree = {
        "type": "object",
        "properties": {"value": draw(values), "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
        "required": ["value"],
    }
    definitions = {"tree": tree, "a/b": draw(values)}
    properties = {"tree": {"$ref": "#/$defs/tree"}, "other": {"$ref": "#/$defs/a~1b"}, "own": schema}
    return {"$defs": definitions, "type": "object", "properties": properties, "required": ["tree"]}
