"""`pagoda cache`: what its verbs are."""

from __future__ import annotations

import typer


def overview() -> None:
    """Look into the semantic cache of `pagoda serve --cache sqlite`; train and measure what decides in it."""
    from pagoda.cli.main import VERBS

    for name, verb in VERBS.items():
        if name.startswith("cache "):
            typer.echo(f"pagoda {name:<15} {verb.help}")
    typer.echo("\nExample: pagoda cache evaluate pairs.jsonl.gz --plot curve.svg")
