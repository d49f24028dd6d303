"""On a device that computes by itself, the host works while it does; and what comes out is the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fake_backend import EOS_ID, FakeDevice, FakeModel, FakeStream, fake_engine
from pagoda.engine.engine import Engine
from pagoda.engine.scheduler import Scheduler, StepPlan
from pagoda.types import Batch, Delta, FloatArray, Request, SamplingParams

PROMPT = (5, 9, 20, 11, 30)


def request(id: str = "r", prompt: tuple[int, ...] = PROMPT, **params: Any) -> Request:
    return Request(id, prompt, SamplingParams(**{"temperature": 0.0, "max_tokens": 5, "ignore_eos": True, **params}), 0)


def run(engine: Engine) -> list[Delta]:
    deltas: list[Delta] = []
    while engine.has_work:
        deltas += engine.step().deltas
        engine.check()
    return deltas


class Ending(FakeDevice):
    """Says EOS, or what cannot be sampled, at one position."""

    def __init__(self, position: int, value: float = 100.0) -> None:
        super().__init__((None,))
        self.position, self.value = position, value

    def answer(self, batch: Batch) -> FloatArray:
        logits = super().answer(batch)
        logits[batch.positions[batch.logit_rows] == self.position, EOS_ID] = self.value
        return logits


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the host does, in order: plan, text, and what it asks of the device."""
    entries: list[Any] = []
    plan, push = Scheduler.plan, FakeStream.push

    def planned(self: Scheduler, now: float) -> StepPlan:
        entries.append("plan")
        return plan(self, now)

    def pushed(self: FakeStream, token_id: int) -> str:
        entries.append("text")
        return push(self, token_id)

    monkeypatch.setattr(Scheduler, "plan", planned)
    monkeypatch.setattr(FakeStream, "push", pushed)
    return entries


def test_the_host_works_between_launch_and_wait(log: list[Any]) -> None:
    model = FakeDevice((None,))
    model.log = log
    engine = fake_engine(model=model)
    engine.add(request(max_tokens=4))
    for _ in range(4):
        engine.step()
        log.append("delivered")
    device = {n: (log.index(("launch", n)), log.index(("wait", n))) for n in range(1, 5)}
    assert log[: device[1][0]] == ["plan", ("stage", 1)]
    assert log[device[1][0] + 1 : device[1][1]] == ["plan", ("stage", 2)]
    for n in (2, 3):  # texts and deltas of the step before, then the next step
        assert log[device[n][0] + 1 : device[n][1]] == ["text", "delivered", "plan", ("stage", n + 1)]
    for n in (1, 2, 3):  # the device waits for tokens, and for nothing else
        assert device[n + 1][0] == device[n][1] + 1
    assert log[device[4][0] + 1 : device[4][1]] == ["text", "delivered", "plan"]
    assert log[device[4][1] + 1 :] == ["text", "delivered"], "what ends by length is not computed once more"
    assert not engine.has_work


def test_a_cpu_does_one_thing_after_the_other(log: list[Any]) -> None:
    engine = fake_engine()
    engine.add(request(max_tokens=2))
    run(engine)
    assert log == ["plan", "text", "plan", "text"]


@pytest.mark.parametrize("windows", [(None,), (20, None)])
def test_answers_are_those_of_a_cpu(windows: tuple[int | None, ...]) -> None:
    answers = []
    for model in (FakeModel(windows), FakeDevice(windows)):
        engine = fake_engine(windows, [9] * len(windows), model=model, max_num_seqs=3)
        engine.add(request("a", max_tokens=20, temperature=1.0, seed=1))
        engine.add(request("b", PROMPT * 6, max_tokens=9, n=3, temperature=1.0, logprobs=1))
        engine.add(request("c", PROMPT * 4, max_tokens=30, prompt_logprobs=1, ignore_eos=False, stop=("ab", "q")))
        deltas = run(engine)
        found: dict[Any, list[Any]] = {}
        for delta in deltas:
            found.setdefault((delta.request_id, delta.index), []).append(delta)
        answers.append(found)
        assert engine.kv.num_used_blocks == 0
    assert answers[0] == answers[1]


def test_what_ends_unforeseen_is_computed_once_more_and_dropped() -> None:
    model = Ending(position=6)
    engine = fake_engine(model=model)
    engine.add(request("a", ignore_eos=False, max_tokens=9))
    deltas = run(engine)
    assert [delta.finish_reason for delta in deltas] == [None, None, "stop"]
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.completion_tokens == 3
    assert model.log[-1] == ("launch", 4)
    assert len(model.batches) == 3
    engine.add(request("b", max_tokens=2))
    assert [delta.request_id for delta in run(engine)] == ["b", "b"]
    assert engine.kv.num_used_blocks == 0


def test_an_aborted_request_leaves_the_running_step() -> None:
    engine = fake_engine(model=FakeDevice((None,)))
    engine.add(request("a"))
    engine.add(request("b"))
    engine.step()
    assert engine.abort("a")
    engine.check()
    deltas = engine.step().deltas
    assert [(delta.request_id, delta.finish_reason) for delta in deltas] == [("a", "abort"), ("b", None)]
    assert engine.abort("b")
    assert [delta.finish_reason for delta in engine.step().deltas] == ["abort"]
    assert not engine.has_work
    assert engine.kv.num_used_blocks == 0


def test_a_token_that_cannot_be_sampled_ends_its_request_alone() -> None:
    engine = fake_engine(model=Ending(position=9, value=np.nan))
    engine.add(request("long", PROMPT * 2))  # its first token comes after position 9
    engine.add(request("short", max_tokens=4))
    deltas = run(engine)
    failed = next(delta for delta in deltas if delta.request_id == "long")
    assert (failed.finish_reason, failed.token_ids) == ("error", ())
    assert failed.usage is not None
    assert failed.usage.completion_tokens == 0
    assert sum(delta.request_id == "short" for delta in deltas) == 4


def test_choices_and_prompt_logprobs_are_committed_before_the_next_plan() -> None:
    for params in ({"n": 2}, {"prompt_logprobs": 0}):
        model = FakeDevice((None,))
        engine = fake_engine(model=model)
        engine.add(request(**params))
        engine.step()
        assert model.log[-1] == ("wait", 1)
        run(engine)
        assert model.log[3:6] == [("stage", 2), ("launch", 2), ("stage", 3)]


def test_without_overlap_a_device_is_waited_for() -> None:
    model = FakeDevice((None,))
    engine = fake_engine(model=model, overlap=False)
    engine.add(request(max_tokens=2))
    run(engine)
    assert model.log == [(what, n) for n in (1, 2) for what in ("stage", "launch", "wait")]
