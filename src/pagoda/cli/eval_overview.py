"""`pagoda eval`: what its verbs are, in the order in which they are used."""

from __future__ import annotations

import typer

from pagoda.evals import builtin  # noqa: F401  the rows of the table
from pagoda.evals.evaluators import EVALUATORS


def overview() -> None:
    """Measure the quality of answers, and stop a change that makes them worse."""
    from pagoda.cli.main import verbs_of

    typer.echo(verbs_of("eval"))
    typer.echo(f"\nMetrics with a judge: {_names(judged=True)}\nWithout: {_names(judged=False)}")
    typer.echo("\nExample: pagoda eval run qa.jsonl --metrics faithfulness,context_recall -o current.json")


def _names(*, judged: bool) -> str:
    return ", ".join(sorted(name for name, row in EVALUATORS.items() if row.judged == judged))
