"""`pagoda adapter convert`: a PEFT folder as a GGUF adapter, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pagoda.adapters.files import read_adapter
from pagoda.adapters.gguf import write_gguf_adapter
from pagoda.adapters.peft import write_peft
from pagoda.adapters.place import Base, base_names
from pagoda.cli.making import DEFAULT_MODEL, find
from pagoda.errors import ConfigError, UnsupportedError
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.registry import family_of, load_model


def convert(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="PEFT folder or GGUF adapter.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File ending in .gguf, or a folder for PEFT.", metavar="OUT")
    ],
    model: Annotated[str, typer.Option(help="The base model, which says how tensors are called.")] = DEFAULT_MODEL,
) -> None:
    """Turn a PEFT folder into a GGUF adapter for llama.cpp, or back. True scales become part of the weights.

    What the other format cannot say is refused by name: DoRA, biases, tensors that were trained whole.
    """
    if output.exists():
        raise ConfigError(f"{output} exists; name another with -o")
    read = read_adapter(adapter)
    if read.whole:
        raise UnsupportedError(f"{next(iter(read.whole))!r} was trained whole, which only PEFT folders can say")
    to_gguf = output.suffix == ".gguf"
    with open_checkpoint(find(model).path) as checkpoint:
        family = family_of(checkpoint)
        base = Base(load_model(checkpoint), family, checkpoint.kind == "gguf", family.gguf)
        deltas = base_names(read.deltas, base, from_gguf=read.is_gguf, to_gguf=to_gguf)
    if to_gguf:
        write_gguf_adapter(output, family.gguf, deltas)
    else:
        write_peft(output, deltas, {}, base=model)
    typer.echo(f"{output}  {len(deltas)} matrices")
