"""The same conversation through every door: the same prompt and answer, and a sequence that ends with its client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from door_table import GENERATE, NEXT, RENDERED, SYSTEM, Door, doors, of_lines
from fake_engine import FakeEngine, FakeLoaded
from raw_http import connected, post
from serving import Served, serving, wait_for

DOORS = doors("fake", RENDERED, list(RENDERED.encode()))


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
            engine.gate.clear()
            gone_at = engine.num_steps
        wait_for(lambda: engine.abort_steps)
        assert engine.abort_steps[0] <= gone_at + 1
        engine.gate.set()
        wait_for(lambda: not engine.running)


def broken_stream(door: Door) -> str:
    """A stream that ends because the model's file has changed."""
    engine = FakeEngine(step_s=0.01)
    body = door.asking(400, stream=True)
    with serving(FakeLoaded(engine)) as served, served.client.stream("POST", door.path, json=body) as response:
        wait_for(lambda: engine.running)
        served.server.service.give_up("the file has changed")
        return response.read().decode()


def test_errors_in_a_stream_are_told_in_each_dialect() -> None:
    last = {name: broken_stream(door) for name, door in [*DOORS.items(), ("ollama generate", GENERATE)]}
    assert '"response.failed"' in last["responses"].split("\n\n")[-2]
    assert "event: error" in last["messages"].split("\n\n")[-2]
    for name in ("ollama chat", "ollama generate"):
        assert json.loads(last[name].splitlines()[-1]) == {"error": "the file has changed"}
    for name in ("chat", "completions", "llama-server"):
        assert '"error":{"message":"the file has changed"' in last[name]
