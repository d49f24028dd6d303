"""`pagoda adapter`, `pagoda cost`, `pagoda deploy`: what their verbs are."""

from __future__ import annotations

import typer


def adapter() -> None:
    """Move an adapter's name on a running server to a new version, and back; turn adapters into other files."""
    _list("adapter")


def cost() -> None:
    """Sum up what requests have cost, from the log of `pagoda serve --request-log`."""
    _list("cost")


def deploy() -> None:
    """Run engines on a cluster of machines, as many as the load asks for."""
    _list("deploy")


def _list(group: str) -> None:
    from pagoda.cli.main import verbs_of

    typer.echo(verbs_of(group))
    typer.echo(f"\n`pagoda {group} VERB --help` says more of each.")
