"""`pagoda eval diff`: the cases whose scores changed, worst first, with both answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pagoda.evals import builtin  # noqa: F401  the rows of the table
from pagoda.evals.results import read_results
from pagoda.evals.summaries import changed_cases


def diff(
    baseline: Annotated[Path, typer.Argument(help="Results before.", metavar="BASELINE")],
    current: Annotated[Path, typer.Argument(help="Results now.", metavar="CURRENT")],
    metric: Annotated[str | None, typer.Option("--metric", help="Only this one.", metavar="NAME")] = None,
    limit: Annotated[int, typer.Option("--limit", help="Cases of each metric at most.", metavar="INT", min=1)] = 20,
) -> None:
    """Show which cases changed between two evaluations, the deepest fall first."""
    before, now = read_results(baseline), read_results(current)
    answers = {case.id: case.answer for case in before.cases}
    cases = {case.id: case for case in now.cases}
    for name in [metric] if metric else now.setup.metrics:
        rows = changed_cases(before, now, name)
        typer.echo(f"{name}: {len(rows)} of {len(now.cases)} cases changed")
        for case_id, old, new in rows[:limit]:
            case = cases[case_id]
            typer.echo(f"  {old:.3f} → {new:.3f}  {case_id}: {case.question}")
            if answers.get(case_id) != case.answer:
                typer.echo(f"      before: {_one_line(answers.get(case_id))}\n      now:    {_one_line(case.answer)}")


def _one_line(text: str | None) -> str:
    return " ".join((text or "(none)").split())[:200]
