"""What the API refuses, and how it says so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fake_engine import FakeLoaded
from pagoda.server.unsupported_fields import NEUTRAL
from serving import Served, serving

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(FakeLoaded()) as served:
        yield served


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_parts_that_are_no_text_are_refused_as_such(api: Served, kind: str) -> None:
    part = {"type": kind, kind: {"url": "https://example.org/a"}}
    error = api.refused("/v1/chat/completions", messages=[{"role": "user", "content": [part]}])
    assert error["message"] == f"Invalid 'messages[0].content[0].type': models get text here, no {kind!r}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("audio", {"voice": "alloy"}),
        ("modalities", ["text", "audio"]),
        ("store", True),
        ("use_beam_search", True),
        ("guided_whitespace_pattern", "[ ]"),
        ("chat_template", "{{ messages }}"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_unsupported_fields_are_named(api: Served, path: str, field: str, value: object) -> None:
    body = CHAT if "chat" in path else {"prompt": "abc"}
    error = api.refused(path, **body, **{field: value})
    assert error["param"] == field
    assert error["code"] == "unsupported_parameter"
    assert field in error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "auto"),
        ("reasoning_effort", "high"),
        ("thinking_token_budget", 5),
    ],
)
def test_fields_of_conversations_are_not_of_completions(api: Served, field: str, value: object) -> None:
    assert api.refused("/v1/completions", prompt="abc", **{field: value})["param"] == field
    api.ok("/v1/completions", prompt="abc", **{field: None})


def test_neutral_values_pass(api: Served) -> None:
    neutral = {name: values[-1] for name, values in NEUTRAL.items() if values}
    api.ok("/v1/chat/completions", **CHAT, **neutral)
    api.ok("/v1/chat/completions", **CHAT, **dict.fromkeys(NEUTRAL))


def test_harmless_fields_pass(api: Served) -> None:
    harmless = {"user": "u", "metadata": {"a": "b"}, "service_tier": "auto", "prompt_cache_key": "k", "store": False}
    api.ok("/v1/chat/completions", **CHAT, **harmless)


def test_null_means_default(api: Served) -> None:
    fields = ("temperature", "top_p", "n", "stop", "seed", "logprobs", "top_logprobs", "stream", "stream_options",
              "logit_bias", "max_completion_tokens", "presence_penalty", "frequency_penalty", "top_k")  # fmt: skip
    answer = api.ok("/v1/chat/completions", **CHAT, **dict.fromkeys(fields))
    assert answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temprature": 1}, "temprature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "3"}, "max_tokens"),
        ({"stream": 1}, "stream"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"request_id": "with space"}, "request_id"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"stop_token_ids": [100_000]}, "stop_token_ids"),
        ({"seed": 2**64}, "seed"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"min_tokens": 5, "max_tokens": 3}, "min_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": ""}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "content": "Hi", "colour": "red"}]}, "messages[0].colour"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"cache_salt": ""}, "cache_salt"),
    ],
)
def test_bad_chat_fields_are_named(api: Served, fields: dict[str, Any], param: str) -> None:
    error = api.refused("/v1/chat/completions", **(CHAT | fields))
    assert error["type"] == "invalid_request_error"
    assert error["param"] is not None
    assert error["param"].startswith(param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [1000]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "", "add_special_tokens": False}, "prompt"),
        ({"prompt": ["a"] * 20, "n": 100}, "n"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
    ],
)
def test_bad_completion_fields_are_named(api: Served, fields: dict[str, Any], param: str) -> None:
    assert (api.refused("/v1/completions", **fields)["param"] or "").startswith(param)


def test_context_length(api: Served) -> None:
    error = api.refused("/v1/completions", prompt="x" * 100, max_tokens=500)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")
    assert "512" in error["message"]
    error = api.refused("/v1/chat/completions", messages=[{"role": "user", "content": "x" * 600}])
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")


def test_unknown_model(api: Served) -> None:
    error = api.refused("/v1/chat/completions", status=404, **CHAT, model="gpt-5")
    assert (error["code"], error["type"]) == ("model_not_found", "invalid_request_error")
    assert api.client.get("/v1/models/gpt-5").status_code == 404
    assert api.client.get("/v1/models/gpt-5").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"text"', b"null", b'{"prompt": NaN}', b'{"prompt": "\\ud800"}', b"\xff\xfe", b"[" * 5000],
)
def test_broken_json(api: Served, body: bytes) -> None:
    response = api.client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_the_content_type_does_not_matter(api: Served) -> None:
    """`curl -d` sends JSON as a form."""
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert api.client.post("/v1/completions", content=b'{"prompt": "abc"}', headers=form).status_code == 200


def test_unknown_routes_have_the_same_shape(api: Served) -> None:
    assert api.client.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    response = api.client.get("/v1/completions")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert response.json()["error"]["message"] == "/v1/completions takes POST, not GET"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/chat/completions", "did you mean /v1/chat/completions?"),
        ("/v1/v1/chat/completions", "did you mean /v1/chat/completions?"),
        ("/v1/chat/completion", "did you mean /v1/chat/completions?"),
        ("/v1/images/generations", "/docs lists what there is"),
    ],
)
def test_a_path_that_there_is_not_says_which_may_be_meant(api: Served, path: str, says: str) -> None:
    response = api.client.post(path, json={})
    assert response.status_code == 404
    assert response.json()["error"]["message"] == f"there is no {path} here; {says}"


def test_model_without_template() -> None:
    with serving(FakeLoaded(chat_template=None, no_chat_reason="no template for this architecture")) as served:
        error = served.refused("/v1/chat/completions", **CHAT)
        assert "no template for this architecture" in error["message"]
        served.ok("/v1/completions", prompt="abc")


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x" * 100, "max_tokens": 500},
        {"prompt": "x" * 600},
        {"prompt": "x" * 600_000},
        {"prompt": [1] * 600},
        {"prompt": "x", "max_tokens": 100_000},
        {"prompt": "x" * 511, "max_tokens": 1},
    ],
)
def test_context_errors_are_in_openais_words(api: Served, body: dict[str, Any]) -> None:
    """LiteLLM falls back to a model of a longer context where it reads these, in whatever case."""
    error = api.refused("/v1/completions", **body)
    assert error["message"].startswith("This model's maximum context length is 512 tokens. However, ")
    assert error["code"] == "context_length_exceeded"
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("role", ["system", "developer", "user"])
@pytest.mark.parametrize("message", [{}, {"content": None}])
def test_who_says_nothing_is_refused(role: str, message: dict[str, Any]) -> None:
    with serving(FakeLoaded()) as served:
        refused = served.refused("/v1/chat/completions", messages=[{"role": role, **message}])
        assert f"role {role} needs a content" in refused["message"]
        served.ok("/v1/chat/completions", messages=[{"role": role, "content": ""}], max_tokens=1)


def test_temperature_is_bounded_as_each_api_says() -> None:
    messages = [{"role": "user", "content": "hi"}]
    with serving(FakeLoaded()) as served:
        for path, body in [
            ("/v1/chat/completions", {"messages": messages}),
            ("/v1/completions", {"prompt": "a"}),
            ("/v1/responses", {"input": "a"}),
            ("/v1/messages", {"messages": messages, "max_tokens": 2}),
        ]:
            few = {} if path == "/v1/responses" else {"max_tokens": 2}
            served.ok(path, **{**body, **few, "temperature": 2})
            response = served.post(path, **{**body, **few, "temperature": 9})
            assert response.status_code == 400
            assert "2" in response.json()["error"]["message"]
        assert "/completion" in served.refused("/v1/completions", prompt="a", temperature=9)["message"]
        served.ok("/completion", prompt="a", n_predict=2, temperature=9)
        options = {"temperature": 9, "num_predict": 2}
        served.ok("/api/chat", model="fake", messages=messages, stream=False, options=options)
