"""`pagoda bench speculation`: the same prompts with and without guesses, in turn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pagoda.benchmark.speculation import Prompt, SpeculationBench, measure, report
from pagoda.cli.options import ADAPTERS, OFFLOAD, with_settings
from pagoda.cli.progress import download_progress
from pagoda.config import EngineSettings
from pagoda.engine.load import LoadedEngine, load_engine
from pagoda.errors import ConfigError
from pagoda.settings import Setting, Settings
from pagoda.types import SamplingParams


@dataclass(frozen=True, slots=True)
class SpeculationBenchSettings(Settings):
    """Flags of `pagoda bench speculation`."""

    table = "bench-speculation"

    prompts: Annotated[
        str, Setting('JSONL file; a line is {"name", "messages" or "prompt", "prediction" (a text, optional)}.')
    ]
    output: Annotated[int, Setting("Tokens of each answer at most.", minimum=1)] = 200
    temperature: Annotated[float, Setting("0: greedy.", minimum=0)] = 0.0
    concurrency: Annotated[int, Setting("Prompts that are answered at once.", minimum=1)] = 1
    rounds: Annotated[int, Setting("Pairs of each prompt.", minimum=1)] = 1
    limit: Annotated[int | None, Setting("Only the first so many prompts.", minimum=1)] = None
    json: Annotated[bool, Setting("Print JSON.")] = False


@partial(with_settings, without=(*ADAPTERS, *OFFLOAD, "seed", "max_logprobs", "encoder_weights"))
def bench_speculation(engine: EngineSettings, bench: SpeculationBenchSettings) -> None:
    """Measure what speculation gains on your own prompts: tokens a second with and without it, in turn.

    Time runs from when the prompts are computed. Every answer must be the same both ways; exits with 1 if one is not.
    """
    if engine.speculation == ("off",):
        raise ConfigError("--speculation off leaves nothing to measure; leave it out, or name drafters")
    lines = read_prompts(Path(bench.prompts))[: bench.limit]
    settings = replace(engine, max_num_seqs=engine.max_num_seqs or max(bench.concurrency, 8))
    with download_progress() as progress:
        loaded = load_engine(settings, progress=progress)
    try:
        found = _measure(loaded, lines, bench)
    finally:
        loaded.close()
    found = {
        "model": loaded.model_name,
        "draft_model": None if loaded.draft is None else loaded.draft.name,
        "activations": settings.activation_type,
        "temperature": bench.temperature,
        "concurrency": bench.concurrency,
        **found,
    }
    typer.echo(json.dumps(found, indent=2)) if bench.json else _print(found, Console(highlight=False))
    if found["different"]:
        raise typer.Exit(1)


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of prompts. ConfigError names the line that is not one."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"--prompts {path}: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, dict) or ("messages" in line) == ("prompt" in line):
            raise ConfigError(f'--prompts {path}: line {number} must hold either "messages" or "prompt"')
    if not lines:
        raise ConfigError(f"--prompts {path} holds no prompt")
    return lines


def _measure(loaded: LoadedEngine, lines: Sequence[dict[str, Any]], bench: SpeculationBenchSettings) -> dict[str, Any]:
    params = SamplingParams(max_tokens=bench.output, temperature=bench.temperature, seed=0)
    prompts = [_prompt(loaded, number, line) for number, line in enumerate(lines, start=1)]
    with Console(stderr=True).status("") as status:
        pairs = measure(
            SpeculationBench(loaded.core, params),
            prompts,
            concurrency=bench.concurrency,
            rounds=bench.rounds,
            progress=status.update,
        )
    return report(pairs)


def _prompt(loaded: LoadedEngine, number: int, line: dict[str, Any]) -> Prompt:
    if "prompt" in line:
        ids = loaded.tokenizer.encode(line["prompt"], parse_special=True)
    elif loaded.chat_template is None:
        raise ConfigError(f'{loaded.model_name} has no chat template: give "prompt" in place of "messages"')
    else:
        ids = loaded.chat_template.render_ids(line["messages"])
    text = line.get("prediction")
    prediction = None if text is None else tuple(loaded.tokenizer.encode(text, add_special=False))
    return Prompt(str(line.get("name", number)), tuple(ids), prediction)


def _print(found: dict[str, Any], console: Console) -> None:
    console.print(
        f"{found['model']}{' with ' + found['draft_model'] if found['draft_model'] else ''}, "
        f"{found['activations']} activations, temperature {found['temperature']:g}, {found['concurrency']} at once"
    )
    table = Table("prompts", box=None, pad_edge=False)
    for heading in ("tokens", "off tok/s", "on tok/s", "gain"):
        table.add_column(heading, justify="right")
    for pair in found["pairs"]:
        rates = (f"{pair['off_tok_s']:.1f}", f"{pair['on_tok_s']:.1f}", f"{pair['gain']:.2f}")
        table.add_row(", ".join(pair["names"])[:50], str(pair["tokens"]), *rates)
    console.print(table)
    console.print(
        f"[bold]{found['gain']:.2f}[/] times as fast (median of pairs), {found['total_gain']:.2f} in all; "
        f"{found['tokens_per_step']:.2f} tokens a step; {100 * found['drafting_share']:.1f} % of the time is guessing"
    )
    for name, counts in found["drafters"].items():
        console.print(f"{name}: {counts['kept']} of {counts['drafted']} tokens were right")
    if found["different"]:
        console.print(f"[red]answers differ:[/] {found['different']}")
