"""`pagoda plan finetune`: what a fine-tuning run takes, before it runs."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pagoda.cli.making import DEFAULT_MODEL, ModelArgument, find
from pagoda.cli.options import with_settings
from pagoda.cli.progress import step_progress
from pagoda.finetune.clock import clock
from pagoda.finetune.predict import Memory, Prediction, measure_rates, predict
from pagoda.finetune.prepare import prepare
from pagoda.finetune.run import check_packages
from pagoda.finetune.settings import FinetuneSettings


@with_settings
def plan_finetune(
    finetune: FinetuneSettings,
    model: ModelArgument = DEFAULT_MODEL,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how much memory and time `pagoda finetune` with the same flags will take on this machine's CPU.

    A few products with the model's own weights are timed; nothing is trained.
    """
    check_packages()
    found = find(model)
    with step_progress() as (steps, _):
        prepared = prepare(found, finetune, steps)
    made = predict(prepared, measure_rates(prepared))
    if as_json:
        typer.echo(json.dumps(made.to_json(), indent=2))
    else:
        _print(made, prepared.schedule.steps)


def _print(made: Prediction, steps: int) -> None:
    table = Table("", "MB", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for part in (*(field.name for field in fields(Memory)), "total"):
        table.add_row(part, f"{getattr(made.memory, part) / 1e6:,.0f}", style="bold" if part == "total" else "")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{steps:,} steps, {made.tokens:,} tokens, {made.tokens / made.seconds:,.0f} tokens/s: {clock(made.seconds)}"
    )
