"""Steps that threads share: nobody waits for nothing, nobody gets another's vectors."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest

from pagoda.engine.shared_steps import SharedSteps
from pagoda.text.framing import TokenizedText
from pagoda.types import FloatArray
from serving import HANG_S


def text(number: int, length: int = 1) -> TokenizedText:
    return TokenizedText((number,) * length, length)


class Model:
    """A text's vector is its first token; a text of token 13 breaks the step that it is in."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.started = threading.Event()
        self.steps: list[list[int]] = []

    def __call__(self, texts: Sequence[TokenizedText]) -> list[FloatArray]:
        self.steps.append([one.token_ids[0] for one in texts])
        self.started.set()
        self.gate.wait(HANG_S)
        if any(one.token_ids[0] == 13 for one in texts):
            raise ValueError("thirteen")
        return [np.array(one.token_ids[:1], np.float32) for one in texts]


def ask(shared: SharedSteps, numbers: list[int], got: dict[int, object], length: int = 1) -> threading.Thread:
    def work() -> None:
        try:
            got[numbers[0]] = [int(vector[0]) for vector in shared.run([text(n, length) for n in numbers])]
        except ValueError as error:
            got[numbers[0]] = str(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def waiting(shared: SharedSteps, count: int) -> None:
    for _ in range(1000):
        if len(shared._waiting) == count:
            return
        threading.Event().wait(0.005)
    pytest.fail("nobody waits")


@pytest.mark.parametrize(("length", "steps"), [(1, [[1], [2, 3, 4]]), (6, [[1], [2], [3], [4]])])
def test_who_comes_while_a_step_runs_is_served_by_the_next(length: int, steps: list[list[int]]) -> None:
    model, got = Model(), {}
    shared = SharedSteps(model, max_tokens=10, max_texts=8)
    threads = [ask(shared, [1], got, length)]
    model.started.wait(HANG_S)
    for number in (2, 3, 4):
        threads.append(ask(shared, [number], got, length))
        waiting(shared, number - 1)
    model.gate.set()
    for thread in threads:
        thread.join(HANG_S)
    assert model.steps == steps
    assert got == {n: [n] for n in (1, 2, 3, 4)}


def test_a_step_that_breaks_is_told_to_all_that_are_in_it_and_to_no_others() -> None:
    model, got = Model(), {}
    shared = SharedSteps(model, max_tokens=10, max_texts=2)
    threads = [ask(shared, [1], got)]
    model.started.wait(HANG_S)
    for place, number in enumerate((13, 2, 3), start=1):
        threads.append(ask(shared, [number], got))
        waiting(shared, place)
    model.gate.set()
    for thread in threads:
        thread.join(HANG_S)
    assert got == {1: [1], 13: "thirteen", 2: "thirteen", 3: [3]}
    assert [int(vector[0]) for vector in shared.run([text(5), text(6)])] == [5, 6]


def test_many_threads_get_their_own() -> None:
    model = Model()
    model.gate.set()
    shared, got = SharedSteps(model, max_tokens=7, max_texts=5), {}
    threads = [ask(shared, [100 * i + 20, 100 * i + 21], got) for i in range(1, 40)]
    for thread in threads:
        thread.join(HANG_S)
    assert got == {100 * i + 20: [100 * i + 20, 100 * i + 21] for i in range(1, 40)}
    assert sum(len(step) for step in model.steps) == 78
    assert max(len(step) for step in model.steps) <= 5
