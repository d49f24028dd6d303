"""`pagoda adapter deploy`: a new version of an adapter on a running server, checked before requests get it."""

from __future__ import annotations

from typing import Annotated

import typer

from pagoda.cli.deployments import AdapterServer, DeploymentSettings
from pagoda.cli.deployments import deploy as deploy_version
from pagoda.cli.options import with_settings


@with_settings
def deploy(
    adapter: DeploymentSettings,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What requests call the adapter.")],
    path: Annotated[str, typer.Argument(metavar="PATH", help="PEFT folder or GGUF file, on the server's machine.")],
    check: Annotated[
        str | None,
        typer.Option(
            help="Shell command that must succeed first. It finds the version in PAGODA_URL and PAGODA_MODEL, and a "
            "JSON object on its last line goes into the history.",
        ),
    ] = None,
) -> None:
    """Load a new version of an adapter beside the old one, check it, and move the name over between two steps.

    Requests under way finish on the version that they began with. The old one stays for `pagoda adapter rollback`.

    Example: pagoda adapter deploy sql ./sql-v2 --check 'pagoda eval gate --baseline base.json --current new.json'
    """
    line = deploy_version(AdapterServer(adapter), adapter, name, path, check)
    typer.echo(f"{name} is {line['path']} ({str(line['digest'])[:12]}), written down in {adapter.history}")
