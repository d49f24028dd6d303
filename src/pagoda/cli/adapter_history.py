"""`pagoda adapter history`: what was deployed, by whom, when, and how it was checked."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pagoda.cli.deployments import DeploymentSettings, read_history
from pagoda.cli.options import with_settings


@with_settings
def history(
    adapter: DeploymentSettings,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of one adapter; of all by default.")] = None,
) -> None:
    """Show the history of deployments, oldest first."""
    table = Table(box=SIMPLE_HEAD)
    for title in ("when", "who", "what", "name", "version", "path", "figures"):
        table.add_column(title, overflow="fold")  # a path that ends in … is good for nothing
    for line in read_history(adapter.history, name):
        figures = ", ".join(f"{key} {value}" for key, value in (line.get("figures") or {}).items())
        when = str(line.get("time", ""))[:16].replace("T", " ")  # to the minute: one line, or two
        keys = ("who", "action", "name")
        table.add_row(
            when,
            *(str(line.get(key, "")) for key in keys),
            str(line.get("digest"))[:12],
            str(line.get("path")),
            figures,
        )
    Console().print(table)
