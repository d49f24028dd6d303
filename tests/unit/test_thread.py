"""The engine on its own thread: submit, abort, drain, stop, and what happens when it breaks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fake_backend import FakeModel, fake_engine
from pagoda.engine.thread import EngineThread
from pagoda.errors import EngineError, RequestError
from pagoda.types import Batch, Delta, FloatArray, Request, SamplingParams, StepResult
from serving import HANG_S

TIMEOUT = HANG_S


class Gate(FakeModel):
    """Computes a step for each `allow`; before the first call, all it is asked to."""

    def __init__(self) -> None:
        super().__init__((None,))
        self.closed_gate = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.gated = False

    def answer(self, batch: Batch) -> FloatArray:
        self.entered.release()
        if self.gated:
            assert self.closed_gate.acquire(timeout=TIMEOUT)
        return super().answer(batch)


class Client:
    """Collects the deltas of its requests."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.threads: set[str] = set()
        self.done = threading.Semaphore(0)
        self.first = threading.Event()

    def __call__(self, delta: Delta) -> None:
        self.deltas.append(delta)
        self.threads.add(threading.current_thread().name)
        self.first.set()
        if delta.finish_reason is not None:
            self.done.release()

    def wait(self, choices: int = 1) -> list[str]:
        """→ finish reasons, once so many choices have ended"""
        for _ in range(choices):
            assert self.done.acquire(timeout=TIMEOUT)
        return [delta.finish_reason for delta in self.deltas if delta.finish_reason is not None]


def request(id: str = "r", prompt: tuple[int, ...] = (5, 9, 20), **params: Any) -> Request:
    return Request(id, prompt, SamplingParams(**{"max_tokens": 5, "ignore_eos": True, **params}), 0.0)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def thread(gate: Gate) -> Iterator[EngineThread]:
    thread = EngineThread(fake_engine(model=gate, max_context=960))
    thread.start()
    yield thread
    gate.gated = False
    gate.closed_gate.release()
    thread.stop()
    assert not thread.alive


