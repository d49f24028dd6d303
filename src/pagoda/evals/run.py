"""Runs an evaluation: every metric on every case, many at once, resumed where it stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from pagoda.errors import FormatError
from pagoda.evals.cases import Case
from pagoda.evals.evaluators import Asking, Evaluator, Unjudged, score_case
from pagoda.evals.results import CaseResult, case_record, read_case

Answer = Callable[[Case], Awaitable[Case]]  # a pipeline: the case with what it answers now


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. cases_at_once: all metrics of a case run together, so that they share its passages' KV."""

    rows: tuple[Evaluator, ...]
    judge: Asking | None = None
    answer: Answer | None = None
    cases_at_once: int = 4


async def evaluate(
    plan: Plan, cases: Iterable[Case], done: Callable[[CaseResult], None] = lambda result: None
) -> list[CaseResult]:
    """Score each case, in their order; `done` is told as each is finished. What a pipeline or judge raises as an
    error of the connection stops the run; what it cannot judge is part of the result.
    """
    slots = asyncio.Semaphore(plan.cases_at_once)

    async def one(case: Case) -> CaseResult:
        async with slots:
            result = await evaluate_case(plan, case)
        done(result)
        return result

    tasks = [asyncio.create_task(one(case)) for case in cases]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def evaluate_case(plan: Plan, case: Case) -> CaseResult:
    """Ask the pipeline, if there is one, then score."""
    if plan.answer is not None:
        case = await plan.answer(case)
    scores: dict[str, float] = {}
    unjudged: dict[str, str] = {}
    reasons = {}

    async def score(row: Evaluator) -> None:
        try:
            found = await score_case(row, case, plan.judge)
        except Unjudged as why:
            unjudged[row.name] = str(why)
            return
        scores[row.name] = round(found.value, 6)
        if found.reasons:
            reasons[row.name] = found.reasons

    await asyncio.gather(*(score(row) for row in plan.rows))
    return CaseResult(case.id, case.question, case.answer, scores, unjudged, reasons)


class Journal:
    """Finished cases, a line each as they come, so that an interrupted run goes on where it was."""

    def __init__(self, path: Path, setup: str) -> None:
        """setup: what the run is of; cases of another one are an error. Raises FormatError."""
        self._path = path
        self.finished: dict[str, CaseResult] = {}
        if path.exists():
            self._read(setup)
        else:
            path.write_bytes(orjson.dumps({"setup": setup}) + b"\n")
        self._file = path.open("ab")

    def _read(self, setup: str) -> None:
        head, *lines = self._path.read_bytes().split(b"\n")
        if not head or orjson.loads(head).get("setup") != setup:
            raise FormatError("is of another evaluation; delete it to begin anew", path=str(self._path))
        whole = b"\n".join([head, *lines[:-1]]) + b"\n"  # the last line may be cut
        for line in lines[:-1]:
            case = read_case(orjson.loads(line))
            self.finished[case.id] = case
        self._path.write_bytes(whole)

    def add(self, result: CaseResult) -> None:
        self._file.write(orjson.dumps(case_record(result)) + b"\n")
        self._file.flush()

    def close(self, *, delete: bool) -> None:
        self._file.close()
        if delete:
            self._path.unlink(missing_ok=True)


async def measure_noise(plan: Plan, cases: list[Case], results: list[CaseResult], repeats: int = 2) -> dict[str, float]:
    """How much a metric of one case spreads when the same answer is judged again: the root mean variance."""
    again = replace(plan, answer=None)
    spreads: dict[str, list[float]] = {}
    for case, first in zip(cases, results, strict=True):
        seen = [first, *[await evaluate_case(again, replace(case, answer=first.answer)) for _ in range(repeats - 1)]]
        for metric in first.scores:
            values = [result.scores[metric] for result in seen if metric in result.scores]
            mean = sum(values) / len(values)
            if len(values) > 1:
                spreads.setdefault(metric, []).append(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return {metric: (sum(found) / len(found)) ** 0.5 for metric, found in spreads.items()}


def elapsed(start: float) -> float:
    """Seconds since a `time.perf_counter()`, to the tenth."""
    return round(time.perf_counter() - start, 1)
