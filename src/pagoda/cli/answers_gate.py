"""The gate of `quantize --gate`: both models answer a test set, and the new one's answers may not be worse."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pagoda.cli.endpoint import local_endpoint
from pagoda.config import EngineSettings
from pagoda.errors import ConfigError
from pagoda.evals import builtin  # noqa: F401  the rows of the table
from pagoda.evals.cases import Case, Testset, read_testset
from pagoda.evals.evaluators import Evaluator, find
from pagoda.evals.gate import Rule, judge_change
from pagoda.evals.results import Results, Setup
from pagoda.evals.run import Plan, evaluate
from pagoda.evals.targets import ask_model
from pagoda.settings import Setting, Settings

NUM_SEQS = 4  # as many cases as `evaluate` asks at once


@dataclass(frozen=True, slots=True)
class GateSettings(Settings):
    """Flags of verbs that make a model out of another."""

    table = "gate"

    gate: Annotated[
        Path | None,
        Setting("Test set (JSONL): keep the result only if its answers are not worse, as `pagoda eval gate` judges."),
    ] = None
    gate_metrics: Annotated[tuple[str, ...], Setting("What the gate measures: metrics without a judge.")] = (
        "contains",
        "token_f1",
    )
    gate_threshold: Annotated[float, Setting("The smallest fall that matters: 0.05 is 5 points of 100.", minimum=0)] = (
        0.05
    )
    gate_tokens: Annotated[int, Setting("Tokens of an answer at most.", minimum=1)] = 128


def answers_gate(source: Path, settings: GateSettings, threads: int) -> Callable[[Path], str | None]:
    """What looks at a model made from `source` and says why it must not be kept; it prints what the gate says.

    The test set is read, and metrics are looked up, at once. Raises FormatError or ConfigError.
    """
    if settings.gate is None:
        return lambda made: None
    testset, rows = read_testset(settings.gate), find(settings.gate_metrics)
    if judged := [row.name for row in rows if row.judged]:
        raise ConfigError(f"--gate-metrics: {', '.join(judged)} needs a judge; use `pagoda eval run` on both models")
    measure = partial(_results, testset, rows, settings.gate_tokens, threads)

    def objection(made: Path) -> str | None:
        report = judge_change(measure(source), measure(made), Rule(threshold=settings.gate_threshold))
        for verdict in report.verdicts:
            typer.echo(verdict.sentence)
        why = {"fail": "its answers are worse than the original's", "unjudged": "the gate has no verdict", "pass": None}
        return why[report.outcome]

    return objection


def _results(testset: Testset, rows: list[Evaluator], max_tokens: int, threads: int, model: Path) -> Results:
    """How a model answers the test set."""
    with local_endpoint(EngineSettings(model=str(model), threads=threads, max_num_seqs=NUM_SEQS)) as endpoint:

        async def answer(case: Case) -> Case:
            return await ask_model(endpoint, max_tokens, case)

        done = asyncio.run(evaluate(Plan(tuple(rows), answer=answer, cases_at_once=NUM_SEQS), testset.cases))
    setup = Setup(testset.sha256, tuple(row.name for row in rows), "none", "", "expected", str(model))
    return Results(setup, tuple(done))
