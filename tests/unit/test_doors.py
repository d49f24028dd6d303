"""The same conversation through every door: the same prompt and answer, and a sequence that ends with its client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from door_machines import named_events
from fake_engine import FakeEngine, FakeLoaded
from raw_http import connected, post
from serving import Served, events, serving, wait_for

SYSTEM, QUESTION, EARLIER, NEXT = "Be brief.", "Who are you?", "A model.", "And now?"
RENDERED = f"system: {SYSTEM}\nuser: {QUESTION}\nassistant: {EARLIER}\nuser: {NEXT}\n> "
TURNS = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": EARLIER},
    {"role": "user", "content": NEXT},
]
ALL = [{"role": "system", "content": SYSTEM}, *TURNS]


def of_lines(response: httpx.Response) -> list[Any]:
    return [json.loads(line) for line in response.text.splitlines()]


def of_llama(response: httpx.Response) -> list[Any]:
    return [json.loads(part.removeprefix("data: ")) for part in response.text.split("\n\n") if part]


@dataclass(frozen=True)
class Door:
    """How the conversation is asked here, and where an answer has its text."""

    path: str
    body: dict[str, Any]
    limit: tuple[str, ...]  # the field that bounds the answer
    whole: Callable[[Any], str]
    parse: Callable[[httpx.Response], list[Any]]
    piece: Callable[[Any], str]

    def asking(self, limit: int, *, stream: bool) -> dict[str, Any]:
        body = self.body | {"stream": stream}
        if len(self.limit) == 1:
            return body | {self.limit[0]: limit}
        return body | {self.limit[0]: self.body[self.limit[0]] | {self.limit[1]: limit}}


DOORS = {
    "chat": Door("/v1/chat/completions", {"messages": ALL, "temperature": 0}, ("max_tokens",),
                 lambda a: a["choices"][0]["message"]["content"], events,
                 lambda e: e["choices"][0]["delta"].get("content", "")),
    "completions": Door("/v1/completions", {"prompt": RENDERED, "temperature": 0, "add_special_tokens": False},
                        ("max_tokens",), lambda a: a["choices"][0]["text"], events, lambda e: e["choices"][0]["text"]),
    "responses": Door("/v1/responses", {"instructions": SYSTEM, "input": TURNS, "temperature": 0},
                      ("max_output_tokens",), lambda a: a["output"][0]["content"][0]["text"], named_events,
                      lambda e: e["delta"] if e["type"] == "response.output_text.delta" else ""),
    "messages": Door("/v1/messages", {"system": SYSTEM, "messages": TURNS, "temperature": 0}, ("max_tokens",),
                     lambda a: a["content"][0]["text"], named_events,
                     lambda e: e["delta"]["text"] if e["type"] == "content_block_delta" else ""),
    "llama-server": Door("/completion", {"prompt": list(RENDERED.encode()), "temperature": 0}, ("n_predict",),
                         lambda a: a["content"], of_llama, lambda e: e["content"]),
    "ollama chat": Door("/api/chat", {"model": "fake", "messages": ALL, "options": {"temperature": 0}},
                        ("options", "num_predict"), lambda a: a["message"]["content"], of_lines,
                        lambda e: e["message"]["content"]),
}  # fmt: skip
# One message alone is all that /api/generate takes.
GENERATE = Door("/api/generate", {"model": "fake", "prompt": NEXT, "system": SYSTEM, "options": {"temperature": 0}},
                ("options", "num_predict"), lambda a: a["response"], of_lines, lambda e: e["response"])  # fmt: skip


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(FakeLoaded()) as served:
        served.loaded.seen = []
        validate = served.loaded.engine.validate

        def noting(request: Any) -> Any:
            served.loaded.seen.append(request)
            return validate(request)

        served.loaded.engine.validate = noting
        yield served


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", DOORS)
def test_prompts_and_answers_are_the_same(api: Served, name: str, stream: bool) -> None:
    door = DOORS[name]
    response = api.post(door.path, **door.asking(20, stream=stream))
    assert response.status_code == 200, response.text
    text = "".join(map(door.piece, door.parse(response))) if stream else door.whole(response.json())
    request = api.loaded.seen[-1]
    assert bytes(request.prompt_token_ids).decode() == RENDERED
    assert (request.params.temperature, request.params.max_tokens) == (0.0, 20)
    assert text == RENDERED[:20]


@pytest.mark.parametrize("stream", [False, True])
def test_generate_asks_one_message(api: Served, stream: bool) -> None:
    response = api.post(GENERATE.path, **GENERATE.asking(9, stream=stream))
    text = "".join(map(GENERATE.piece, of_lines(response))) if stream else GENERATE.whole(response.json())
    prompt = f"system: {SYSTEM}\nuser: {NEXT}\n> "
    assert bytes(api.loaded.seen[-1].prompt_token_ids).decode() == prompt
    assert text == prompt[:9]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", [*DOORS, "ollama generate"])
def test_a_client_that_goes_away_ends_its_sequence(name: str, stream: bool) -> None:
    """Within a step: after the one that runs while the client goes, none computes the sequence."""
    door = DOORS.get(name, GENERATE)
    engine = FakeEngine(step_s=0.02)
    with serving(FakeLoaded(engine)) as served:
        with connected(served.url) as client:
            client.sendall(post(door.path, **door.asking(400, stream=stream)))
            wait_for(lambda: engine.running)
            if stream:
                client.recv(10)
            gone_at = engine.num_steps
        wait_for(lambda: engine.aborted)
        assert engine.abort_steps[0] <= gone_at + 2
        wait_for(lambda: not engine.running)


def broken_stream(door: Door) -> str:
    """A stream that ends because the model's file has changed."""
    engine = FakeEngine(step_s=0.01)
    body = door.asking(400, stream=True)
    with serving(FakeLoaded(engine)) as served, served.client.stream("POST", door.path, json=body) as response:
        wait_for(lambda: engine.running)
        served.server._service.give_up("the file has changed")
        return response.read().decode()


def test_errors_in_a_stream_are_told_in_each_dialect() -> None:
    last = {name: broken_stream(door) for name, door in [*DOORS.items(), ("ollama generate", GENERATE)]}
    assert '"response.failed"' in last["responses"].split("\n\n")[-2]
    assert "event: error" in last["messages"].split("\n\n")[-2]
    for name in ("ollama chat", "ollama generate"):
        assert json.loads(last[name].splitlines()[-1]) == {"error": "the file has changed"}
    for name in ("chat", "completions", "llama-server"):
        assert '"error":{"message":"the file has changed"' in last[name]
