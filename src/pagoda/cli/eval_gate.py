"""`pagoda eval gate`: whether a change may go on. Exit status 0: yes, 1: answers got worse, 2: cannot be told."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from pagoda.cli.options import with_settings
from pagoda.errors import ConfigError, FormatError
from pagoda.evals import builtin  # noqa: F401  the rows of the table
from pagoda.evals.gate import GateReport, Rule, judge_change
from pagoda.evals.results import Results, read_results
from pagoda.evals.summaries import junit, markdown
from pagoda.settings import Setting, Settings


@dataclass(frozen=True, slots=True)
class EvalGateSettings(Settings):
    """Flags of `pagoda eval gate`."""

    table = "eval-gate"

    baseline: Annotated[Path, Setting("Results that a change is measured by.")] = Path("metrics/baseline.json")
    current: Annotated[Path, Setting("Results of the change.")] = Path("metrics/current.json")
    threshold: Annotated[float, Setting("The smallest fall that matters: 0.05 is 5 points of 100.", minimum=0)] = 0.05
    fail_on: Annotated[
        Literal["significant", "threshold", "worse"],
        Setting("significant: a fall that is large enough and no noise; threshold: large enough; worse: any."),
    ] = "significant"
    max_unjudged: Annotated[
        float, Setting("Share of cases without a score above which there is no verdict.", minimum=0, maximum=1)
    ] = 0.05
    markdown: Annotated[Path | None, Setting("Append a summary to this file, as for $GITHUB_STEP_SUMMARY.")] = None
    junit: Annotated[Path | None, Setting("Write JUnit XML.")] = None
    json: Annotated[bool, Setting("Print JSON.")] = False


@with_settings
def gate(settings: EvalGateSettings) -> None:
    """Compare an evaluation with its baseline, case by case, and fail if answers got worse.

    Exit status 0: they did not; 1: they did; 2: it cannot be told, since too many cases have no score or the two runs
    asked different questions or judges, or a file is missing or cannot be written.
    """
    try:
        baseline, current = read_results(settings.baseline), read_results(settings.current)
    except FormatError as error:
        raise ConfigError(str(error)) from error  # exit status 2: nothing is known of the answers
    report = judge_change(baseline, current, Rule(settings.fail_on, settings.threshold, settings.max_unjudged))
    try:
        _write_summaries(report, baseline, current, settings)
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be written: {error.strerror}") from error
    typer.echo(_json(report) if settings.json else _text(report, baseline, current))
    raise typer.Exit(report.exit_code)


def _write_summaries(report: GateReport, baseline: Results, current: Results, settings: EvalGateSettings) -> None:
    if settings.markdown is not None:
        with settings.markdown.open("a") as file:
            file.write(markdown(report, baseline, current))
    if settings.junit is not None:
        settings.junit.write_text(junit(report))


def _text(report: GateReport, baseline: Results, current: Results) -> str:
    lines = [f"not comparable: {why}" for why in report.incomparable]
    if report.incomparable:
        lines.append("run the baseline again as the change was run")
    lines += [verdict.sentence for verdict in report.verdicts]
    return "\n".join([*lines, f"gate: {report.outcome}"])


def _json(report: GateReport) -> str:
    return json.dumps({"outcome": report.outcome, **asdict(report)}, indent=2)
