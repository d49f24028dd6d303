"""`pagoda advise finetune`: memory of full, LoRA and QLoRA fine-tuning, and where it fits."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pagoda.cli.progress import download_progress
from pagoda.hardware.devices import device
from pagoda.plan.advice.finetuning import METHODS, FineTuneMemory, finetune_memory, lora_parameters
from pagoda.plan.model.models import find_shape


def advise_finetune_verb(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="What pagoda plan takes.")],
    on: Annotated[
        str | None, typer.Option("--on", "--device", metavar="DEVICE", help="Say what fits on this device.")
    ] = None,
    rank: Annotated[int, typer.Option(metavar="R", help="Of the adapters.")] = 16,
    targets: Annotated[str, typer.Option(metavar="q,v,...", help="q, k, v, o, gate, up, down; or all.")] = "q,v",
    batch: Annotated[int, typer.Option(metavar="N", help="Sequences at a time on one device.")] = 1,
    length: Annotated[int, typer.Option(metavar="N", help="Tokens of a sequence.")] = 2048,
    checkpointing: Annotated[bool, typer.Option(help="Recompute activations on the way back.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the memory that fine-tuning takes: full, with LoRA, with QLoRA."""
    with download_progress() as progress:
        shape = find_shape(model, progress=progress)
    matrices = tuple(name.strip() for name in targets.split(",") if name.strip())
    made: dict[str, FineTuneMemory] = {
        method: finetune_memory(
            shape, method, rank=rank, targets=matrices, batch=batch, length=length, checkpointing=checkpointing
        )
        for method in METHODS
    }
    room = device(on).memory_bytes if on else None
    report: dict[str, Any] = {
        "model": shape.name,
        "parameters": shape.parameters,
        "lora_parameters": lora_parameters(shape, rank, matrices),
        "device_bytes": room,
        "bytes": {method: {**asdict(memory), "total": memory.total} for method, memory in made.items()},
        "fits": None if room is None else {method: memory.total <= room for method, memory in made.items()},
    }
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(report, made, on)


def _print(report: dict[str, Any], made: dict[str, FineTuneMemory], on: str | None) -> None:
    console = Console(highlight=False)
    console.print(
        f"{report['model']}: {report['parameters'] / 1e9:.2f} B parameters, adapters {report['lora_parameters']:,}\n"
    )
    table = Table("GB", box=None, pad_edge=False)
    for method in made:
        table.add_column(method, justify="right")
    for part in (*(field.name for field in fields(FineTuneMemory)), "total"):
        row = (f"{getattr(memory, part) / 1e9:.2f}" for memory in made.values())
        table.add_row(part, *row, style="bold" if part == "total" else "")
    if report["fits"] is not None:
        fits = ("[green]yes[/]" if report["fits"][method] else "[red]no[/]" for method in made)
        table.add_row(f"fits {on}, {report['device_bytes'] / 1e9:.1f} GB", *fits)
    console.print(table)
