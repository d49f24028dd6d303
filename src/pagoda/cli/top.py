"""`pagoda top`: the live page in a terminal."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pagoda.cli.options import with_settings
from pagoda.client import HttpClient, HttpError
from pagoda.errors import PagodaError
from pagoda.settings import Setting, Settings

BARS = " ▁▂▃▄▅▆▇█"
WIDTH = 60
LINES = (("tokens/s", "tokens_s"), ("TTFT ms", "ttft_ms"), ("TPOT ms", "tpot_ms"), ("running", "running"),
         ("waiting", "waiting"), ("KV held", "kv"))  # fmt: skip


class NoServerError(PagodaError):
    """Nobody answers there, or what answers does not show what it does."""


@dataclass(frozen=True, slots=True)
class TopSettings(Settings):
    """Flags of `pagoda top`."""

    table = "top"

    url: Annotated[str, Setting("The server, such as http://127.0.0.1:8000.")] = "http://127.0.0.1:8000"
    api_key: Annotated[str | None, Setting("The server's admin key, where it asks for keys.")] = None
    every: Annotated[float, Setting("Seconds between two looks.", minimum=0.2)] = 1.0
    once: Annotated[bool, Setting("Look once, print it and leave.")] = False
    json: Annotated[bool, Setting("With --once: print JSON.")] = False


@with_settings
def top(settings: TopSettings) -> None:
    """Show what a server does now, what it costs and why it is as fast as it is; Ctrl-C leaves."""
    console = Console(highlight=False)
    state = live_state(settings.url, settings.api_key)
    if settings.json:
        typer.echo(json.dumps(state, indent=2))
    elif settings.once:
        console.print(view(state))
    else:
        with Live(view(state), console=console, screen=True, auto_refresh=False) as screen:
            while True:
                time.sleep(settings.every)
                screen.update(view(live_state(settings.url, settings.api_key)), refresh=True)


def live_state(url: str, api_key: str | None) -> dict[str, Any]:
    """What the server's /live/state says. NoServerError that says what to do."""
    try:
        state: dict[str, Any] = json.loads(asyncio.run(_get(url, api_key)))
    except HttpError as error:
        hint = ": give the admin key as --api-key" if error.status in (401, 403) else ""
        raise NoServerError(f"{url} does not show what it does{hint} ({error})") from None
    except (OSError, ValueError) as error:
        raise NoServerError(f"no Pagoda answers at {url}: {error}") from None
    return state


async def _get(url: str, api_key: str | None) -> bytes:
    client = HttpClient(url, api_key)
    try:
        return await client.get("/live/state")
    finally:
        client.close()


def view(state: dict[str, Any]) -> Group:
    """All of it, for a terminal."""
    said = Panel(Text(state["sentence"]), title=f"{state['model']}: {state['situation']}", title_align="left")
    alerts = [Text(f"▲ {alert}", style="yellow") for alert in state["alerts"]]
    return Group(said, *alerts, _lines(state["lines"]), _requests(state), _foot(state))


def _lines(lines: dict[str, list[float]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for label, name in LINES:
        values = lines[name][-WIDTH:]
        table.add_row(label, spark(values), f"{values[-1]:.3g}")
    return table


def spark(values: list[float]) -> str:
    """A line of bars, the highest of which is the largest value."""
    most = max(values, default=0.0)
    return "".join(BARS[round(value / most * (len(BARS) - 1))] if most else BARS[0] for value in values)


def _requests(state: dict[str, Any]) -> Table:
    table = Table("request", "tenant", "phase", "prompt", "cached", "tokens", "TTFT", "TPOT", "cost", box=None)
    for row in state["requests"]:
        cost = "" if row["cost_usd"] is None else f"${row['cost_usd']:.6f}"
        counts = (row["prompt_tokens"], row["cached_tokens"], row["output_tokens"])
        times = (_ms(row["ttft_s"]), _ms(row["tpot_s"]))
        table.add_row(escape(row["id"]), escape(row["tenant"]), row["phase"], *map(str, counts), *times, cost)
    if not state["requests"]:
        table.add_row("no request is under way")
    return table


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.3g} ms"


def _foot(state: dict[str, Any]) -> Text:
    facts, money = state["facts"], state["money"]
    parts = [f"KV blocks {facts['kv_share']:.0%} held", f"memory {state['memory_share']:.0%}"]
    if facts["prefix_queries"]:
        parts.append(f"{facts['prefix_hits'] / facts['prefix_queries']:.0%} of prompt tokens cached")
    if facts["draft_tokens"]:
        parts.append(f"{facts['accepted_tokens'] / facts['draft_tokens']:.0%} of draft tokens kept")
    if money:
        parts.append(f"${money['usd_per_hour']:g} an hour, ${money['requests_usd']:.6f} charged to requests")
    return Text(", ".join(parts), style="dim")
