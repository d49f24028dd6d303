"""Grammars and tools that are made to break or stall a server: each is refused, and whoever streams goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from fake_engine import FakeEngine, FakeLoaded
from serving import Served, serving

CHAT = "/v1/chat/completions"
HEAD = '{"messages":[{"role":"user","content":"Hi"}],"max_tokens":2'
MATCHES_ALL = {"allOf": [{"pattern": f"a{i}"} for i in range(40)]}
QUOTED = 'a"b\\c\n</tool_call>'


def schema_body(schema: str) -> str:
    return f'{HEAD},"response_format":{{"type":"json_schema","json_schema":{{"schema":{schema}}}}}}}'


def structured(**kind: Any) -> str:
    return f'{HEAD},"structured_outputs":{json.dumps(kind)}}}'


def tool(name: str, parameters: str, **further: Any) -> str:
    """`name` and `parameters` are JSON."""
    offered = f'[{{"type":"function","function":{{"name":{name},"parameters":{parameters}}}}}]'
    return f'{HEAD},"tools":{offered}{"".join(f",{json.dumps(k)}:{json.dumps(v)}" for k, v in further.items())}}}'


def nested(levels: int) -> str:
    return '{"type":"array","items":' * levels + "{}" + "}" * levels


def doubling(keyword: str) -> str:
    """Each definition is two of the next: 2^40 of the last."""
    definitions: dict[str, Any] = {f"d{i}": {keyword: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    return json.dumps({"$defs": definitions | {"d40": {"type": "string"}}, "$ref": "#/$defs/d0"})


REFUSED = {
    "schemas 1,000 deep": schema_body(nested(1000)),
    "schemas 100 deep": schema_body(nested(100)),
    "schemas 300,000 deep": schema_body(nested(300_000)),
    "a constant 1,000 deep": schema_body('{"const":' + "[" * 1000 + "]" * 1000 + "}"),
    "an enum of 7 MB": schema_body(json.dumps({"enum": [f"value {i:06d}" for i in range(430_000)]})),
    "a text of 1 MB": schema_body(json.dumps({"const": "x" * 1_000_000})),
    "60,000 choices": structured(choice=[f"value {i:06d}" for i in range(60_000)]),
    "100,000 properties": schema_body(json.dumps({"properties": {f"p{i}": {} for i in range(100_000)}})),
    "doubling anyOf": schema_body(doubling("anyOf")),
    "doubling oneOf": schema_body(doubling("oneOf")),
    "40 patterns at once": schema_body(json.dumps(MATCHES_ALL)),
    "a reference to itself": schema_body('{"$ref":"#"}'),
    "repetitions of repetitions": structured(regex="((((a{1,30}){1,30}){1,30}){1,30}){1,30}"),
    "the same in a schema": schema_body('{"type":"string","pattern":"(.{1,1000}){1,1000}"}'),
    "parentheses 20,000 deep": structured(grammar="root ::= " + "(" * 20_000 + '"x"' + ")" * 20_000),
    "a schema that is a text of brackets": structured(json="[" * 500_000),
    "a tool with quotes in its name": tool(r'"f\"}]"', "{}"),
    "a tool with a line's end in its name": tool(r'"f\n"', "{}"),
    "half a surrogate as a name": tool(r'"\ud800"', "{}"),
    "half a surrogate in an enum": schema_body(r'{"enum":["\udc00"]}'),
    "arguments 100 deep": tool('"f"', nested(100), tool_choice="required"),
    "arguments 1,000 deep": tool('"f"', nested(1000)),
    "arguments 40 patterns at once": tool(
        '"f"',
        json.dumps({"properties": {"a": {"allOf": [{"pattern": f"a{i}"} for i in range(40)]}}}),
        tool_choice="required",
    ),
}


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(FakeLoaded(FakeEngine(step_s=0.01))) as served:
        yield served


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_requests_are_refused_while_others_stream(api: Served, name: str) -> None:
    with api.client.stream("POST", CHAT, content=HEAD.replace("2", "40") + ',"stream":true}') as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        response = api.client.post(CHAT, content=REFUSED[name])
        assert response.status_code == 400, response.text[:500]
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_half_utf8_is_refused(api: Served) -> None:
    body = schema_body('{"enum":["caf\u00e9"]}').encode()
    assert api.client.post(CHAT, content=body.replace("\u00e9".encode(), b"\xc3")).status_code == 400


def test_names_of_arguments_may_hold_anything(api: Served) -> None:
    parameters = {"type": "object", "properties": {QUOTED: {"type": "string"}}, "required": [QUOTED]}
    response = api.client.post(CHAT, content=tool('"f"', json.dumps(parameters), tool_choice="required"))
    assert response.status_code == 200, response.text
