"""`pagoda eval run`: scores of every case of a test set, by any metrics, with the reasons."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

import pagoda
from pagoda.cli.eval_judge import NOT_OF_JUDGES, JudgeSettings, OpenJudge, open_judge
from pagoda.cli.options import with_settings
from pagoda.cli.progress import step_progress
from pagoda.cli.stopped import GOES_ON, LOST, when_stopped
from pagoda.config import EngineSettings
from pagoda.evals import builtin, prompts  # noqa: F401  rows of the table
from pagoda.evals.cases import Case, Testset, read_testset
from pagoda.evals.evaluators import find, import_evaluators
from pagoda.evals.results import CaseResult, Results, Setup, write_results
from pagoda.evals.run import Journal, Plan, elapsed, evaluate, measure_noise
from pagoda.evals.targets import open_target
from pagoda.settings import Setting, Settings

METRICS = ("context_precision", "context_recall", "faithfulness", "answer_relevancy")


@dataclass(frozen=True, slots=True)
class EvalRunSettings(Settings):
    """Flags of `pagoda eval run`."""

    table = "eval-run"

    metrics: Annotated[tuple[str, ...], Setting("What to measure; `pagoda eval` lists all.")] = METRICS
    target: Annotated[
        str | None,
        Setting(
            "What answers the questions: a URL, or module:function of a question. [default: the test set's answers]"
        ),
    ] = None
    evaluators: Annotated[Path | None, Setting("Python file with evaluators of your own.")] = None
    cases: Annotated[int | None, Setting("Only so many cases, the first.", minimum=1)] = None
    noise_cases: Annotated[
        int, Setting("Cases that are judged twice, to measure the judge's own noise.", minimum=0)
    ] = 0
    price_input: Annotated[float | None, Setting("Dollars for a million tokens that the judge reads.", minimum=0)] = (
        None
    )
    price_output: Annotated[float | None, Setting("Dollars for a million tokens that it writes.", minimum=0)] = None
    on_interrupt: Annotated[Literal["keep", "drop"], Setting("What becomes of cases that were finished.")] = "keep"


@partial(with_settings, without=NOT_OF_JUDGES)
def run(
    testset: Annotated[Path, typer.Argument(help="JSONL file of cases.", metavar="TESTSET")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where results go, as JSON.", metavar="FILE")],
    settings: EvalRunSettings,
    judge: JudgeSettings,
    engine: EngineSettings,
) -> None:
    """Score the answers to a test set.

    A line is {"question": ..., "answer": ..., "contexts": [...], "reference": ...}; what a metric needs and a line
    lacks is counted as not judged. Interrupted, the same command goes on where it was.
    """
    if settings.evaluators is not None:
        import_evaluators(settings.evaluators)
    rows = find(settings.metrics)
    asked = read_testset(testset)
    cases = list(asked.cases[: settings.cases])
    start = time.perf_counter()
    with ExitStack() as stack:
        opened = None
        if any(row.judged for row in rows):
            opened = stack.enter_context(open_judge(judge, engine))
        answer = stack.enter_context(open_target(settings.target)) if settings.target else None
        plan = Plan(tuple(rows), None if opened is None else opened.judge, answer)
        setup = _setup(asked, settings, judge, opened)
        keep = settings.on_interrupt == "keep"
        journal = stack.enter_context(_journal(output, setup, keep=keep))
        stack.enter_context(when_stopped(GOES_ON if keep else LOST))
        done = _evaluate_all(plan, cases, journal)
        noise = asyncio.run(measure_noise(plan, cases[: settings.noise_cases], done[: settings.noise_cases]))
        results = Results(setup, tuple(done), noise, elapsed(start), *_spent(opened, settings))
        write_results(results, output)
    print_results(results, Console())


def _setup(asked: Testset, settings: EvalRunSettings, judge: JudgeSettings, opened: OpenJudge | None) -> Setup:
    return Setup(
        asked.sha256,
        tuple(row.name for row in find(settings.metrics)),
        "none" if opened is None else opened.identity,
        "" if opened is None else prompts.digest(),
        judge.verdicts,
        settings.target or "",
        {"pagoda": pagoda.__version__},
    )


@contextmanager
def _journal(output: Path, setup: Setup, *, keep: bool) -> Iterator[Journal]:
    """Finished cases in a file beside the output, until that is written. `keep`: whatever ends the run leaves it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal(output.with_name(output.name + ".cases"), f"{setup}")
    whole = False
    try:
        yield journal
        whole = True
    finally:
        journal.close(delete=whole or not keep)


def _evaluate_all(plan: Plan, cases: list[Case], journal: Journal) -> list[CaseResult]:
    """With a progress bar, all cases that are not in the journal."""
    finished = dict(journal.finished)
    with _counting(len(cases), len(finished)) as count:

        def done(result: CaseResult) -> None:
            journal.add(result)
            count()

        for result in asyncio.run(evaluate(plan, (case for case in cases if case.id not in finished), done)):
            finished[result.id] = result
    return [finished[case.id] for case in cases]


@contextmanager
def _counting(total: int, already: int) -> Iterator[Callable[[], None]]:
    done = already
    with step_progress() as (show, _):
        show("cases", done, total)

        def count() -> None:
            nonlocal done
            done += 1
            show("cases", done, total)

        yield count


def _spent(opened: OpenJudge | None, settings: EvalRunSettings) -> tuple[dict[str, int], float | None]:
    """Tokens that the judge read and wrote, and what they cost."""
    if opened is None:
        return {}, None
    spent = opened.judge.spent
    tokens = {"input": spent.prompt_tokens, "output": spent.completion_tokens}
    if settings.price_input is None and settings.price_output is None:
        return tokens, None
    cost = tokens["input"] * (settings.price_input or 0) + tokens["output"] * (settings.price_output or 0)
    return tokens, cost / 1e6


def print_results(results: Results, console: Console) -> None:
    """A row a metric."""
    right = [Column(name, justify="right") for name in ("mean", "95 % interval", "judged", "not judged")]
    table = Table(Column("metric", no_wrap=True), *right, box=SIMPLE_HEAD)
    for metric, found in results.summary().items():
        mean = "" if found["mean"] is None else f"{found['mean']:.3f}"
        interval = "" if found["low"] is None else f"{found['low']:.3f} to {found['high']:.3f}"
        table.add_row(metric, mean, interval, str(found["judged"]), str(found["unjudged"]))
    console.print(table)
    judge = results.setup.judge
    console.print(f"{len(results.cases)} cases in {results.seconds:.0f} s; judge: {judge}", highlight=False)
    if "uncalibrated" in judge:
        console.print("the judge is uncalibrated: `pagoda eval calibrate --labels FILE` says what it is worth")
    for metric in results.setup.metrics:
        for why in sorted(set(results.unjudged(metric).values()))[:3]:
            console.print(f"{metric}: not judged where {why}", highlight=False)
