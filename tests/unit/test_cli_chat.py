"""A conversation in the terminal, over the real application with a fake engine."""

import asyncio
import io
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fake_engine import FakeLoaded
from pagoda.cli import chat as module
from pagoda.cli.chat import ChatSettings, Conversation, ShownAnswer, describe_speed, explain
from pagoda.cli.endpoint import LocalEndpoint
from pagoda.cli.main import app
from pagoda.client import HttpError
from pagoda.config import ServerSettings
from pagoda.server.app import create_app


class Recording(LocalEndpoint):
    bodies: list[dict[str, Any]]

    def events(self, path: str, body: bytes) -> Any:
        self.bodies.append(json.loads(body))
        return super().events(path, body)


@pytest.fixture
def loaded() -> Iterator[FakeLoaded]:
    loaded = FakeLoaded()
    yield loaded
    loaded.close()


@pytest.fixture
def endpoint(loaded: FakeLoaded, monkeypatch: pytest.MonkeyPatch) -> Recording:
    endpoint = Recording(create_app(loaded, ServerSettings()))
    endpoint.bodies = []

    @contextmanager
    def endpoints(*_: object) -> Iterator[Any]:
        yield lambda: endpoint

    monkeypatch.setattr(module, "open_endpoints", endpoints)
    return endpoint


def talk(*lines: str, flags: tuple[str, ...] = ()) -> str:
    result = CliRunner().invoke(app, ["chat", *flags], input="".join(line + "\n" for line in lines))
    assert result.exit_code == 0, result.output
    return result.output


def test_the_conversation_is_remembered_until_it_is_reset(endpoint: Recording) -> None:
    output = talk("one", "two", "/reset", "three", "/system Be kind.", "four", "/system", flags=("--max-tokens", "5"))
    asked = [[(m["role"], m["content"]) for m in body["messages"]] for body in endpoint.bodies]
    assert asked == [
        [("user", "one")],
        [("user", "one"), ("assistant", "user:"), ("user", "two")],
        [("user", "three")],
        [("system", "Be kind."), ("user", "four")],
    ]
    assert output.count("user:") == 3
    assert "5 tokens, " in output
    assert "first after" in output
    assert output.rstrip().endswith("Be kind.")


def test_commands_and_the_end(endpoint: Recording) -> None:
    output = talk("/help", "", "/nonsense", "/quit", "never sent")
    assert "/reset" in output
    assert "no such command: /nonsense" in output
    assert endpoint.bodies == []


def test_sampling_flags_reach_the_request(endpoint: Recording) -> None:
    talk("x", flags=("--temperature", "0", "--top-p", "0.5", "--max-tokens", "2", "--system", "S"))
    body = endpoint.bodies[0]
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0, 0.5, 2)
    assert body["messages"][0] == {"role": "system", "content": "S"}
    assert "model" not in body


def test_schema_tools_and_effort_reach_the_request(endpoint: Recording, tmp_path: Path) -> None:
    schema, tools = tmp_path / "schema.json", tmp_path / "tools.json"
    schema.write_text('{"type": "object"}')
    tools.write_text('[{"type": "function", "function": {"name": "f"}}]')
    talk("x", flags=("--schema", str(schema), "--max-tokens", "1"))
    assert endpoint.bodies[0]["response_format"]["json_schema"]["schema"] == {"type": "object"}
    talk("x", flags=("--tools", str(tools), "--reasoning-effort", "none", "--max-tokens", "1"))
    assert endpoint.bodies[1]["tools"] == [{"type": "function", "function": {"name": "f"}}]
    assert endpoint.bodies[1]["parallel_tool_calls"] is False
    assert endpoint.bodies[1]["reasoning_effort"] == "none"
    tools.write_text("[")
    result = CliRunner().invoke(app, ["chat", "--tools", str(tools)], input="x\n")
    assert result.exit_code != 0
    assert "is not JSON" in result.output or "is not JSON" in str(result.exception)


def test_what_is_typed_after_a_call_is_its_result() -> None:
    """And what is thought is shown, but not kept."""
    out = io.StringIO()
    shown = ShownAnswer(Console(file=out, width=200))
    for delta in (
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm."},
        {"content": "I ask."},
        {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
    ):
        shown.take(delta)
    assert out.getvalue() == 'Hm.\nI ask.\nf {"a": 1}'
    talk = Conversation(ChatSettings(), None)
    talk.add("question", shown)
    asked = json.loads(talk.body("42"))["messages"]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assert asked[1:] == [
        {"role": "assistant", "content": "I ask.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    talk.reset()
    assert json.loads(talk.body("new"))["messages"] == [{"role": "user", "content": "new"}]


def test_markup_in_answers_is_shown_as_it_is(endpoint: Recording) -> None:
    assert "[bold]x" in talk("[bold]x", flags=("--max-tokens", "14"))


def test_a_refused_line_is_not_remembered(endpoint: Recording) -> None:
    output = talk("x" * 600, "y", flags=("--max-tokens", "2"))
    assert "context length is 512 tokens" in output
    assert "/reset begins a new conversation" in " ".join(output.split())  # the terminal breaks lines
    assert [m["content"] for m in endpoint.bodies[1]["messages"]] == ["y"]


def test_ctrl_c_stops_the_answer_not_the_program(loaded: FakeLoaded, endpoint: Recording) -> None:
    loaded.engine.step_s = 0.02

    def interrupt() -> None:
        while loaded.engine.num_steps < 5:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    output = talk("a long one", "short", flags=("--max-tokens", "200"))
    assert "stopped" in output
    assert len(endpoint.bodies) == 2
    kept = endpoint.bodies[1]["messages"][1]
    assert kept["role"] == "assistant"
    assert 0 < len(kept["content"]) < 100
    deadline = time.monotonic() + 5
    while not loaded.engine.aborted and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(loaded.engine.aborted) == 1  # the engine does not go on for nobody


def test_a_failing_application_is_an_error_not_a_hang() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(LocalEndpoint(broken).post("/", b"{}"))


def test_speed_and_errors_in_words() -> None:
    assert describe_speed(11, 0.5, 2.0) == "11 tokens, 5.0 tokens/s, first after 500 ms"
    assert describe_speed(1, 0.5, 0.0) == "1 tokens, first after 500 ms"
    assert explain(HttpError("502: <html>", 502, b"<html>")) == "502: <html>"
    assert explain(HttpError("400: ...", 400, b'{"error":{"message":"no"}}')) == "no"
