"""The other formats: one table of answers each, and which chat template teaches which."""

from __future__ import annotations

import re

import pytest

from pagoda.text.tools.table import FORMATS, format_of
from tool_parsing import Said, said

PARIS: Said = ("get_weather", '{"city": "Paris"}')

ANSWERS: list[tuple[str, str, list[Said]]] = [
    # qwen3_coder: strings are unquoted, other values JSON; a declared string stays one
    (
        "qwen3_coder",
        'I look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\n"New\nYork"\n</parameter>\n<parameter=days>\n'
        '3\n</parameter>\n<parameter=options>\n{"a": [1]}\n</parameter>\n</function>\n</tool_call>',
        ["I look.", ("get_weather", '{"city": "\\"New\\nYork\\"", "days": 3, "options": {"a": [1]}}')],
    ),
    (
        "qwen3_coder",
        "<function=add>\n<parameter=a>True</parameter>\n<parameter=b>\n1 apple\n</parameter>\n<parameter=c>\n</x>"
        "</parameter></function>x",
        [("add", '{"a": true, "b": "1 apple", "c": "</x>"}'), "x"],
    ),
    ("qwen3_coder", "<tool_call>\n<function=add>\n</function>\n</tool_call>", [("add", "{}")]),
    ("qwen3_coder", "<function=unknown>\n</function>", ["<function=unknown>\n</function>"]),
    ("qwen3_coder", "<function=add>\n<parameter=a>\n1", [("add", '{"a": ')]),
    ("llama3_json", '{"name": "get_weather", "parameters": {"city": "Paris"}}', [PARIS]),
    ("llama3_json", '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}', [PARIS]),
    ("llama3_json", '{"name": "add", "parameters": {}}; {"name": "add", "parameters": {}}', [("add", "{}")] * 2),
    ("llama3_json", 'Use {"name": "add"}', ['Use {"name": "add"}']),
    ("mistral", 'So[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]', ["So", PARIS]),
    ("mistral", '[TOOL_CALLS] [{"name": "add", "arguments": {}, "id": "abc"}, {"name": "add"}]', [("add", "{}")] * 2),
    ("mistral_v11", '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]add[ARGS]{}', [PARIS, ("add", "{}")]),
    ("mistral_v11", '[TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Paris"}', [PARIS]),
    ("mistral_v11", '[TOOL_CALLS][{"name": "add"}]', [("add", "{}")]),
    ("mistral_v11", "[TOOL_CALLS]unknown[ARGS]{}", ["[TOOL_CALLS]unknown[ARGS]{}"]),
    ("phi4_mini", '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]<|/tool_call|>', [PARIS]),
    ("phi4_mini", '<|tool_call|>{"name": "add"}<|/tool_call|> ok', [("add", "{}"), "ok"]),
    ("phi4_mini", "<|tool_call|>no", ["<|tool_call|>no"]),
    ("granite", '<|tool_call|>[{"arguments": {"city": "Paris"}, "name": "get_weather"}]', [PARIS]),
    ("nemotron", '<TOOLCALL>[{"name": "get_weather", "arguments": {"city": "Paris"}}]</TOOLCALL>', [PARIS]),
    (
        "cohere",
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Paris"}},\n'
        '    {"tool_call_id": "1", "tool_name": "add", "parameters": {}}\n]<|END_ACTION|>',
        [PARIS, ("add", "{}")],
    ),
    (
        "seed_oss",
        "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n</function>\n</seed:tool_call>",
        [PARIS],
    ),
    ("pythonic", "[get_weather(city='Paris'), add()]", [PARIS, ("add", "{}")]),
    (
        "pythonic",
        """[add(a=-1.5e3, b="it's \\"so\\"\\n\\u00e9", c=[True, None, (1, 2)], d={'k': {"l": False}}, e=word,)]""",
        [
            (
                "add",
                '{"a": -1500.0, "b": "it\'s \\"so\\"\\n\u00e9", "c": [true, null, [1, 2]], "d": {"k": {"l": false}}, '
                '"e": "word"}',
            )
        ],
    ),
    ("pythonic", "[unknown(a=1)]", ["[unknown(a=1)]"]),
    ("pythonic", "[1, 2]", ["[1, 2]"]),
    ("pythonic", "The list [add(a=1)]", ["The list [add(a=1)]"]),
    ("lfm2", "ok <|tool_call_start|>[get_weather(city='Paris')]<|tool_call_end|>", ["ok", PARIS]),
    (
        "gemma4",
        '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|><|tool_call>call:add{a:1,b:[true,{k:<|"|><"><|"|>}]}<tool_call|>',
        [PARIS, ("add", '{"a": 1, "b": [true, {"k": "<\\">"}]}')],
    ),
    ("gemma4", "<|tool_call>call:unknown{}<tool_call|>", ["<|tool_call>call:unknown{}<tool_call|>"]),
    ("generic", '<tool_call>{"name": "add"}</tool_call>', [("add", "{}")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "expected"), ANSWERS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(ANSWERS)])
def test_answers(name: str, text: str, expected: list[Said]) -> None:
    assert said(FORMATS[name], text) == expected


# What a template of each kind writes, reduced to what tells them apart.
TEMPLATES = {
    "hermes": '{{ \'<tool_call>\\n{"name": "\' + call.name + \'", "arguments": \' }}',
    "qwen3_coder": "{{ '<tool_call>\\n<function=' + call.name + '>\\n<parameter=' + key + '>' }}",
    "llama3_json": "{{ '<|start_header_id|>' }}{{ '{\"name\": \"' + call.name + '\", \"parameters\": ' }}",
    "mistral": "{{ '[TOOL_CALLS] [' + calls | tojson + ']' }}",
    "mistral_v11": "{{ '[TOOL_CALLS]' + call.name + '[ARGS]' + call.arguments | tojson }}",
    "phi4_mini": "{{ '<|system|>' + message.content + '<|tool|>' + message.tools + '<|/tool|>' }}",
    "granite": "{{ 'write <|tool_call|> followed by a JSON list of tools used' }}",
    "nemotron": "{{ '<TOOLCALL>[' + calls + ']</TOOLCALL>' }}",
    "cohere": "{{ '<|START_ACTION|>[' + calls + ']<|END_ACTION|>' }}",
    "seed_oss": "{{ '<seed:tool_call>\\n<function=' + call.name + '>\\n<parameter=' + key + '>' }}",
    "pythonic": "{{ 'in the format of [func_name1(params_name1=params_value1), func_name2(params)]' }}",
    "lfm2": "{{ '<|tool_call_start|>' + calls + '<|tool_call_end|>' }}",
    "gemma4": "{{ '<|tool_call>call:' + call.name + '{' }}",
    "harmony": "{{ '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}",
    "generic": "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' }}",
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_template_tells_its_format(name: str) -> None:
    assert format_of(TEMPLATES[name]).name == name


@pytest.mark.parametrize("name", FORMATS)
def test_ids_are_new_and_of_the_kind_that_the_template_takes(name: str) -> None:
    ids = {FORMATS[name].new_id() for _ in range(50)}
    assert len(ids) == 50
    kind = r"[a-zA-Z0-9]{9}" if name.startswith("mistral") else r"call_[0-9a-f]{24}"
    assert all(re.fullmatch(kind, one) for one in ids)
