"""Calls and thoughts in chat answers, whole and streamed, over real HTTP; the model repeats what the user writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from fake_engine import FakeLoaded, FakeTemplate
from serving import Served, events, serving

ADD = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


class Echo(FakeTemplate):
    """The prompt is the last message alone, so that the fake model's answer begins with it."""

    def render_ids(self, messages: list[dict[str, Any]], **options: Any) -> list[int]:
        self.seen = messages, options
        return list((messages[-1]["content"] + "|").encode())


TEMPLATE = Echo("{{ tools }}<tool_call><think>")


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(FakeLoaded(chat_template=TEMPLATE)) as served:
        yield served


def body(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": len(text.encode()), "tools": [ADD]} | fields


def whole(api: Served, text: str, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = api.ok("/v1/chat/completions", **body(text, **fields))
    return answer


def streamed(api: Served, text: str, **fields: Any) -> dict[str, Any]:
    """The message that a client puts together from the chunks."""
    chunks = events(api.post("/v1/chat/completions", stream=True, **body(text, **fields)))
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            message["reasoning_content"] += delta.get("reasoning_content") or ""
            assert delta.get("reasoning") == delta.get("reasoning_content")
            for piece in delta.get("tool_calls", ()):
                if "id" in piece:
                    assert piece["index"] == len(message["tool_calls"])
                    message["tool_calls"].append(
                        {
                            "id": piece["id"],
                            "type": piece["type"],
                            "function": {"name": piece["function"]["name"], "arguments": ""},
                        }
                    )
                message["tool_calls"][piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
            message["finish_reason"] = choice["finish_reason"]
    return message


@pytest.mark.parametrize(
    ("text", "content", "thought", "calls"),
    [
        ("plain text", "plain text", None, []),
        (CALL, None, None, ['{"a": 1}']),
        (f"I add.\n{CALL}\n{CALL}\nDone", "I add.Done", None, ['{"a": 1}', '{"a": 1}']),
        ("<think>\nHm.\n</think>\n\nYes", "Yes", "Hm.", []),
        (f"<think>Hm {CALL}</think>{CALL}", None, f"Hm {CALL}", ['{"a": 1}']),
        ("<tool_call>none</tool_call>", "<tool_call>none</tool_call>", None, []),
    ],
)
def test_messages(api: Served, text: str, content: str | None, thought: str | None, calls: list[str]) -> None:
    message = whole(api, text)["choices"][0]["message"]
    assert message["content"] == content
    assert message["reasoning_content"] == message["reasoning"] == thought
    assert [call["function"]["arguments"] for call in message.get("tool_calls", ())] == calls
    assert all(
        call["type"] == "function" and call["function"]["name"] == "add" for call in message.get("tool_calls", ())
    )
    parts = streamed(api, text)
    assert parts["content"] == (content or "")
    assert parts["reasoning_content"] == (thought or "")
    assert [call["function"]["arguments"] for call in parts["tool_calls"]] == calls


def test_an_answer_that_calls_ends_with_calls_unless_it_is_cut(api: Served) -> None:
    stop = whole(api, CALL + "!", stop="!", max_tokens=200)["choices"][0]
    assert (stop["finish_reason"], len(stop["message"]["tool_calls"])) == ("tool_calls", 1)
    assert streamed(api, CALL + "!", stop="!", max_tokens=200)["finish_reason"] == "tool_calls"
    assert whole(api, CALL)["choices"][0]["finish_reason"] == "length"


def test_thoughts_are_counted_and_may_be_left_out(api: Served) -> None:
    text = "<think>abc</think>d"
    answer = whole(api, text)
    assert answer["usage"]["completion_tokens_details"] == {
        "reasoning_tokens": len("<think>abc</think>") - len("<think>") + 1
    }
    hidden = whole(api, text, include_reasoning=False)["choices"][0]["message"]
    assert (hidden["content"], hidden["reasoning_content"]) == ("d", None)


def test_what_belongs_to_the_conversation_reaches_the_template(api: Served) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm", "refusal": None},
        {"role": "tool", "tool_call_id": "1", "content": "2", "name": "add"},
    ]
    api.ok("/v1/chat/completions", messages=messages, tools=[ADD], max_tokens=2)
    seen, options = TEMPLATE.seen
    assert seen[1]["tool_calls"] == [call]
    assert seen[1]["reasoning_content"] == seen[1]["reasoning"] == "Hm"
    assert seen[2] == {"role": "tool", "content": "2", "name": "add", "tool_call_id": "1"}
    assert options["tools"] == [ADD]
    api.ok("/v1/chat/completions", messages=messages, tools=[ADD], tool_choice="none", max_tokens=2)
    assert TEMPLATE.seen[1]["tools"] is None


def test_what_clients_send_besides(api: Served) -> None:
    message = {
        "role": "user",
        "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}],
        "provider_specific_fields": None,
        "thinking_blocks": [],
        "annotations": [],
        "cache_control": {"type": "ephemeral"},
        "extra": {"a": None, "b": ["", {}]},
    }
    with serving(FakeLoaded()) as plain:
        answer = plain.ok(
            "/v1/chat/completions",
            messages=[message],
            max_tokens=-1,
            stop="",
            top_logprobs=0,
            tools=[],
            request_id="my-id",
        )
        assert answer["id"] == "chatcmpl-my-id"
        plain.ok("/v1/completions", prompt="ab", max_tokens=-1, stop=["", "b"])
        error = plain.refused("/v1/chat/completions", messages=[message | {"thinking_blocks": [{"thinking": "x"}]}])
        assert error["param"] == "messages[0].thinking_blocks"


@pytest.mark.parametrize("name", ['with "quotes"', "", "a" * 129, "naïve", "a b"])
def test_names_of_functions_are_bounded(api: Served, name: str) -> None:
    tool = {"type": "function", "function": {"name": name}}
    error = api.refused("/v1/chat/completions", messages=[{"role": "user", "content": "?"}], tools=[tool])
    assert error["param"] == "tools[0].function.name"


def test_grammars_that_cannot_be_had_are_refused_by_the_field_that_asks(api: Served) -> None:
    error = api.refused("/v1/chat/completions", **body("x", tools=None, guided_json={"minLenght": 3}))
    assert error["param"] == "guided_json"
    assert "minLenght" in error["message"]
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}
    assert api.refused("/v1/completions", prompt="x", response_format=wanted)["param"] == "response_format"


def test_streams_say_once_what_a_call_is(api: Served) -> None:
    chunks = events(api.post("/v1/chat/completions", stream=True, **body(CALL)))
    pieces = [p for c in chunks for choice in c["choices"] for p in choice["delta"].get("tool_calls", ())]
    assert [("id" in piece, "name" in piece["function"]) for piece in pieces] == [(True, True)] + [(False, False)] * (
        len(pieces) - 1
    )
    assert json.loads("".join(piece["function"]["arguments"] for piece in pieces)) == {"a": 1}
    assert len(pieces) > 3
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
