"""`pagoda convert`: the same model in another kind of file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from pagoda.cli.options import with_settings
from pagoda.cli.progress import download_progress, step_progress
from pagoda.cli.quantize import total_bytes
from pagoda.config import EngineSettings
from pagoda.quantize.run import quantize as run
from pagoda.quantize.settings import QuantizeSettings
from pagoda.settings import Setting, Settings
from pagoda.sources import resolve


@dataclass(frozen=True, slots=True)
class ConvertSettings(Settings):
    """Flags of `pagoda convert`."""

    table = "convert"

    to: Annotated[
        Literal["gguf", "safetensors"] | None,
        Setting("Kind of files; by default gguf if OUT ends in .gguf, else safetensors."),
    ] = None
    dtype: Annotated[Literal["bf16", "f16", "f32"], Setting("Number type of the weights.")] = "bf16"
    threads: Annotated[int, Setting("Compute threads; 0: one per physical core allowed.", minimum=0)] = 0
    force: Annotated[bool, Setting("Replace an output that exists.")] = False


@with_settings
def convert(
    convert: ConvertSettings,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Alias, GGUF file, Hugging Face folder or hf:owner/repo.")
    ] = EngineSettings().model,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File or folder to make.", metavar="OUT")
    ] = None,
) -> None:
    """Turn GGUF files into Hugging Face folders and the other way round, tokenizer and chat template included.

    Quantized weights become floats of --dtype, with the error that they have already and, in 16 bits, that of rounding.
    To make a model smaller: pagoda quantize --help
    """
    with download_progress() as progress:
        found = resolve(model, progress=progress)
    gguf = convert.to == "gguf" or (convert.to is None and output is not None and output.suffix == ".gguf")
    target = output or Path(f"{found.name}-{convert.dtype}" + (".gguf" if gguf else ""))
    settings = QuantizeSettings(
        to=convert.dtype if gguf else "safetensors", dtype=convert.dtype, threads=convert.threads, force=convert.force
    )
    with step_progress() as (steps, say):
        run(found.path, target, settings, progress=steps, say=say)
    typer.echo(f"{target}  {total_bytes(target) / 1e6:,.1f} MB, from {total_bytes(found.path) / 1e6:,.1f} MB")
