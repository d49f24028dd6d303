"""Anthropic's /v1/messages: what a conversation of blocks becomes, the answer's blocks, and the order of its events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from door_machines import ADD_PARAMETERS, CALL, Echo, follow_messages, named_events
from fake_engine import FakeLoaded
from serving import Served, serving

PATH = "/v1/messages"
TEMPLATE = Echo()
ADD = {"name": "add", "input_schema": ADD_PARAMETERS, "cache_control": {"type": "ephemeral"}}


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(FakeLoaded(chat_template=TEMPLATE)) as served:
        yield served


def asked(text: str, **fields: Any) -> dict[str, Any]:
    limit = max(len(text.encode()), 1)
    return {"messages": [{"role": "user", "content": text}], "max_tokens": limit, "tools": [ADD]} | fields


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def thinking(value: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": value, "signature": "unsigned"}


USE = {"type": "tool_use", "name": "add", "input": {"a": 1}}


@pytest.mark.parametrize(
    ("said", "content", "reason"),
    [
        ("plain text", [text("plain text")], "max_tokens"),
        (CALL, [USE], "max_tokens"),
        (f"I add.\n{CALL}\n{CALL}\nDone", [text("I add."), USE, USE, text("Done")], "max_tokens"),
        ("<think>\nHm.\n</think>\n\nYes", [thinking("Hm."), text("Yes")], "max_tokens"),
        (f"<think>Hm</think>{CALL}", [thinking("Hm"), USE], "max_tokens"),
    ],
)
def test_blocks_whole_and_streamed(api: Served, said: str, content: list[dict[str, Any]], reason: str) -> None:
    whole = api.ok(PATH, **asked(said))
    streamed = follow_messages(named_events(api.post(PATH, **asked(said, stream=True))))
    for message in (whole, streamed):
        assert message["id"].startswith("msg_")
        assert all(block.pop("id") for block in message["content"] if block["type"] == "tool_use")
        assert message["content"] == content
        assert (message["type"], message["role"], message["model"]) == ("message", "assistant", "fake")
        assert (message["stop_reason"], message["stop_sequence"]) == (reason, None)
        assert message["usage"]["input_tokens"] == len(said.encode()) + 1
        assert message["usage"]["output_tokens"] == len(said.encode())


def test_an_answer_without_text_has_an_empty_block(api: Served) -> None:
    body = asked("<eos>", tools=None, max_tokens=1)
    message = follow_messages(named_events(api.post(PATH, **body, stream=True)))
    assert message["content"] == api.ok(PATH, **body)["content"] == [text("")]


def test_stop_sequences_are_named(api: Served) -> None:
    for stream in (False, True):
        response = api.post(PATH, **asked("say b", stop_sequences=["b"], stream=stream))
        message = follow_messages(named_events(response)) if stream else response.json()
        assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "b")
        assert message["content"] == [text("say ")]


def test_more_tokens_than_fit_are_asked_for(api: Served) -> None:
    """As the API has it since Claude 4.5: the answer goes on until the context is full, and says so."""
    message = api.ok(PATH, **asked("abc", max_tokens=100_000))
    assert message["stop_reason"] == "model_context_window_exceeded"


def test_a_conversation_becomes_messages(api: Served) -> None:
    api.ok(
        PATH,
        max_tokens=1,
        system=[text("Be brief.")],
        tools=[ADD],
        messages=[
            {"role": "user", "content": [text("one"), text("two")]},
            {"role": "assistant", "content": [thinking("Hm"), text("I add"), USE | {"id": "t1"}]},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [text("2")]},
                    text("and now?"),
                ],
            },
        ],
    )
    call = {"id": "t1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert TEMPLATE.seen == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [text("one"), text("two")]},
        {"role": "assistant", "content": "I add", "tool_calls": [call], "reasoning_content": "Hm", "reasoning": "Hm"},
        {"role": "tool", "content": "2", "tool_call_id": "t1"},
        {"role": "user", "content": "and now?"},
    ]


def test_tokens_are_counted(api: Served) -> None:
    messages = [{"role": "user", "content": "four"}]
    assert api.ok(f"{PATH}/count_tokens", messages=messages) == {"input_tokens": 5}
    error = api.post(f"{PATH}/count_tokens", messages=messages, max_tokens=3)
    assert (error.status_code, error.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"),
        ({"messages": [{"role": "user", "content": [USE | {"id": "1"}]}]}, "tool_use"),
        ({"messages": []}, "messages"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"thinking": {"type": "enabled"}}, "budget_tokens"),
        ({"model": "claude-opus"}, "claude-opus"),
    ],
)
def test_what_is_refused(api: Served, fields: dict[str, Any], says: str) -> None:
    response = api.post(PATH, **asked("x") | fields)
    assert response.status_code == (404 if "model" in fields else 400)
    error = response.json()
    assert error["type"] == "error"
    assert error["error"]["type"] == ("not_found_error" if "model" in fields else "invalid_request_error")
    assert says in error["error"]["message"]


def test_a_call_can_be_required(api: Served) -> None:
    """The fake engine obeys no grammar: what is checked is that the plan asks for one."""
    assert api.post(PATH, **asked("x", tool_choice={"type": "any"}, tools=[])).status_code == 400
    assert api.post(PATH, **asked("x", tool_choice={"type": "tool", "name": "other"})).status_code == 400


def test_errors_have_the_dialects_shape() -> None:
    with serving(FakeLoaded(), api_keys=("k",)) as served:
        refused = served.post(PATH, **asked("x"))
        assert refused.status_code == 401
        assert refused.json()["error"]["type"] == "authentication_error"
        headers = {"x-api-key": "k", "anthropic-version": "2023-06-01"}
        assert served.client.post(PATH, json=asked("x", tools=None), headers=headers).status_code == 200
