"""Ollama's API: lines of JSON, the last of which says `done`, and what a conversation of its form becomes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from door_machines import ADD_PARAMETERS, CALL, Echo
from fake_engine import FakeLoaded
from serving import Served, serving

TEMPLATE = Echo()
ADD = {"type": "function", "function": {"name": "add", "parameters": ADD_PARAMETERS}}
COUNTS = {"total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"}


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(FakeLoaded(chat_template=TEMPLATE)) as served:
        yield served


def follow(response: httpx.Response) -> dict[str, Any]:
    """docs/api.md of Ollama: objects with done false, then one with done true, a reason and counts. → all in one"""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/x-ndjson")
    assert response.text.endswith("\n")
    lines = [json.loads(line) for line in response.text.removesuffix("\n").split("\n")]
    said = {"text": "", "thinking": "", "calls": list[Any]()}
    for line in lines:
        assert line["done"] == (line is lines[-1])
        assert (set(line) >= COUNTS) == line["done"]
        message = line.get("message", line)
        said["text"] += message.get("content", message.get("response"))
        said["thinking"] += message.get("thinking", "")
        said["calls"] += message.get("tool_calls", [])
    return lines[-1] | said


def asked(text: str, **fields: Any) -> dict[str, Any]:
    options = {"num_predict": len(text.encode())}
    return {"model": "fake", "messages": [{"role": "user", "content": text}], "options": options} | fields


@pytest.mark.parametrize(
    ("said", "text", "thinking", "num_calls"),
    [
        ("plain text", "plain text", "", 0),
        (CALL, "", "", 1),
        (f"I add.\n{CALL}\n{CALL}", "I add.", "", 2),
        ("<think>\nHm.\n</think>\n\nYes", "Yes", "Hm.", 0),
    ],
)
def test_messages_whole_and_streamed(api: Served, said: str, text: str, thinking: str, num_calls: int) -> None:
    whole = api.ok("/api/chat", **asked(said, tools=[ADD], stream=False))
    streamed = follow(api.post("/api/chat", **asked(said, tools=[ADD])))
    message = whole["message"]
    calls = message.get("tool_calls", [])
    assert (message["content"], message.get("thinking", ""), len(calls)) == (text, thinking, num_calls)
    assert (streamed["text"], streamed["thinking"], len(streamed["calls"])) == (text, thinking, num_calls)
    assert all(call["function"] == {"name": "add", "arguments": {"a": 1}} for call in [*calls, *streamed["calls"]])
    for answer in (whole, streamed):
        assert (answer["done"], answer["done_reason"], answer["model"]) == (True, "length", "fake")
        assert (answer["prompt_eval_count"], answer["eval_count"]) == (len(said) + 1, len(said))


def test_prompts_are_answered(api: Served) -> None:
    body = {"model": "fake:latest", "prompt": "hello", "options": {"num_predict": 5}}
    assert follow(api.post("/api/generate", **body))["text"] == "hello"
    whole = api.ok("/api/generate", **body, stream=False, system="Be brief.")
    assert (whole["response"], whole["model"]) == ("hello", "fake:latest")
    assert [message["role"] for message in TEMPLATE.seen] == ["system", "user"]
    raw = api.ok("/api/generate", **body, stream=False, raw=True)
    assert (raw["response"], raw["prompt_eval_count"]) == ("hell", 6)  # the first token is <bos>
    suffix = api.post("/api/generate", **body, suffix="x")
    assert (suffix.status_code, list(suffix.json())) == (400, ["error"])


def test_a_conversation_becomes_messages(api: Served) -> None:
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "", "thinking": "Hm", "tool_calls": [call, call]},
        {"role": "tool", "content": "2", "tool_name": "add"},
        {"role": "tool", "content": "3"},
    ]
    api.ok("/api/chat", model="fake", messages=messages, options={"num_predict": 1}, stream=False)
    made = [{"id": f"call_{i}", "type": "function", "function": call["function"]} for i in range(2)]
    assert TEMPLATE.seen == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": None, "tool_calls": made, "reasoning_content": "Hm", "reasoning": "Hm"},
        {"role": "tool", "content": "2", "name": "add", "tool_call_id": "call_0"},
        {"role": "tool", "content": "3", "tool_call_id": "call_1"},
    ]


def test_models(api: Served) -> None:
    (model,) = api.client.get("/api/tags").json()["models"]
    assert (model["name"], model["model"], len(model["digest"])) == ("fake", "fake", 64)
    assert api.client.get("/api/ps").json()["models"][0]["context_length"] == 512
    assert set(api.client.get("/api/version").json()) == {"version"}
    shown = api.ok("/api/show", model="fake:latest")
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert shown["model_info"]["pagoda.context_length"] == 512
    missing = api.post("/api/show", model="other")
    assert (missing.status_code, list(missing.json())) == (404, ["error"])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"options": {"num_ctx": 4096}}, "num_ctx"),
        ({"options": {"repeat_last_n": 64}}, "repeat_last_n"),
        ({"messages": [{"role": "user", "content": "x", "images": ["AA=="]}]}, "images"),
        ({"think": "high"}, "reasoning effort"),
        ({"format": "yaml"}, "format"),
    ],
)
def test_what_is_refused(api: Served, fields: dict[str, Any], says: str) -> None:
    response = api.post("/api/chat", **asked("x") | fields)
    assert response.status_code == 400
    assert list(response.json()) == ["error"]
    assert says in response.json()["error"]


def test_errors_have_the_dialects_shape() -> None:
    with serving(FakeLoaded(), api_keys=("k",)) as served:
        refused = served.client.get("/api/tags")
        assert (refused.status_code, list(refused.json())) == (401, ["error"])
