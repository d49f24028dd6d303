"""`pagoda plan --verify`: predicted, measured, error."""

from __future__ import annotations

import json
from collections.abc import Sequence

import typer
from rich.console import Console
from rich.table import Table

from pagoda.backends.specs import kv_type_for
from pagoda.benchmark.verify import Prediction, verify
from pagoda.cli.progress import download_progress
from pagoda.hardware.host import isa_paths
from pagoda.plan.settings import PlanSettings
from pagoda.sources import resolve

BOUNDS = {"memory": 0.05, "ttft": 0.15, "tpot": 0.15}


def verify_and_print(settings: PlanSettings) -> None:
    console = Console(stderr=True)
    with download_progress() as progress:
        path = resolve(settings.model, progress=progress).path
    with console.status("") as status:
        found = verify(
            path,
            kv_type_for(isa_paths()[-1]) if settings.kv_type == "auto" else settings.kv_type,
            activation_type=settings.activation_type,
            figures=settings.figures,
            seconds=settings.verify_seconds,
            say=lambda line: status.update(line),
        )
    if settings.json:
        points = [_json(point) for point in found.points]
        answer = {"model": settings.model, "cpu_share": found.cpu_share, "is_quiet": found.is_quiet, "points": points}
        typer.echo(json.dumps(answer, indent=2))
    else:
        _print(settings.model, found.points, Console(highlight=False))
    if not found.is_quiet and found.cpu_share is not None:
        console.print(
            f"The machine was busy: the kernels got {found.cpu_share:.0%} of the CPU time that they could have had, so "
            "times say little; verify again on a quiet machine.",
            style="yellow",
        )


def _json(point: Prediction) -> dict[str, object]:
    unit = "bytes" if point.figure == "memory" else "s"
    return {
        "figure": point.figure,
        "batch": point.batch,
        "tokens": point.tokens,
        f"predicted_{unit}": point.predicted,
        f"measured_{unit}": point.measured,
        "error": round(point.error, 4),
    }


def _print(model: str, points: Sequence[Prediction], console: Console) -> None:
    console.print(f"{model}: predicted and measured here", markup=False)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for title in ("figure", "requests", "tokens", "predicted", "measured", "error"):
        table.add_column(title, justify="left" if title == "figure" else "right")
    for point in points:
        style = None if abs(point.error) <= BOUNDS[point.figure] else "red"
        shown = [_shown(point.figure, value) for value in (point.predicted, point.measured)]
        error = f"{100 * point.error:+.1f} %"
        table.add_row(point.figure, str(point.batch), f"{point.tokens:,}", *shown, error, style=style)
    console.print(table)
    for figure, bound in BOUNDS.items():
        errors = [abs(point.error) for point in points if point.figure == figure]
        if errors:
            inside = sum(error <= bound for error in errors)
            console.print(f"{figure}: {inside} of {len(errors)} within {bound:.0%}, worst {max(errors):.1%}")


def _shown(figure: str, value: float) -> str:
    return f"{value / 1e6:,.1f} MB" if figure == "memory" else f"{1000 * value:,.2f} ms"
