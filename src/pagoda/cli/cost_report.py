"""`pagoda cost report`: what requests have cost, from the log that `pagoda serve --request-log` writes."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Column, Table

from pagoda.cli.options import with_settings
from pagoda.errors import ConfigError
from pagoda.observe.cost_report import House, Sum, house, sums, total_of, within
from pagoda.observe.request_log import BillLine, RequestLine, read_log
from pagoda.settings import Setting, Settings


@dataclass(frozen=True, slots=True)
class CostReportSettings(Settings):
    """Flags of `pagoda cost report`."""

    table = "cost-report"

    log: Annotated[Path, Setting("Request log, as `pagoda serve --request-log` writes it.", positional=True)] = Path(
        "requests.jsonl"
    )
    since: Annotated[str | None, Setting("First day or moment (UTC): 2026-11-01, 2026-11-01T08:00.", flag="from")] = (
        None
    )
    until: Annotated[str | None, Setting("Day or moment (UTC) that is the first not counted.", flag="to")] = None
    by: Annotated[Literal["tenant", "model", "adapter", "day"], Setting("What to sum up by.")] = "tenant"
    json: Annotated[bool, Setting("Print JSON.")] = False


@with_settings
def cost_report(settings: CostReportSettings) -> None:
    """Sum up what requests have cost, by tenant, model, adapter or day.

    A request's cost is its share of the time of the steps that it was in, at the price that the server was told
    ([cost] price, or price-of). With idle time and what was computed again it adds up to the machine's bill.
    """
    since, until = _moment(settings.since, "--from"), _moment(settings.until, "--to")
    lines = list(read_log(settings.log))
    found = sums(within((one for one in lines if isinstance(one, RequestLine)), since, until), settings.by)
    total = total_of(found.values())
    rest = house((one.between(since, until) for one in lines if isinstance(one, BillLine)), total)
    if settings.json:
        parts = {name: asdict(one) for name, one in found.items()}
        typer.echo(json.dumps({settings.by: parts, "total": asdict(total), "house": asdict(rest)}, indent=2))
    else:
        _print(settings.by, found, total, rest)


def _moment(text: str | None, flag: str) -> float | None:
    """Seconds since the epoch; a moment without a zone is UTC."""
    if text is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{flag} {text!r} is no day or moment, such as 2026-11-01 or 2026-11-01T08:00") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)).timestamp()


def _print(by: str, found: dict[str, Sum], total: Sum, rest: House) -> None:
    table = Table(Column(by, no_wrap=True), "requests", "prompt", "cached", "answer", "machine s", "USD")
    for name, one in [*found.items(), ("all requests", total)]:
        counts = (one.requests, one.prompt_tokens, one.cached_tokens, one.completion_tokens)
        shown = (*(f"{count:,}" for count in counts), f"{one.machine_seconds:,.1f}", f"{one.cost_usd:.6f}")
        table.add_row(name, *shown)
    if rest.seconds:
        for name, seconds, usd in (
            ("idle", rest.idle_s, rest.idle_usd),
            ("computed again", rest.recomputed_s, rest.recomputed_usd),
            ("not in the log", rest.other_s, rest.other_usd),
            ("the machine", rest.seconds, rest.bill_usd),
        ):
            table.add_row(name, "", "", "", "", f"{seconds:,.1f}", f"{usd:.6f}", style="dim")
    console = Console(highlight=False)
    console.print(table)
    if total.unpriced:
        console.print(f"{total.unpriced} of them were answered while the machine had no price: start it with --price")
