"""`pagoda eval init`: the gate as a GitHub workflow, a GitLab job and a pre-commit hook."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pagoda.evals.ci_files import Pipeline, write_files

PIPELINE = Pipeline()


def init(
    folder: Annotated[Path, typer.Argument(help="The project's folder.", metavar="FOLDER")] = Path(),
    testset: Annotated[str, typer.Option("--testset", metavar="FILE", help="The test set.")] = PIPELINE.testset,
    judge: Annotated[
        str, typer.Option("--judge", metavar="MODEL", help="The judge; runs in the job.")
    ] = PIPELINE.judge,
    target: Annotated[str, typer.Option("--target", metavar="TEXT", help="What answers: module:function or URL.")] = "",
) -> None:
    """Write CI files that evaluate every change of prompts, chunking or the embedding model. No key is needed."""
    for path in write_files(folder, Pipeline(testset=testset, judge=judge, target=target)):
        typer.echo(f"wrote {path}")
    typer.echo("next: pagoda eval run … -o metrics/baseline.json, and commit it")