def test_requests_from_many_threads_are_all_answered(thread: EngineThread) -> None:
    clients = [Client() for _ in range(20)]

    def one(i: int) -> None:
        thread.submit(request(str(i), n=1 + i % 3), clients[i])

    callers = [threading.Thread(target=one, args=(i,)) for i in range(20)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for i, client in enumerate(clients):
        assert client.wait(1 + i % 3) == ["length"] * (1 + i % 3)
        assert len(client.deltas) == 5 * (1 + i % 3)
        assert client.threads == {"pagoda-engine"}
    assert thread.wait_idle(TIMEOUT)
    assert thread.num_pending == 0


def test_it_sleeps_without_work_and_wakes_for_it(thread: EngineThread, gate: Gate) -> None:
    for id in "ab":
        client = Client()
        thread.submit(request(id), client)
        client.wait()
        assert thread.wait_idle(TIMEOUT)
        assert len(gate.batches) == 5 * (1 + "ab".index(id))


def test_requests_are_validated_once_before_they_are_submitted(thread: EngineThread) -> None:
    with pytest.raises(RequestError):
        thread.validate(request(temperature=-1.0))
    client = Client()
    thread.submit(thread.validate(request(temperature=1e-6)), client)
    client.wait()
    assert thread.wait_idle(TIMEOUT)


def test_a_request_whose_id_is_taken_ends_with_an_error(thread: EngineThread, gate: Gate) -> None:
    gate.gated = True
    first, second, steps = Client(), Client(), []
    thread.on_step.append(steps.append)
    thread.submit(request(), first)
    thread.submit(request(n=2), second)
    gate.gated = False
    gate.closed_gate.release()
    assert second.wait(2) == ["error", "error"]
    assert "'r'" in (second.deltas[0].error or "")
    assert first.wait() == ["length"]
    assert thread.wait_idle(TIMEOUT)


def test_abort_takes_effect_within_one_step(thread: EngineThread, gate: Gate) -> None:
    gate.gated = True
    client = Client()
    thread.submit(request(max_tokens=None, n=2), client)
    assert gate.entered.acquire(timeout=TIMEOUT)  # the first step is being computed
    thread.abort("r")
    gate.closed_gate.release()
    assert client.wait(2) == ["abort", "abort"]
    assert len(gate.batches) == 1
    assert thread.wait_idle(TIMEOUT)
    assert thread.engine.kv.num_used_blocks == 0


def test_aborting_what_is_unknown_or_over_is_nothing(thread: EngineThread) -> None:
    thread.abort("nobody")
    client = Client()
    thread.submit(request(), client)
    client.wait()
    thread.abort("r")
    thread.submit(request("s"), client)
    assert client.wait() == ["length", "length"]


def test_drain_finishes_what_runs_and_takes_nothing_new(thread: EngineThread, gate: Gate) -> None:
    gate.gated = True
    client = Client()
    thread.submit(request(), client)
    thread.drain()
    assert not thread.wait_idle(0.01)
    with pytest.raises(EngineError, match="shutting down"):
        thread.submit(request("late"), client)
    gate.gated = False
    gate.closed_gate.release()
    assert thread.wait_idle(TIMEOUT)
    assert client.wait() == ["length"]
    assert thread.alive


def test_stop_gives_time_then_aborts(gate: Gate) -> None:
    for timeout, reason in ((None, "length"), (TIMEOUT, "length"), (0.0, "abort")):
        thread = EngineThread(fake_engine(max_context=960))
        client = Client()
        thread.start()
        thread.submit(request(max_tokens=50 if reason == "length" else 900), client)
        assert client.first.wait(TIMEOUT)
        thread.stop(timeout)
        assert client.wait() == [reason]
        assert not thread.alive
        assert thread.num_pending == 0
        assert thread.engine.kv.num_used_blocks == 0


def test_stop_before_start_and_twice() -> None:
    thread = EngineThread(fake_engine())
    thread.stop()
    thread.stop()
    with pytest.raises(EngineError):
        thread.submit(request(), Client())


def test_observers_see_each_step_after_its_sinks(thread: EngineThread) -> None:
    client = Client()
    seen: list[tuple[StepResult, int]] = []
    thread.on_step.append(lambda result: seen.append((result, len(client.deltas))))
    thread.submit(request(), client)
    client.wait()
    assert thread.wait_idle(TIMEOUT)
    thread.stop()
    assert [count for result, count in seen if result.deltas] == [1, 2, 3, 4, 5]


def test_a_broken_sink_ends_its_own_request_only(thread: EngineThread, caplog: pytest.LogCaptureFixture) -> None:
    def broken(delta: Delta) -> None:
        raise ValueError("no one is listening")

    client = Client()
    thread.submit(request("broken", max_tokens=None), broken)
    thread.submit(request("fine"), client)
    assert client.wait() == ["length"]
    assert thread.wait_idle(TIMEOUT)
    assert thread.alive
    assert "no one is listening" in caplog.text


def test_a_broken_observer_breaks_nothing(thread: EngineThread, caplog: pytest.LogCaptureFixture) -> None:
    def broken(result: StepResult) -> None:
        raise ValueError("cannot count")

    client = Client()
    thread.on_step.append(broken)
    thread.submit(request(), client)
    assert client.wait() == ["length"]
    assert "cannot count" in caplog.text


def test_when_the_engine_breaks_everybody_hears_of_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    model = FakeModel((None,), fail_at_step=3)
    thread = EngineThread(fake_engine(model=model, max_num_seqs=2))
    clients = [Client() for _ in range(4)]
    flushed = threading.Event()
    thread.on_step.append(lambda result: flushed.set())
    thread.start()
    for i, client in enumerate(clients):  # two choices run, the others wait, or it is broken before they are in
        try:
            thread.submit(request(str(i), n=2), client)
        except EngineError:
            clients = clients[:i]
            break
    for client in clients:
        reasons = client.wait(2)
        assert reasons == ["error", "error"]
        assert "on fire" in (client.deltas[-1].error or "")
    thread._thread.join(TIMEOUT)
    assert not thread.alive
    assert isinstance(thread.error, RuntimeError)
    assert thread.num_pending == 0
    assert flushed.is_set()
    with pytest.raises(EngineError, match="on fire"):
        thread.submit(request("late"), Client())
