"""`pagoda eval init`: the gate as a GitHub workflow, a GitLab job and a pre-commit hook."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Annotated

import typer

import pagoda
from pagoda.evals.ci_files import Pipeline, install_command, write_files

PIPELINE = Pipeline()


def init(
    folder: Annotated[Path, typer.Argument(help="The project's folder.", metavar="FOLDER")] = Path(),
    testset: Annotated[str, typer.Option("--testset", metavar="FILE", help="The test set.")] = PIPELINE.testset,
    judge: Annotated[
        str, typer.Option("--judge", metavar="MODEL", help="The judge; runs in the job.")
    ] = PIPELINE.judge,
    target: Annotated[str, typer.Option("--target", metavar="TEXT", help="What answers: module:function or URL.")] = "",
    install: Annotated[
        str, typer.Option("--install", metavar="TEXT", help="Command that installs Pagoda in the job.")
    ] = "",
) -> None:
    """Write CI files that evaluate every change of prompts, chunking or the embedding model. No key is needed."""
    install = install or _install_command()
    for path in write_files(folder, Pipeline(testset=testset, judge=judge, target=target, install=install)):
        typer.echo(f"wrote {path}")
    if install:
        typer.echo(f"the jobs run `{install}`; another command is --install")
    else:
        typer.echo(
            "next: this Pagoda came from this machine, which no job has: set the variable PAGODA of the repository's "
            "CI to what pip installs it from, such as git+https://HOST/pagoda.git or a wheel's address; or begin anew "
            "with --install 'pip install …'"
        )
    typer.echo("next: pagoda eval run … -o metrics/baseline.json, and commit it")


def _install_command() -> str:
    try:
        return install_command(distribution("pagoda-llm").read_text("direct_url.json"), pagoda.__version__)
    except PackageNotFoundError:  # run from its sources
        return ""
