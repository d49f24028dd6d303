"""`pagoda adapter rollback`: the version before."""

from __future__ import annotations

from typing import Annotated

import typer

from pagoda.cli.deployments import AdapterServer, DeploymentSettings
from pagoda.cli.deployments import rollback as rollback_version
from pagoda.cli.options import with_settings


@with_settings
def rollback(
    adapter: DeploymentSettings,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What requests call the adapter.")],
) -> None:
    """Move an adapter's name back to the version before; a second rollback undoes the first."""
    line = rollback_version(AdapterServer(adapter), adapter, name)
    typer.echo(f"{name} is {line['path']} ({str(line['digest'])[:12]}) again, written down in {adapter.history}")
