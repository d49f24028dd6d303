"""Predicted outputs and the `speculation` field, from the body to the engine's request, and back into usage."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from fake_engine import fake_text
from pagoda.server.reading import Reader, ReaderLimits, Reading
from pagoda.server.requests import make_call
from pagoda.types import Request

LIMITS = ReaderLimits("fake", 64, 10_000)
MESSAGE = {"role": "user", "content": "Hi"}


def requested(kind: str = "chat", **body: Any) -> Request:
    asked = {"messages": [MESSAGE]} if kind == "chat" else {"prompt": "Hi"}
    reading = Reader(fake_text(), LIMITS).read(kind, orjson.dumps(asked | body))
    assert isinstance(reading, Reading)
    call = make_call(reading.spec, reading.prompts, id="x", tenant="", prediction=reading.prediction)
    return call.requests[0]


@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize("content", ["abc", [{"type": "text", "text": "a"}, {"type": "text", "text": "bc"}]])
def test_a_prediction_becomes_tokens_without_bos(kind: str, content: Any) -> None:
    assert requested(kind, prediction={"type": "content", "content": content}).prediction == tuple(b"abc")
    assert requested(kind).prediction is None


def test_of_a_long_prediction_as_much_is_read_as_an_answer_could_be() -> None:
    found = requested(prediction={"type": "content", "content": "a" * 3_000_000}).prediction
    assert found is not None
    assert len(found) <= LIMITS.max_context


@pytest.mark.parametrize(
    ("speculation", "most"), [(None, None), ({}, None), ({"enabled": False}, 0), ({"max_tokens": 3}, 3)]
)
def test_speculation_can_be_bounded_or_off(speculation: Any, most: int | None) -> None:
    assert requested(speculation=speculation).max_draft_tokens == most


@pytest.mark.parametrize(
    "wrong",
    [
        {"prediction": "abc"},
        {"prediction": {"type": "content"}},
        {"speculation": {"max_tokens": 0}},
        {"speculation": 3},
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        requested(**wrong)
