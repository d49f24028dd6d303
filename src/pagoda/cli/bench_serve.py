"""`pagoda bench serve`: load any OpenAI-compatible server and time its answers."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pagoda.benchmark.load import Arrival, Exchange, Load, compare, run_load, summarize, takes_ids
from pagoda.cli.options import with_settings
from pagoda.client import list_models
from pagoda.errors import ConfigError
from pagoda.observe.request_log import read_lines
from pagoda.settings import Setting, Settings

DEFAULT_VOCAB = 32_000


@dataclass(frozen=True, slots=True)
class LoadSettings(Settings):
    """Flags of `pagoda bench serve`."""

    table = "bench-serve"

    url: Annotated[str, Setting("The server, such as http://127.0.0.1:8000.")] = "http://127.0.0.1:8000"
    concurrency: Annotated[int, Setting("Clients; each waits for its answer before it asks again.", minimum=1)] = 16
    prompt: Annotated[int, Setting("Tokens of each prompt.", minimum=1)] = 256
    output: Annotated[int, Setting("Tokens of each answer.", minimum=1)] = 64
    requests: Annotated[int, Setting("Requests in all.", minimum=1)] = 64
    expect: Annotated[str | None, Setting("Second server; report whether both answer the same.")] = None
    slo_ttft: Annotated[float | None, Setting("Goodput: time to the first token at most, in ms.", minimum=0)] = None
    slo_tpot: Annotated[float | None, Setting("Goodput: time of each further token at most, in ms.", minimum=0)] = None
    model: Annotated[str | None, Setting("Model to ask for; the first that the server lists by default.")] = None
    api_key: Annotated[str | None, Setting("Key to send.")] = None
    text: Annotated[bool, Setting("Send words instead of token ids.")] = False
    vocab: Annotated[int | None, Setting("Size of the vocabulary that token ids are drawn from.", minimum=1)] = None
    timeout: Annotated[float, Setting("Seconds that one answer may take.", minimum=0.001)] = 600.0
    seed: Annotated[int, Setting("Of the prompts.")] = 0
    replay: Annotated[
        Path | None,
        Setting(
            "Log of `pagoda serve --request-log`: send requests of its lengths at its moments, in place of those above."
        ),
    ] = None
    speed: Annotated[float, Setting("With --replay: how many times faster than it was.", minimum=0.001)] = 1.0
    speculation_gain: Annotated[
        bool, Setting("Send everything once more without speculation, and report its gain; for Pagoda's servers.")
    ] = False
    json: Annotated[bool, Setting("Print JSON.")] = False


@with_settings
def bench_serve(load: LoadSettings) -> None:
    """Load an OpenAI-compatible server (Pagoda, llama-server, vLLM) with random prompts and time its answers.

    Prompts are random token ids, greedy, with ignore_eos, so that every answer has the length asked for. Reports
    throughput, goodput under the SLO stated, and percentiles of time to first token (TTFT), time per output token
    (TPOT), inter-token latency (ITL) and end-to-end time (E2E). Exits with 1 if a request failed.
    """
    report = asyncio.run(_measure(load))
    if load.json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(report)
    if report["errors"]:
        raise typer.Exit(1)


async def _measure(settings: LoadSettings) -> dict[str, Any]:
    load = await _plan(settings, settings.url)
    exchanges, seconds = await _run(load, settings)
    report = summarize(load, exchanges, seconds, settings.slo_ttft, settings.slo_tpot)
    if settings.expect:
        second = await _plan(settings, settings.expect)
        second = dataclasses.replace(second, vocab_size=load.vocab_size, as_text=load.as_text)
        report["expect"] = {"url": settings.expect} | compare(exchanges, (await _run(second, settings))[0])
    if settings.speculation_gain:
        report["speculation"] = await _gain(load, settings, exchanges, report["output_tok_s"])
    return report


async def _gain(load: Load, settings: LoadSettings, exchanges: list[Exchange], rate: float) -> dict[str, Any]:
    """The same requests without speculation, beside those with it, which gave `rate` output tokens a second."""
    plain = dataclasses.replace(load, speculation=False)
    others, seconds = await _run(plain, settings)
    off = summarize(plain, others, seconds, None, None)
    return {
        "off_output_tok_s": off["output_tok_s"],
        "off_tpot_ms": off["tpot_ms"],
        "off_errors": off["errors"],
        "gain": round(rate / off["output_tok_s"], 4) if off["output_tok_s"] else None,
        **compare(exchanges, others),
    }


async def _plan(settings: LoadSettings, url: str) -> Load:
    """What to send to `url`, after one request that warms it up and finds out whether it takes token ids."""
    listed = (await list_models(url, settings.api_key))[0]
    vocab = (listed.get("meta") or {}).get("n_vocab")  # llama-server tells
    load = Load(
        url=url,
        concurrency=settings.concurrency,
        prompt=settings.prompt,
        output=settings.output,
        requests=settings.requests,
        model=settings.model or listed["id"],
        vocab_size=settings.vocab or vocab or DEFAULT_VOCAB,
        as_text=settings.text,
        api_key=settings.api_key,
        seed=settings.seed,
        timeout=settings.timeout,
        replay=() if settings.replay is None else _arrivals(settings.replay, settings.speed),
    )
    load = dataclasses.replace(load, requests=len(load.replay) or load.requests)
    if not await takes_ids(load):
        load = dataclasses.replace(load, as_text=True)
    return load


def _arrivals(path: Path, speed: float) -> tuple[Arrival, ...]:
    """The requests of a log, as far as they were answered."""
    lines = sorted((line for line in read_lines(path) if line.completion_tokens), key=lambda line: line.arrival)
    if not lines:
        raise ConfigError(f"--replay {path}: holds no answered request")
    first = lines[0].arrival
    return tuple(
        Arrival((line.arrival - first) / speed, line.prompt_tokens, max(1, line.completion_tokens // line.n))
        for line in lines
    )


async def _run(load: Load, settings: LoadSettings) -> Any:
    if settings.json:
        return await run_load(load)
    with Console(stderr=True).status("") as status:
        return await run_load(load, lambda done: status.update(f"{load.url}: {done} of {load.requests} answered"))


def _print(report: dict[str, Any]) -> None:
    console = Console()
    console.print(
        f"{report['model']} at {report['url']}: {report['completed']} of {report['requests']} requests in "
        f"{report['duration_s']:.1f} s, {report['concurrency']} at once",
        highlight=False,
    )
    console.print(f"[bold]{report['output_tok_s']:.1f}[/] output tokens/s, {report['request_s']:.2f} requests/s")
    if report["slo"]:
        console.print(f"goodput {report['goodput_request_s']:.2f} requests/s within {_slo(report['slo'])}")
    table = Table("milliseconds", "mean", "p50", "p90", "p99")
    for name, label in (("ttft_ms", "TTFT"), ("tpot_ms", "TPOT"), ("itl_ms", "ITL"), ("e2e_ms", "E2E")):
        if report[name]:
            table.add_row(label, *(f"{report[name][column]:.1f}" for column in ("mean", "p50", "p90", "p99")))
    console.print(table)
    for message, count in report["errors"].items():
        console.print(f"[red]{count} failed:[/] {message}", markup=True, highlight=False)
    if found := report.get("speculation"):
        console.print(
            f"without speculation {found['off_output_tok_s']:.1f} output tokens/s: a gain of {found['gain']} times; "
            f"{found['equal']} of {found['compared']} answers are equal",
            highlight=False,
        )
    if expect := report.get("expect"):
        console.print(f"{expect['equal']} of {expect['compared']} answers equal those of {expect['url']}")


def _slo(slo: dict[str, float | None]) -> str:
    shown = {"ttft_ms": "TTFT", "tpot_ms": "TPOT"}
    return ", ".join(f"{shown[name]} {limit:g} ms" for name, limit in slo.items() if limit is not None)
