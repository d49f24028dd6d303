"""What `quantize` and `convert` share: which model, into what, and the job with its progress bars."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pagoda.cli.progress import download_progress, step_progress
from pagoda.cli.stopped import GOES_ON, LOST, when_stopped
from pagoda.config import EngineSettings
from pagoda.quantize.methods import find_method
from pagoda.quantize.run import quantize
from pagoda.quantize.settings import QuantizeSettings
from pagoda.sources import LocalModel, resolve

DEFAULT_MODEL = EngineSettings().model
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Alias, GGUF file, Hugging Face folder or hf:owner/repo.")
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="File or folder to make. [default: named after MODEL, here]", metavar="OUT"),
]


def find(model: str) -> LocalModel:
    """The model's files, downloaded with a progress bar where they must be."""
    with download_progress() as progress:
        return resolve(model, progress=progress)


def make(
    found: LocalModel,
    target: Path,
    settings: QuantizeSettings,
    objection: Callable[[Path], str | None] = lambda made: None,
) -> None:
    """Run the job, and print what was made and how large it is. `objection` is as in `quantize`."""
    with when_stopped(GOES_ON if find_method(settings.to).goes_on else LOST), step_progress() as (steps, say):
        quantize(found.path, target, settings, progress=steps, say=say, objection=objection)
    made, source = total_bytes(target), total_bytes(found.path)
    typer.echo(f"{target}  {made / 1e6:,.1f} MB, from {source / 1e6:,.1f} MB")
    if find_method(settings.to).largest_kld is None and made > source:
        typer.echo("It is larger than its source, which loses nothing: serve that, or take fewer bits.", err=True)


def total_bytes(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
