"""`pagoda eval report`: one HTML file of an evaluation, alone or beside its baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pagoda.evals import builtin  # noqa: F401  the rows of the table
from pagoda.evals.gate import Rule, judge_change
from pagoda.evals.report_page import page
from pagoda.evals.results import read_results


def report(
    current: Annotated[Path, typer.Argument(help="Results of `pagoda eval run`.", metavar="CURRENT")],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file.", metavar="FILE")],
    baseline: Annotated[Path | None, typer.Option("--baseline", help="Results before.", metavar="FILE")] = None,
) -> None:
    """Write a report that opens in any browser, without a network."""
    now = read_results(current)
    if baseline is None:
        output.write_text(page(now))
    else:
        before = read_results(baseline)
        output.write_text(page(now, before, judge_change(before, now, Rule())))
    typer.echo(f"wrote {output}")
