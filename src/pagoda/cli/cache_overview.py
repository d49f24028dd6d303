"""`pagoda cache`: what its verbs are."""

from __future__ import annotations

import typer


def overview() -> None:
    """Look into the semantic cache of `pagoda serve --cache sqlite`; train and measure what decides in it."""
    from pagoda.cli.main import verbs_of

    typer.echo(verbs_of("cache"))
    typer.echo("\nExample: pagoda cache evaluate pairs.jsonl.gz --plot curve.svg")
