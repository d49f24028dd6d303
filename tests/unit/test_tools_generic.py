"""Tools for a template that knows none: the system message asks, and calls and results become plain messages."""

from __future__ import annotations

from typing import Any

from pagoda.text.tools.table import GENERIC
from tool_parsing import said

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def test_the_system_message_asks() -> None:
    (system, user) = GENERIC.told([{"role": "user", "content": "1 + 1?"}], TOOLS)
    assert system["role"] == "system"
    assert '{"name": "add", "parameters": {"type": "object"}}' in system["content"]
    assert '{"name": "function_name", "arguments": {"argument": "value"}}' in system["content"]
    assert user == {"role": "user", "content": "1 + 1?"}


def test_a_system_message_that_is_there_comes_first() -> None:
    (system,) = GENERIC.told([{"role": "system", "content": "Be brief."}], TOOLS)
    assert system["content"].startswith("Be brief.\n\n")
    assert '"add"' in system["content"]


def test_calls_become_what_the_model_would_write_and_results_what_the_user_says() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "2"},
        {"role": "assistant", "content": "It is", "tool_calls": [CALL]},
    ]
    _, calls, result, both = GENERIC.told(messages, TOOLS)
    assert said(GENERIC, calls["content"]) == [("add", '{"a": 1}')] * 2
    assert result == {"role": "user", "content": "<tool_response>\n2\n</tool_response>"}
    assert said(GENERIC, both["content"]) == ["It is", ("add", '{"a": 1}')]
    assert both.keys() == {"role", "content"}
