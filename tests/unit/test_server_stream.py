"""Server-sent events as clients and proxies need them: comments while nothing comes, and errors that are seen.

The format is the HTML standard's (section 9.2.6): a line that begins with a colon is a comment, and an event ends with
a blank line; one without it is lost.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import openai
import pytest

from fake_engine import FakeEngine, FakeLoaded, expected_text
from pagoda.errors import EngineError
from pagoda.server.stream import COMMENTS, EventStream
from raw_http import connected, parse, post, read_all
from serving import Served, events, serving, wait_for


def parts_of(text: str) -> list[str]:
    """Events and comments, each with the blank line that ends it."""
    assert text.endswith("\n\n")
    return text[:-2].split("\n\n")


def silent_for(served: Served, seconds: float, **body: object) -> str:
    """The stream of an engine that takes its first step after `seconds`."""
    engine: FakeEngine = served.loaded.engine
    engine.gate.clear()
    with served.client.stream("POST", "/v1/completions", json={"prompt": "abc", "stream": True} | body) as response:
        time.sleep(seconds)
        engine.gate.set()
        return response.read().decode()


def test_comments_while_nothing_comes() -> None:
    with serving(FakeLoaded(), sse_keepalive=0.1) as served:
        parts = parts_of(silent_for(served, 0.55, max_tokens=4))
    comments = [part for part in parts if part.startswith(":")]
    assert 3 <= len(comments) <= 6
    assert parts[: len(comments)] == comments
    texts = [json.loads(part.removeprefix("data: "))["choices"][0]["text"] for part in parts[len(comments) : -1]]
    assert "".join(texts) == expected_text("abc", 4)


def test_no_comments_among_events() -> None:
    with serving(FakeLoaded(FakeEngine(0.03)), sse_keepalive=0.2) as served:
        assert ":" not in {part[0] for part in parts_of(silent_for(served, 0.0, max_tokens=12))}


def test_no_comments_where_none_are_wanted() -> None:
    with serving(FakeLoaded(), sse_keepalive=0.0) as served:
        assert ":" not in {part[0] for part in parts_of(silent_for(served, 0.4))}


def test_the_openai_client_passes_over_comments() -> None:
    with serving(FakeLoaded(FakeEngine(0.12)), sse_keepalive=0.05) as served:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
        chunks = list(client.completions.create(model="fake", prompt="abc", max_tokens=4, stream=True))
        client.close()
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected_text("abc", 4)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_progress_of_the_prompt_where_asked(path: str) -> None:
    """As llama-server writes it: a chunk that brings no text, with `prompt_progress` beside its choices."""
    asked = {"prompt": "abc"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "abc"}]}
    with serving(FakeLoaded()) as served:
        body = asked | {"stream": True, "max_tokens": 4, "return_progress": True}
        chunks = events(served.client.post(path, json=body))
        plain = events(served.client.post(path, json=body | {"return_progress": False}))
        assert "prompt_progress" not in served.ok(path, **body | {"stream": False})
    progress = chunks[0].pop("prompt_progress")
    assert progress["total"] > 2
    assert progress | {"total": 0} == {"total": 0, "cache": 1, "processed": 2, "time_ms": 250}
    (choice,) = chunks[0]["choices"]
    assert (choice.get("text") or choice.get("delta") or "") == ""
    assert [chunk["choices"] for chunk in chunks[1:]] == [chunk["choices"] for chunk in plain]


def test_errors_are_events_of_their_own() -> None:
    """What came before is kept, and both events are ended by a blank line."""
    engine = FakeEngine(0.02)
    with serving(FakeLoaded(engine)) as served, connected(served.url) as sock:
        sock.sendall(post("/v1/completions", "Connection: close", prompt="abc", max_tokens=500, stream=True))
        wait_for(lambda: engine.running)
        served.server.service.model().bridge.close_all(EngineError("shutting down"))
        *_, error, done = parts_of(parse(read_all(sock)).body.decode())
    assert json.loads(error.removeprefix("data: "))["error"]["message"]
    assert done == "data: [DONE]"


def test_the_openai_client_raises_what_a_stream_tells() -> None:
    engine = FakeEngine(0.02)
    with serving(FakeLoaded(engine)) as served:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(model="fake", prompt="abc", max_tokens=500, stream=True)
        next(iter(stream))
        served.server.service.model().bridge.close_all(EngineError("shutting down"))
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        client.close()


def test_before_the_stream_starts_errors_are_json() -> None:
    with serving(FakeLoaded()) as served:
        response = served.post("/v1/completions", prompt="x" * 600, stream=True)
        assert response.status_code == 400
        assert response.headers["content-type"] == "application/json"
        assert response.json()["error"]["code"] == "context_length_exceeded"


def test_comments_end_with_the_events() -> None:
    """However the beat falls, nothing is sent after the last part."""

    async def events() -> AsyncIterator[bytes]:
        for _ in range(20):
            await asyncio.sleep(0.003)
            yield b"data: x\n\n"
        raise EngineError("over")

    async def scenario() -> list[bytes]:
        sent: list[dict[str, object]] = []

        async def send(message: object) -> None:
            await asyncio.sleep(0)
            sent.append(message)  # type: ignore[arg-type]

        async def receive() -> dict[str, str]:
            await asyncio.Event().wait()
            raise AssertionError

        await EventStream(events(), lambda: None, 0.0005)({"type": "http"}, receive, send)  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        assert [message.get("more_body") for message in sent[1:]] == [True] * (len(sent) - 2) + [False]
        return [message["body"] for message in sent[1:]]  # type: ignore[misc]

    bodies = asyncio.run(scenario())
    assert COMMENTS["text/event-stream"] in bodies
    assert b"over" in bodies[-2]


def test_headers_come_before_the_first_token() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    body = {"prompt": "a", "stream": True}
    with serving(FakeLoaded(engine)) as served, served.client.stream("POST", "/v1/completions", json=body) as response:
        assert response.headers["cache-control"] == "no-cache"
        engine.gate.set()
