"""`pagoda advise format`: which weight format for a model on a device, and what the others cost."""

from __future__ import annotations

import json
import typing
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pagoda.cli.advise import print_list
from pagoda.cli.progress import download_progress
from pagoda.errors import ConfigError
from pagoda.hardware.device import Device
from pagoda.hardware.devices import device
from pagoda.plan.advice.formats import FITS, FormatAdvice, Goal, advise_format
from pagoda.plan.advice.utilization import StepWork, Utilization, explain_utilization
from pagoda.plan.cost.memory import kv_token_bytes
from pagoda.plan.cost.roofline import RooflineCosts
from pagoda.plan.cost.work import Workload, decode_step
from pagoda.plan.model.models import find_shape
from pagoda.plan.model.shapes import ModelShape
from pagoda.plan.model.weights import weights_in

CONTEXT = 2048  # of the sequences whose decode is explained


def advise_format_verb(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="What pagoda plan takes.")],
    on: Annotated[
        str, typer.Option("--on", "--device", metavar="DEVICE", help="A device of the table, or this.")
    ] = "this",
    goal: Annotated[str, typer.Option(metavar="serve|edge|lora", help="What it is for.")] = "serve",
    batch: Annotated[int, typer.Option(metavar="N", help="Sequences whose decode step is explained.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which weight format to take for a model on a device, with memory, speed and quality of the others, and what
    keeps the device from being busy."""
    if goal not in typing.get_args(Goal):
        raise ConfigError(f"--goal: {goal!r} is not one of {', '.join(typing.get_args(Goal))}")
    if batch < 1:
        raise ConfigError(f"--batch: {batch} is out of range, must be at least 1")
    with download_progress() as progress:
        shape = find_shape(model, progress=progress)
    where = device(on)
    found = advise_format(shape, where, typing.cast(Goal, goal))
    busy = explain(shape, where, found.pick, batch) if found.pick and goal != "lora" else None
    if as_json:
        report: dict[str, Any] = {"model": shape.name, **asdict(found), "utilization": asdict(busy) if busy else None}
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print(shape.name, found, busy)


def explain(shape: ModelShape, where: Device, format: str, batch: int) -> Utilization:
    """What binds decode of so many sequences, on what programs reach of the device."""
    weights = weights_in(shape, format)
    workload = Workload(shape, weights, "f16")
    costs = RooflineCosts(where, workload, weights)

    def work(size: int) -> StepWork:
        one = workload.of(decode_step(size, CONTEXT))
        return StepWork(one.flops, one.bytes)

    room = FITS * where.memory_bytes - weights.total
    kv = CONTEXT * sum(kv_token_bytes(kind, "f16") for kind in shape.attention)
    return explain_utilization(
        work,
        batch,
        peak_flops=costs.flops,
        bandwidth_bytes_s=costs.bandwidth,
        overhead_s=costs.overhead_s,
        limit=max(1, int(room / kv)),
    )


def _print(model: str, found: FormatAdvice, busy: Utilization | None) -> None:
    console = Console(highlight=False)
    place = f"{'an' if found.place[0] in 'aeiou' else 'a'} {found.place}"
    console.print(f"{model} on {found.device}, as {place}: [bold green]{found.pick or 'nothing fits'}[/]\n")
    table = Table("format", box=None, pad_edge=False)
    for heading in ("GB", "of memory", "ms/token", "perplexity"):
        table.add_column(heading, justify="right")
    table.add_column("on", no_wrap=True)
    for option in found.options:
        quality, style = option.quality, "bold" if option.format == found.pick else "" if option.fits else "dim"
        change = f"+{quality.change:.1%}" if quality.change is not None else "same"
        row = (
            option.format,
            f"{option.num_bytes / 1e9:.1f}",
            f"{option.share:.0%}",
            f"{option.step_s * 1e3:.1f}",
            change,
        )
        table.add_row(*row, quality.model, style=style)
    console.print(table)
    print_list(console, "\nWhy", found.reasons)
    print_list(console, "What keeps it from being busy", busy.reasons if busy else ())
    sources = sorted({option.quality.source for option in found.options})
    print_list(console, "Quality by", sources)
