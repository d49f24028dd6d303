"""A plan in the terminal: within 100 columns, a column for each device and format."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pagoda.plan.output.report import plan_json
from pagoda.plan.planner import Plan

WIDTH = 100
LABEL_WIDTH, COLUMN_WIDTH = 26, 20  # plans that do not fit side by side go below

Row = tuple[str, Callable[[dict[str, Any]], str]]


def print_plan(plan: Plan, console: Console) -> None:
    console = Console(file=console.file, width=min(WIDTH, console.width), highlight=False)
    shape, settings = plan.shape, plan.settings
    active = f", {_count(shape.active_parameters)} active" if shape.active_parameters != shape.parameters else ""
    console.print(
        f"[bold]{shape.name}[/] ({shape.architecture}): {_count(shape.parameters)} parameters{active}, "
        f"{shape.num_layers} layers, context {shape.max_context:,}.\nPrompt {settings.prompt:,}, "
        f"output {settings.output:,} tokens."
    )
    for assumption in shape.assumptions:
        console.print(f"assumed: {assumption}", style="yellow")
    found = [plan_json(target) for target in plan.targets]
    columns = max(1, (console.width - LABEL_WIDTH) // COLUMN_WIDTH)
    for start in range(0, len(found), columns):
        console.print(_table(found[start : start + columns]))
    if len(found) == 1 and found[0]["memory"]["max_concurrent_requests"]:
        console.print(_throughput(found[0]))
    for one in found:
        _print_sentences(one, console, alone=len(found) == 1)


def _table(plans: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("", style="dim")
    for one in plans:
        device = one["device"]
        count = f"{device['count']} × " if device["count"] > 1 else ""
        table.add_column(f"{count}{device['id']}\n{one['format']['name']}", justify="right")
    for label, show in ROWS:
        table.add_row(label, *[_cell(show, one) for one in plans])
    return table


def _cell(show: Callable[[dict[str, Any]], str], one: dict[str, Any]) -> Text:
    try:
        return Text(show(one))
    except TypeError:  # part of the plan is null: nothing runs there
        return Text("–", style="dim")


def _fits(one: dict[str, Any]) -> str:
    memory = one["memory"]
    return "yes" if one["fits"] else f"{_gb(memory['missing_bytes'])} too much"


def _users(one: dict[str, Any]) -> str:
    return f"{one['operating_point']['concurrency']:,}"


def _usd(one: dict[str, Any], which: str) -> str:
    usd = one["cost"][f"usd_per_million_{which}_tokens"]
    return f"${usd:,.2f}" if usd >= 0.1 else f"${usd:.2g}"


def _compute_batch(one: dict[str, Any]) -> str:
    batch = one["roofline"]["decode_compute_bound_from_batch"]
    return "never" if batch is None else f"batch {batch:,}"


ROWS: tuple[Row, ...] = (
    ("fits", _fits),
    ("weights", lambda p: _gb(p["memory"]["weights_bytes"])),
    ("buffers and runtime", lambda p: _gb(p["memory"]["buffers_bytes"] + p["memory"]["runtime_bytes"])),
    ("KV in", lambda p: str(p["memory"]["kv_type"])),
    ("KV a token", lambda p: _size(p["memory"]["kv_bytes_per_token"])),
    ("KV a request", lambda p: _size(p["memory"]["kv_bytes_per_request"])),
    ("requests at once, at most", lambda p: f"{p['memory']['max_concurrent_requests']:,}"),
    ("KV wasted: static → paged", lambda p: _lost(p["kv_waste"])),
    ("ridge, FLOP/byte", lambda p: f"{p['roofline']['ridge_flops_per_byte']:,.0f}"),
    (
        "prefill, FLOP/byte",
        lambda p: f"{p['roofline']['prefill_flops_per_byte']:,.0f} {p['roofline']['prefill_bound']}",
    ),
    ("decode, FLOP/byte", lambda p: f"{p['roofline']['decode_flops_per_byte']:,.1f} {p['roofline']['decode_bound']}"),
    ("decode compute-bound from", _compute_batch),
    ("one user: TTFT (ceiling)", lambda p: f"{_ms(p['latency']['ttft_ms'])} ({_ms(p['latency']['ttft_ceiling_ms'])})"),
    ("one user: TPOT (ceiling)", lambda p: f"{_ms(p['latency']['tpot_ms'])} ({_ms(p['latency']['tpot_ceiling_ms'])})"),
    ("users at once", _users),
    ("  TTFT", lambda p: _ms(p["operating_point"]["ttft_ms"])),
    ("  TPOT", lambda p: _ms(p["operating_point"]["tpot_ms"])),
    ("  output tokens/s", lambda p: _rate(p["operating_point"]["output_tokens_per_s"])),
    ("  price an hour", lambda p: f"${p['cost']['price_usd_per_h']:,.2f}"),
    ("  1M output tokens", lambda p: _usd(p, "output")),
    ("  1M input tokens", lambda p: _usd(p, "input")),
)

WHY_SO_MANY = (("users at once", "concurrency"),)  # said of each of several plans
REASONS = (
    ("requests at once", "max_concurrent_requests"),
    *WHY_SO_MANY,
    ("prefill", "prefill_bound"),
    ("decode", "decode_bound"),
    ("TTFT", "ttft_ms"),
    ("TPOT", "tpot_ms"),
)


def _throughput(one: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for title in ("users", "TTFT", "TPOT", "output tok/s", "input tok/s", "decode bound by", ""):
        table.add_column(title, justify="left" if title in ("decode bound by", "") else "right")
    for row in one["throughput"]:
        table.add_row(
            f"{row['concurrency']:,}",
            _ms(row["ttft_ms"]),
            _ms(row["tpot_ms"]),
            _rate(row["output_tokens_per_s"]),
            _rate(row["input_tokens_per_s"]),
            row["bound"],
            "" if row["fits"] else "does not fit",
            style=None if row["fits"] else "dim",
        )
    return table


def _print_sentences(one: dict[str, Any], console: Console, *, alone: bool) -> None:
    name = f"{one['device']['id']} {one['format']['name']}"
    if one["doubts"]:
        words = f"{name}: measured just now, and not to be trusted: {'; '.join(one['doubts'])}. Plan again while the "
        console.print(Text(f"{words}machine rests.", style="yellow"))
    refusal = one["does_not_fit"]
    if refusal is not None:
        console.print(Text(f"{name}: {refusal['problem']}.", style="red"))
        for change in refusal["changes"]:
            console.print(Text(f"  would do: {change}"))
        if not refusal["changes"]:
            console.print(Text(f"  {refusal['otherwise']}"))
        return
    console.print(Text(f"{name}:"))
    for command in filter(None, (one["serve"]["first"], one["serve"]["command"])):
        for line in shell_lines(command, console.width - 2):
            console.print(Text(f"  {line}"), soft_wrap=True)
    console.print(Padding(Text(one["serve"]["speculation"]), (0, 0, 0, 2), expand=False))
    if one["serve"]["note"]:
        console.print(Padding(Text(one["serve"]["note"], style="yellow"), (0, 0, 0, 2), expand=False))
    for label, key in REASONS if alone else WHY_SO_MANY:
        console.print(Padding(Text(f"{label}: {one['reasons'][key]}", style="dim"), (0, 0, 0, 2), expand=False))
    if alone:
        console.print(Padding(Text(f"speeds from: {one['speeds_from']}", style="dim"), (0, 0, 0, 2), expand=False))


def shell_lines(command: str, width: int) -> list[str]:
    """A command over as many lines as it needs, which a shell reads as one: all but the last end in a backslash."""
    lines: list[str] = []
    for word in re.split(r" (?=-)", command):
        if lines and len(lines[-1]) + len(word) + 3 <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(f"    {word}" if lines else word)
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def _lost(found: dict[str, Any]) -> str:
    return f"{100 * found['static_reservation_share']:.0f} % → {100 * found['paged_share']:.1f} %"


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f} GB"


def _size(num_bytes: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes:,.0f} B"


def _ms(milliseconds: float) -> str:
    if milliseconds >= 10_000:
        return f"{milliseconds / 1000:,.1f} s"
    return f"{milliseconds:,.0f} ms" if milliseconds >= 100 else f"{milliseconds:.1f} ms"
