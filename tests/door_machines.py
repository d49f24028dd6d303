"""State machines of streamed answers, written from the protocols' published descriptions, and an engine that echoes.

Each takes a stream in the order in which it comes, checks that every event may follow what was before, and gives back
the answer that a client puts together.
"""

from __future__ import annotations

import json
from typing import Any

import httpx

from fake_engine import FakeTemplate

ADD_PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


class Echo(FakeTemplate):
    """The prompt is the last message alone, so that the fake model's answer begins with it."""

    def __init__(self) -> None:
        super().__init__("{{ tools }}<tool_call><think>")
        self.seen: list[dict[str, Any]] = []

    def render_ids(self, messages: list[dict[str, Any]], *, encode: Any = None, **options: Any) -> list[int]:
        self.seen = messages
        text = self._content(messages[-1]["content"]) + "|"
        return list(text.encode()) if encode is None else list(encode(text))


def named_events(response: httpx.Response) -> list[dict[str, Any]]:
    """The data of events that are named; the name is also their type (Responses and Messages APIs)."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for part in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = part.split("\n")
        event: dict[str, Any] = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def follow_responses(events: list[dict[str, Any]]) -> dict[str, Any]:
    """OpenAI, "Streaming events" of the Responses API. → the last response object"""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert all(event["response"]["status"] == "in_progress" for event in events[:2])
    output: list[dict[str, Any]] = []
    item: dict[str, Any] | None = None  # which is open
    part: dict[str, Any] | None = None
    for event in events[2:-1]:
        kind = event["type"].removeprefix("response.")
        assert event["output_index"] == len(output)
        if kind == "output_item.added":
            assert item is None
            item = event["item"] | {"text": ""}
            assert item["status"] == "in_progress"
            continue
        assert item is not None
        if kind == "output_item.done":
            assert part is None
            assert event["item"]["id"] == item["id"]
            assert said(event["item"]) == item["text"]
            output.append(event["item"])
            item = None
            continue
        assert event["item_id"] == item["id"]
        if kind == "content_part.added":
            assert part is None
            part = event["part"]
            assert part["type"] == {"message": "output_text", "reasoning": "reasoning_text"}[item["type"]]
            assert part["text"] == ""
        elif kind == "content_part.done":
            assert part is not None
            assert event["part"]["text"] == item["text"]
            part = None
        elif kind.endswith(".delta"):
            assert kind == TEXTS[item["type"]] + ".delta"
            assert (part is None) == (item["type"] == "function_call")
            item["text"] += event["delta"]
        else:
            assert kind == TEXTS[item["type"]] + ".done"
            assert event.get("text", event.get("arguments")) == item["text"]
        if item["type"] != "function_call":
            assert event["content_index"] == 0
    assert item is None
    last: dict[str, Any] = events[-1]["response"]
    assert events[-1]["type"] == f"response.{last['status']}"
    assert last["output"] == output
    assert last["id"] == events[0]["response"]["id"]
    return last


TEXTS = {"message": "output_text", "reasoning": "reasoning_text", "function_call": "function_call_arguments"}


def said(item: dict[str, Any]) -> str:
    """The text of an output item."""
    text: str = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
    return text


DELTAS = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}


def follow_messages(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Anthropic, "Streaming messages". → the message that has come together"""
    assert events[0]["type"] == "message_start"
    message: dict[str, Any] = events[0]["message"]
    assert (message["content"], message["stop_reason"]) == ([], None)
    block: dict[str, Any] | None = None  # which is open
    pieces = ""
    for event in events[1:-2]:
        kind = event["type"]
        if kind == "ping":
            continue
        assert event["index"] == len(message["content"])
        if kind == "content_block_start":
            assert block is None
            block, pieces = event["content_block"], ""
        elif kind == "content_block_delta":
            assert block is not None
            delta = event["delta"]
            if delta["type"] == "signature_delta":
                assert block["type"] == "thinking"
                block["signature"] = delta["signature"]
                continue
            assert not block.get("signature"), "a signature is the last of a block"
            assert delta["type"] == DELTAS[block["type"]]
            pieces += delta.get("text", delta.get("thinking", delta.get("partial_json")))
        else:
            assert kind == "content_block_stop"
            assert block is not None
            if block["type"] == "tool_use":
                block["input"] = json.loads(pieces) if pieces else {}
            else:
                block[block["type"]] = pieces
            message["content"].append(block)
            block = None
    assert block is None
    delta, stop = events[-2:]
    assert delta["type"] == "message_delta"
    assert stop == {"type": "message_stop"}
    message |= delta["delta"]
    message["usage"] |= delta["usage"]
    return message
