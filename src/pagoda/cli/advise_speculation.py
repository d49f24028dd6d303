"""`pagoda advise speculation`: what drafts gain, how long they should be, and when they lose."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pagoda.cli.advise import print_list
from pagoda.cli.progress import download_progress
from pagoda.hardware.devices import device
from pagoda.plan.advice.speculation import Speculation, StepSeconds, advise_speculation
from pagoda.plan.cost.roofline import RooflineCosts
from pagoda.plan.cost.work import Chunk, StepShape, Workload
from pagoda.plan.model.models import find_shape
from pagoda.plan.model.weights import default_format, weights_in

CONTEXT = 2048


def advise_speculation_verb(
    acceptance: Annotated[float, typer.Option(metavar="ALPHA", help="Share of draft tokens accepted: 0 to 1.")],
    cost: Annotated[
        float, typer.Option(metavar="C", help="A draft token's time in steps of the model; 0 for n-gram lookup.")
    ] = 0.0,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="With --on: the gain at each batch size.")] = None,
    on: Annotated[
        str, typer.Option("--on", "--device", metavar="DEVICE", help="A device of the table, or this.")
    ] = "this",
    format: Annotated[str | None, typer.Option(metavar="FORMAT", help="Of the model's weights.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what speculative decoding gains (Leviathan et al., 2023), the best draft length, and when it loses.

    `pagoda serve` goes by the same formula, with acceptance and times as it measures them; `pagoda bench speculation`
    measures what your prompts gain. Without --model, the pass that verifies a draft is taken to cost one step, as it
    does while memory binds.
    """
    found = advise_speculation(acceptance, cost, _step(model, on, format) if model else None)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2, ensure_ascii=False))
    else:
        _print(found)


def _step(model: str, on: str, format: str | None) -> StepSeconds:
    """A function (sequences, tokens of each) → seconds of a forward pass of the model on the device."""
    with download_progress() as progress:
        shape = find_shape(model, progress=progress)
    where = device(on)
    weights = weights_in(shape, format or default_format(shape, where.kind))
    costs = RooflineCosts(where, Workload(shape, weights, "f16"), weights)

    def seconds(batch: int, tokens: int) -> float:
        return costs.step(StepShape((Chunk(batch, tokens, CONTEXT),), batch * tokens)).seconds

    return seconds


def _print(found: Speculation) -> None:
    console = Console(highlight=False)
    title = (
        f"{found.speedup:.2f} times as fast with drafts of {found.draft}" if found.draft else "it loses: leave it off"
    )
    console.print(f"[bold green]{title}[/] (one sequence)\n")
    if found.batches:
        table = Table("batch", box=None, pad_edge=False)
        for heading in ("best draft", "speedup", "pass costs"):
            table.add_column(heading, justify="right")
        for gain in found.batches:
            table.add_row(str(gain.batch), str(gain.draft or "off"), f"{gain.speedup:.2f}", f"{gain.verify:.2f} steps")
        console.print(table)
    print_list(console, "Why", found.reasons)
