"""What Ctrl-C leaves behind, in a line on standard error. `main` then exits with 130."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

GOES_ON = "the same command goes on from there"
LOST = "nothing is kept; the same command begins anew"


@contextmanager
def when_stopped(leaves: str | Callable[[], str]) -> Iterator[None]:
    """Say what is left where Ctrl-C ends what is inside."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"stopped; {leaves if isinstance(leaves, str) else leaves()}", err=True)
        raise
