"""`deadline_ms`: refused at once where it cannot be met, dropped where it has become hopeless."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from fake_engine import FakeEngine, FakeLoaded
from pagoda.errors import DeadlineError
from pagoda.observe.history import History
from pagoda.observe.metrics import Metrics
from pagoda.observe.roofline import Roofline
from pagoda.server.admission import Admission, PromptSpeed
from pagoda.server.call import Call, DeltaStream
from pagoda.server.deadlines import Deadlines
from pagoda.types import Request, SamplingParams, StepResult
from serving import events, serving, wait_for


def layer(waiting: int = 0) -> tuple[Deadlines, Metrics]:
    """1,000 prompt tokens a second, 20 ms between two tokens."""
    speed, history, metrics = PromptSpeed(), History(), Metrics("m", 4096)
    step = StepResult(num_prompt_tokens=1000, step_s=1.0, inter_token_s=(0.02,))
    speed.record(step)
    history.record(step)
    admission = Admission(9, 99999, speed)
    if waiting:
        admission.tokens.enter(waiting)
    return Deadlines(admission, speed, history, metrics, clock=lambda: 100.0), metrics


def call(seconds: float | None, prompt: int = 500, **params: Any) -> Call:
    request = Request("r", (1,) * prompt, SamplingParams(**params), 100.0)
    return Call("r", (request,), deadline=None if seconds is None else 100.0 + seconds)


async def passed(given: Call) -> DeltaStream:
    return given  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("seconds", "waiting", "max_tokens", "is_met"),
    [
        (0.6, 0, 1, True),  # half a second for the prompt
        (0.4, 0, 1, False),
        (2.6, 0, 101, True),  # 0.5 + 100 · 0.02
        (2.4, 0, 101, False),
        (2.6, 300, 101, False),  # 0.3 of waiting
        (0.6, 0, None, True),  # only the first token is promised
        (None, 300, 101, True),
    ],
)
def test_what_can_be_met(seconds: float | None, waiting: int, max_tokens: int | None, is_met: bool) -> None:
    deadlines, metrics = layer(waiting)
    given = call(seconds, max_tokens=max_tokens)
    if is_met:
        found: Any = asyncio.run(deadlines(given, passed))
        assert found == (given if seconds is None else replace(given, start_by=100.0 + seconds - 0.5))
        return
    with pytest.raises(DeadlineError, match="500 for the prompt") as caught:
        asyncio.run(deadlines(given, passed))
    assert caught.value.retry_after == pytest.approx(waiting / 1000)
    assert metrics.server.http_rejected.values[("deadline",)] == 1


def test_before_any_step_the_planners_figures_count() -> None:
    """1e9 / 2e6 operations a token, of which half is reached: 250 tokens/s. A step reads 1e8 bytes at 1e10 a second."""
    speed, history = PromptSpeed(), History()
    history.roofline = Roofline(1e8, 0, 2e6, bandwidth=1e10, peak=1e9)
    deadlines = Deadlines(Admission(9, 99999, speed), speed, history, Metrics("m", 64), clock=lambda: 100.0)
    given = call(3.1, max_tokens=101)  # 500 / 250 + 100 · 0.01
    found: Any = asyncio.run(deadlines(given, passed))
    assert found.start_by == pytest.approx(101.1)
    with pytest.raises(DeadlineError, match="3000 ms"):
        asyncio.run(deadlines(call(2.9, max_tokens=101), passed))


def test_an_unreachable_deadline_is_a_429() -> None:
    with serving(FakeLoaded()) as served:
        response = served.post("/v1/completions", prompt="a" * 400, max_tokens=1, deadline_ms=10)
        assert response.status_code == 429  # 200 tokens a second are thought possible before a step has told
        assert response.json()["error"]["code"] == "deadline_unreachable"
        assert response.json()["error"]["param"] == "deadline_ms"
        assert served.ok("/v1/completions", prompt="a", max_tokens=1, deadline_ms=60_000)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_late_is_dropped(stream: bool) -> None:
    with serving(FakeLoaded(engine=FakeEngine(step_s=0.02))) as served:
        response = served.post("/v1/completions", prompt="ab", max_tokens=400, deadline_ms=400, stream=stream)
        if stream:
            error = events(response)[-1]["error"]
        else:
            assert response.status_code == 504
            error = response.json()["error"]
        assert error["code"] == "deadline_exceeded"
        wait_for(lambda: served.loaded.engine.aborted)


def test_what_has_not_begun_in_time_is_dropped_before_its_deadline() -> None:
    """The engine stands still; 3 tokens take 15 ms at 200 a second, so the answer is hopeless 15 ms before."""
    engine = FakeEngine()
    with serving(FakeLoaded(engine=engine)) as served:
        engine.gate.clear()
        response = served.post("/v1/completions", prompt="ab", max_tokens=1, deadline_ms=300)
        engine.gate.set()
        assert response.status_code == 504
