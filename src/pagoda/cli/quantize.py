"""`pagoda quantize`: a model in fewer bits, and how much worse that is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pagoda.cli.options import with_settings
from pagoda.cli.progress import download_progress, step_progress
from pagoda.config import EngineSettings
from pagoda.quantize.methods import METHODS
from pagoda.quantize.run import default_output
from pagoda.quantize.run import quantize as run
from pagoda.quantize.settings import QuantizeSettings
from pagoda.sources import resolve


@with_settings
def quantize(
    quantize: QuantizeSettings,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Alias, GGUF file, Hugging Face folder or hf:owner/repo.")
    ] = EngineSettings().model,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File or folder to make. [default: MODEL-METHOD here]", metavar="OUT"),
    ] = None,
) -> None:
    with download_progress() as progress:
        found = resolve(model, progress=progress)
    target = output or default_output(found.name, quantize)
    with step_progress() as (steps, say):
        run(found.path, target, quantize, progress=steps, say=say)
    typer.echo(f"{target}  {total_bytes(target) / 1e6:,.1f} MB, from {total_bytes(found.path) / 1e6:,.1f} MB")


def total_bytes(path: Path) -> int:
    """Of a file, or of the files of a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


DOC = """Make a model smaller: GGUF files by block formats, folders by GPTQ, AWQ and the like.

Tensors whose rows a format's blocks do not divide get the nearest format that fits, said aloud. After an interrupt the
same command goes on where it was.

Formats and methods for --to:

\b
"""
quantize.__doc__ = DOC + "\n".join(f"{name:<12}{method.about}" for name, method in METHODS.items())
