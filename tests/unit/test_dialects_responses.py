"""OpenAI's /v1/responses: items in and out, the order of its events, and what is kept of a response."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from door_machines import ADD_PARAMETERS, CALL, Echo, follow_responses, named_events, said
from fake_engine import FakeEngine, FakeLoaded
from serving import HANG_S, Served, serving, wait_for

PATH = "/v1/responses"
TEMPLATE = Echo()
ADD = {"type": "function", "name": "add", "parameters": ADD_PARAMETERS, "strict": False}


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(FakeLoaded(chat_template=TEMPLATE)) as served:
        yield served


def asked(text: str, **fields: Any) -> dict[str, Any]:
    return {"input": text, "max_output_tokens": len(text.encode()), "tools": [ADD]} | fields


def streamed(api: Served, **body: Any) -> dict[str, Any]:
    return follow_responses(named_events(api.post(PATH, stream=True, **body)))


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("plain text", [("message", "plain text")]),
        (CALL, [("function_call", '{"a": 1}')]),
        (f"I add.\n{CALL}\n{CALL}", [("message", "I add."), *[("function_call", '{"a": 1}')] * 2]),
        ("<think>\nHm.\n</think>\n\nYes", [("reasoning", "Hm."), ("message", "Yes")]),
        (f"<think>Hm</think>{CALL}", [("reasoning", "Hm"), ("function_call", '{"a": 1}')]),
    ],
)
def test_items_whole_and_streamed(api: Served, text: str, items: list[tuple[str, str]]) -> None:
    for response in (api.ok(PATH, **asked(text)), streamed(api, **asked(text))):
        assert response["id"].startswith("resp_")
        assert [(item["type"], said(item)) for item in response["output"]] == items
        assert response["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        usage = response["usage"]
        assert usage["input_tokens"] == len(text.encode()) + 1
        assert usage["output_tokens"] == len(text.encode())
        assert (usage["output_tokens_details"]["reasoning_tokens"] > 0) == (items[0][0] == "reasoning")


def test_an_answer_that_ends_by_itself_is_complete(api: Served) -> None:
    with serving(FakeLoaded()) as served:
        response = served.ok(PATH, input="hi", max_output_tokens=3)
        assert response["status"] == "incomplete"
    fields = {"input": "hi", "text": {"format": {"type": "text"}}, "metadata": {"a": "b"}, "temperature": 0.5}
    response = api.ok(PATH, **fields, max_output_tokens=2, instructions="Be brief.")
    assert response["metadata"] == {"a": "b"}
    assert (response["temperature"], response["instructions"]) == (0.5, "Be brief.")


def test_items_become_messages(api: Served) -> None:
    api.ok(
        PATH,
        instructions="Be brief.",
        max_output_tokens=1,
        input=[
            {"role": "user", "content": "one"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "I add", "annotations": []}]},
            {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a":1}', "status": "completed"},
            {"type": "function_call", "call_id": "c2", "name": "add", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "2"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "0"}]},
            {"role": "developer", "content": [{"type": "input_text", "text": "Go on"}]},
        ],
    )
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}},
        {"id": "c2", "type": "function", "function": {"name": "add", "arguments": "{}"}},
    ]
    assert TEMPLATE.seen == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "I add", "tool_calls": calls, "reasoning_content": "Hm", "reasoning": "Hm"},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
        {"role": "tool", "content": "0", "tool_call_id": "c2"},
        {"role": "system", "content": "Go on"},
    ]


def test_a_response_is_gone_on_with(api: Served) -> None:
    first = api.ok(PATH, input="one", instructions="Be brief.", max_output_tokens=3)
    second = streamed(api, input="two", previous_response_id=first["id"], max_output_tokens=3)
    assert TEMPLATE.seen == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "two"},
    ]
    assert second["previous_response_id"] == first["id"]
    api.ok(PATH, input="three", previous_response_id=second["id"], max_output_tokens=1, instructions="Sing.")
    assert [message["content"] for message in TEMPLATE.seen] == ["Sing.", "one", "one", "two", "two", "three"]


def test_which_response_is_gone_on_with_is_read_not_guessed(api: Served) -> None:
    first = api.ok(PATH, input="one", max_output_tokens=3)
    other = api.ok(PATH, input="other", max_output_tokens=5)
    plain = json.dumps({"previous_response_id": first["id"], "input": "two", "max_output_tokens": 1})
    escaped = plain.replace("previous_", "previous\\u005f")
    assert api.client.post(PATH, content=escaped).status_code == 200
    assert [message["content"] for message in TEMPLATE.seen] == ["one", "one", "two"]
    nested = {"metadata": {"previous_response_id": other["id"]}, "input": "two", "max_output_tokens": 1}
    api.ok(PATH, **nested)
    assert [message["content"] for message in TEMPLATE.seen] == ["two"]
    api.ok(PATH, **nested, previous_response_id=first["id"])
    assert [message["content"] for message in TEMPLATE.seen] == ["one", "one", "two"]


def test_calls_and_their_results_are_gone_on_with(api: Served) -> None:
    first = api.ok(PATH, **asked(CALL))
    call = first["output"][0]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "2"}
    api.ok(PATH, input=[result], previous_response_id=first["id"], max_output_tokens=1)
    made, got = TEMPLATE.seen[1:]
    assert made["tool_calls"][0]["id"] == got["tool_call_id"] == call["call_id"]


def test_what_is_kept_can_be_had_again_and_deleted(api: Served) -> None:
    made = api.ok(PATH, input="one", max_output_tokens=3)
    assert api.client.get(f"{PATH}/{made['id']}").json() == made
    assert api.post(f"{PATH}/{made['id']}/cancel").status_code == 400
    deleted = api.client.delete(f"{PATH}/{made['id']}").json()
    assert deleted == {"id": made["id"], "object": "response", "deleted": True}
    assert api.client.get(f"{PATH}/{made['id']}").status_code == 404
    error = api.refused(PATH, input="x", previous_response_id=made["id"])
    assert error["code"] == "previous_response_not_found"
    kept_not = api.ok(PATH, input="one", max_output_tokens=3, store=False)
    assert api.client.get(f"{PATH}/{kept_not['id']}").status_code == 404


def test_other_keys_see_nothing() -> None:
    with serving(FakeLoaded(), api_keys=("a", "b")) as served:
        ours, theirs = ({"Authorization": f"Bearer {key}"} for key in "ab")
        made = served.client.post(PATH, json={"input": "x", "max_output_tokens": 1}, headers=ours).json()
        assert served.client.get(f"{PATH}/{made['id']}", headers=ours).status_code == 200
        assert served.client.get(f"{PATH}/{made['id']}", headers=theirs).status_code == 404
        body = {"input": "x", "previous_response_id": made["id"]}
        assert served.client.post(PATH, json=body, headers=theirs).status_code == 400
        assert served.client.delete(f"{PATH}/{made['id']}", headers=theirs).status_code == 404


def test_in_the_background() -> None:
    engine = FakeEngine()
    with serving(FakeLoaded(engine)) as served:
        engine.gate.clear()
        made = served.ok(PATH, input="one", max_output_tokens=3, background=True)
        assert made["status"] == "in_progress"
        assert served.client.get(f"{PATH}/{made['id']}").json()["status"] == "in_progress"
        assert served.refused(PATH, input="x", previous_response_id=made["id"])["param"] == "previous_response_id"
        engine.gate.set()
        wait_for(lambda: served.client.get(f"{PATH}/{made['id']}").json()["status"] == "incomplete")
        assert served.ok(PATH, input="x", previous_response_id=made["id"], max_output_tokens=1)


@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_a_background_response_is_ended(how: str) -> None:
    engine = FakeEngine(step_s=0.002)
    with serving(FakeLoaded(engine)) as served:
        made = served.ok(PATH, input="one", max_output_tokens=500, background=True)
        wait_for(lambda: engine.running)
        if how == "cancel":
            assert served.ok(f"{PATH}/{made['id']}/cancel")["status"] == "cancelled"
            assert served.client.get(f"{PATH}/{made['id']}").json()["status"] == "cancelled"
            assert served.ok(f"{PATH}/{made['id']}/cancel")["status"] == "cancelled"
        else:
            assert served.client.delete(f"{PATH}/{made['id']}").status_code == 200
        wait_for(lambda: not engine.running)
        assert engine.aborted


def test_a_shutdown_waits_for_the_background() -> None:
    engine = FakeEngine()
    with serving(FakeLoaded(engine), shutdown_timeout=HANG_S) as served:
        engine.gate.clear()
        served.ok(PATH, input="one", max_output_tokens=100, background=True)
        served.stop()
        wait_for(lambda: served.server.service.phase == "draining")
        engine.gate.set()
        wait_for(lambda: engine.num_steps == 100)
        wait_for(lambda: not served.server.service.num_active)
        assert not engine.aborted


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
        ({"reasoning": {"effort": "high"}}, "reasoning_effort"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_is_refused(api: Served, fields: dict[str, Any], param: str) -> None:
    assert api.refused(PATH, **{"input": "x"} | fields)["param"] == param


def test_logprobs_come_with_the_text(api: Served) -> None:
    body = {"input": "ab", "max_output_tokens": 2, "include": ["message.output_text.logprobs"], "top_logprobs": 1}
    for response in (api.ok(PATH, **body), streamed(api, **body)):
        tokens = [entry["token"] for entry in response["output"][0]["content"][0]["logprobs"]]
        assert tokens == ["a", "b"]
