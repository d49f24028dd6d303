"""`pagoda compare`: models that were made of one original, and how much worse each is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from pagoda.cli.options import with_settings
from pagoda.cli.progress import download_progress, step_progress
from pagoda.scoring import report
from pagoda.scoring.plot import quality_over_size
from pagoda.scoring.report import Quality, Report
from pagoda.settings import Setting, Settings
from pagoda.sources import resolve


@dataclass(frozen=True, slots=True)
class CompareSettings(Settings):
    """Flags of `pagoda compare`."""

    table = "compare"

    against: Annotated[str | None, Setting("The original that the others are measured by. [default: the first]")] = None
    text: Annotated[
        str, Setting("Text to score: self (the original wrote it, and it calibrates nothing), or a file.")
    ] = "self"
    windows: Annotated[int, Setting("Windows of the text at most.", minimum=1)] = report.WINDOWS
    context: Annotated[int, Setting("Tokens of each window; the second half is scored.", minimum=16)] = report.CONTEXT
    speed: Annotated[bool, Setting("Measure tokens per second too.")] = True
    plot: Annotated[Path | None, Setting("Draw quality over size into this file, as SVG.")] = None
    json: Annotated[bool, Setting("Print JSON.")] = False
    threads: Annotated[int, Setting("Compute threads; 0: one per physical core allowed.", minimum=0)] = 0


@with_settings
def compare(
    compare: CompareSettings,
    models: Annotated[
        list[str], typer.Argument(metavar="A B...", help="Aliases, GGUF files, Hugging Face folders or hf:owner/repo.")
    ],
) -> None:
    """Measure how much worse quantized models are than their original, and how much smaller and faster.

    Perplexity on a text; the divergence of each next token's distribution from the original's, its mean and 99th
    percentile in nats (0: the same); how often the likeliest token is the original's; bytes a weight; tokens per second
    of one long prompt and of one stream, here and now.

    Example: pagoda compare model-F16.gguf model-Q4_K_M.gguf model-gptq --plot quality.svg
    """
    with download_progress() as progress:
        for name in (*models, *([compare.against] if compare.against else [])):
            resolve(name, progress=progress)
    with step_progress() as (steps, _):
        found = report.compare(
            models,
            compare.against,
            compare.text,
            windows=compare.windows,
            context=compare.context,
            threads=compare.threads,
            speed=compare.speed,
            progress=steps,
        )
    if compare.plot is not None:
        compare.plot.write_text(quality_over_size(found))
    if compare.json:
        typer.echo(json.dumps(found.as_json(), indent=2))
    else:
        print_report(found, Console())


def print_report(found: Report, console: Console) -> None:
    columns = ["MB", "B/w", "perplexity", "KLD", "99 %", "top 1", "prompt/s", "t/s"]
    name = Column("model", overflow="fold")
    table = Table(
        name, *(Column(name, justify="right", no_wrap=True) for name in columns), box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for row in found.rows:
        table.add_row(row.name, *_cells(row))
    console.print(table)
    console.print(
        f"{found.tokens:,} tokens of {found.text}, {found.windows} windows of {found.context}; "
        f"KLD (mean and 99th percentile, nats) and top 1 against {found.original}; "
        f"standard error of perplexity {max(row.perplexity_error / row.perplexity for row in found.rows):.1%}; "
        "bytes a weight; tokens a second of a prompt, and of one stream",
        highlight=False,
    )


def _cells(row: Quality) -> list[str]:
    return [
        f"{row.file_bytes / 1e6:,.1f}",
        f"{row.bytes_per_weight:.3f}",
        f"{row.perplexity:.3f}",
        _number(row.kld, "{:.5f}"),
        _number(row.kld_p99, "{:.4f}"),
        _number(row.agreement, "{:.1%}"),
        _number(row.prefill_per_second, "{:,.0f}"),
        _number(row.decode_per_second, "{:,.1f}"),
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
