"""The queue's bounds, and what it says to those it turns away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from fake_engine import FakeEngine, FakeLoaded
from pagoda.errors import OverloadedError, RequestError
from pagoda.server.admission import COLD_SPEED, Admission, DrainRate, PromptSpeed
from pagoda.server.call import Call, DeltaStream, Serve, fold
from pagoda.types import Delta, Request, SamplingParams, StepResult
from serving import serving, wait_for


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Scripted:
    """A stream that yields what it is given."""

    def __init__(self, deltas: list[Delta]) -> None:
        self.deltas = deltas
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[list[Delta]]:
        for delta in self.deltas:
            yield [delta]

    def close(self) -> None:
        self.closed = True


def request(name: str, num_tokens: int = 10) -> Request:
    return Request(name, tuple(range(num_tokens)), SamplingParams(), arrival=0.0)


async def answer(call: Call) -> DeltaStream:
    return Scripted([Delta(r.id, 0, "x", (1,), finish_reason=None) for r in call.requests])


class Door:
    """An admission layer around `serve`."""

    def __init__(self, serve: Serve, max_requests: int = 3, max_tokens: int = 100) -> None:
        self.clock = Clock()
        self.speed = PromptSpeed()
        self.layer = Admission(max_requests, max_tokens, self.speed, self.clock)
        self.serve = fold([self.layer], serve)
        self.requests, self.tokens = self.layer.requests, self.layer.tokens

    async def open(self, requests: list[Request]) -> DeltaStream:
        return await self.serve(Call("call", tuple(requests)))


def admission(max_requests: int = 3, max_tokens: int = 100) -> tuple[Door, Clock]:
    door = Door(answer, max_requests, max_tokens)
    return door, door.clock


async def read(stream: DeltaStream) -> None:
    async for _ in stream:
        pass


def test_bounded_by_requests() -> None:
    async def scenario() -> None:
        door, clock = admission(max_requests=3)
        streams = [await door.open([request(str(i))]) for i in range(3)]
        with pytest.raises(OverloadedError, match="3 requests wait"):
            await door.open([request("late")])
        clock.now += 2.0
        await read(streams[0])  # its first token has come: it waits no longer
        await door.open([request("next")])
        assert door.requests.waiting == 3

    asyncio.run(scenario())


def test_bounded_by_prompt_tokens() -> None:
    async def scenario() -> None:
        door, _ = admission(max_tokens=100)
        stream = await door.open([request("a", 90)])
        with pytest.raises(OverloadedError, match="90 prompt tokens wait"):
            await door.open([request("b", 20)])
        await door.open([request("c", 10)])
        stream.close()
        assert door.tokens.waiting == 10

    asyncio.run(scenario())


def test_an_empty_queue_takes_any_prompt() -> None:
    async def scenario() -> None:
        door, _ = admission(max_tokens=100)
        await door.open([request("huge", 5000)])
        with pytest.raises(OverloadedError):
            await door.open([request("small", 1)])

    asyncio.run(scenario())


def test_more_prompts_than_could_ever_wait() -> None:
    async def scenario() -> None:
        door, _ = admission(max_requests=3)
        with pytest.raises(RequestError, match="4 prompts"):
            await door.open([request(str(i)) for i in range(4)])

    asyncio.run(scenario())


def test_closing_leaves_the_queue_once() -> None:
    async def scenario() -> None:
        door, _ = admission()
        stream = await door.open([request("a"), request("b")])
        await read(stream)
        stream.close()
        stream.close()
        assert (door.requests.waiting, door.tokens.waiting) == (0, 0)

    asyncio.run(scenario())


def test_a_refused_submission_leaves_the_queue() -> None:
    async def refuse(call: Call) -> DeltaStream:
        raise RequestError("no")

    async def scenario() -> None:
        door = Door(refuse)
        with pytest.raises(RequestError):
            await door.open([request("a")])
        assert (door.requests.waiting, door.tokens.waiting) == (0, 0)

    asyncio.run(scenario())


def test_retry_after_follows_the_drain() -> None:
    """A hundred tokens leave each second; 300 must leave before the next prompt fits: three seconds."""

    async def scenario() -> float:
        door, clock = admission(max_requests=100, max_tokens=500)
        streams = [await door.open([request(str(i), 50)]) for i in range(10)]
        for stream in streams[:4]:
            clock.now += 0.5
            await read(stream)
        for i in range(4):
            await door.open([request(f"more {i}", 50)])
        with pytest.raises(OverloadedError) as caught:
            await door.open([request("late", 300)])
        return caught.value.retry_after

    assert asyncio.run(scenario()) == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize(
    ("speed", "max_requests", "max_tokens", "expected"),
    [
        (50.0, 1000, 5000, 20.0),  # a thousand tokens too many, fifty a second
        (1e6, 1000, 5000, 1.0),
        (1.0, 1000, 5000, 120.0),
        (None, 1000, 5000, 1000 / COLD_SPEED),
        (50.0, 5, 10**6, 20.0),  # one request of five must leave: a fifth of five thousand tokens
    ],
)
def test_retry_after_of_a_cold_queue(speed: float | None, max_requests: int, max_tokens: int, expected: float) -> None:
    """Nothing has left the queue yet, but steps have told how fast prompts are computed."""

    async def scenario() -> float:
        door, _ = admission(max_requests, max_tokens)
        for i in range(5):
            await door.open([request(str(i), 1000)])
        if speed is not None:
            for _ in range(3):
                door.speed.record(StepResult(num_prompt_tokens=int(speed), step_s=1.0))
                door.speed.record(StepResult(num_generation_tokens=5, step_s=9.0))  # says nothing of prompts
        with pytest.raises(OverloadedError) as caught:
            await door.open([request("late", 1000)])
        return caught.value.retry_after

    assert asyncio.run(scenario()) == pytest.approx(expected)


def test_idle_time_does_not_slow_the_rate() -> None:
    clock = Clock()
    rate = DrainRate(clock=clock)
    for _ in range(3):
        rate.start()
        clock.now += 1.0
        rate.leave(10.0, empty=True)
        clock.now += 1000.0
    assert rate.per_second() == pytest.approx(10.0)


def test_the_rate_forgets() -> None:
    clock = Clock()
    rate = DrainRate(memory=10.0, clock=clock)
    rate.start()
    for work in [100.0] * 60 + [1.0] * 60:
        clock.now += 1.0
        rate.leave(work, empty=False)
    assert rate.per_second() == pytest.approx(1.0, rel=0.3)


def test_429_over_http() -> None:
    engine = FakeEngine()
    with serving(FakeLoaded(engine), max_queue_requests=2) as served:
        engine.gate.clear()
        waiting = [threading.Thread(target=served.ok, args=["/v1/completions"], kwargs={"prompt": "a"}) for _ in "ab"]
        for thread in waiting:
            thread.start()
        model = served.server.service.model()
        wait_for(lambda: model.admission.requests.waiting == 2)
        response = served.post("/v1/completions", prompt="abc", stream=True)
        engine.gate.set()
        for thread in waiting:
            thread.join()
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["code"] == "queue_full"
        assert 'http_requests_rejected_total{model_name="fake",reason="queue_full"} 1.0' in metrics(served)
        served.ok("/v1/completions", prompt="abc")
        assert model.admission.requests.waiting == 0


def metrics(served: object) -> str:
    text: str = served.client.get("/metrics").text  # type: ignore[attr-defined]
    return text
