"""Tools told to a model, and found in its answer."""

from __future__ import annotations

import json

from grammar_walk import small_tokenizer
from pagoda.text.tools.offered import OfferedTools, control_ids

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}]
HELLO = [{"role": "user", "content": "Hi"}]
ANSWER = 'I look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


def test_a_template_with_tools_is_given_them() -> None:
    messages, arguments = OfferedTools(TOOLS, "{{ tools }} <tool_call>").told(HELLO)
    assert messages == HELLO
    assert arguments == {"tools": TOOLS}


def test_a_template_without_tools_is_told_in_words() -> None:
    messages, arguments = OfferedTools(TOOLS, "{{ messages }}").told(HELLO)
    assert arguments == {}
    assert messages[1:] == HELLO
    assert "get_weather" in messages[0]["content"]


def test_an_answer_is_divided() -> None:
    offered = OfferedTools(TOOLS, "{{ messages }}")
    text, calls = offered.divided(f"{ANSWER}\n{ANSWER}")
    assert text.split() == ["I", "look.I", "look."]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("get_weather", {"city": "Oslo"})] * 2
    assert calls[0].id != calls[1].id
    assert offered.divided("Hello <tool_call> there") == ("Hello <tool_call> there", ())


def test_control_tokens_among_markers() -> None:
    tokenizer = small_tokenizer()
    special = next(i for i in range(tokenizer.vocab_size) if tokenizer.is_special(i))
    name = tokenizer.token_bytes(special).decode()
    assert control_ids(tokenizer, [name, "plain"]) == {special}
