"""`pagoda bench`: the speed of the engine itself, beside the limits of the machine it runs on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import pagoda
from pagoda.benchmark.engine import (
    Bench,
    Ceilings,
    bench_settings,
    decode_slack,
    model_work,
    result_of,
)
from pagoda.benchmark.profile import profile
from pagoda.cli.options import ADAPTERS, OFFLOAD, with_settings
from pagoda.cli.progress import download_progress
from pagoda.config import EngineSettings
from pagoda.engine.load import LoadedEngine, load_engine
from pagoda.engine.memory import peak_memory
from pagoda.hardware.host import Hardware, int8_peak, read_bandwidth, read_hardware
from pagoda.models.experts import used_share
from pagoda.models.family import ModelFile
from pagoda.models.registry import family_of
from pagoda.settings import Setting, Settings

# The engine is measured alone: random prompts, as many as --batch says, each token computed.
NOT_READ = (
    *ADAPTERS, *OFFLOAD, "prefix_caching", "state_interval", "speculation", "draft_model", "draft_format",
    "max_num_seqs", "max_logprobs", "encoder_weights",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BenchSettings(Settings):
    """Flags of `pagoda bench`."""

    table = "bench"

    prompt: Annotated[int, Setting("Tokens of each prompt.", minimum=1)] = 512
    gen: Annotated[int, Setting("Tokens that each sequence generates.", minimum=1)] = 128
    batch: Annotated[tuple[int, ...], Setting("Sequences at once; several sizes by commas.", minimum=1)] = (1, 16)
    runs: Annotated[int, Setting("Measurements of each batch size; the median is reported.", minimum=1)] = 5
    warmup: Annotated[int, Setting("Unmeasured runs before them.", minimum=0)] = 1
    json: Annotated[bool, Setting("Print JSON.")] = False
    profile: Annotated[bool, Setting("Print where the time of a step goes, op by op.")] = False


@partial(with_settings, without=NOT_READ)
def bench(engine: EngineSettings, bench: BenchSettings) -> None:
    """Measure how fast a model runs in this engine, and what share of the machine's limits that is.

    Prefill: random prompts, tokens over the seconds until each has its first token. Decode: all sequences generate
    at once. Shares are of the memory bandwidth and the integer peak measured in the same run.

    To measure a server over HTTP: pagoda bench serve --help
    """
    report = measure(engine, bench)
    if bench.json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(report, bench, Console())


def measure(engine: EngineSettings, bench: BenchSettings) -> dict[str, Any]:
    """The report, as `--json` prints it."""
    settings = bench_settings(engine, bench.prompt, bench.gen, bench.batch)
    hardware = read_hardware()
    settings = replace(settings, threads=settings.threads or hardware.usable_cores)
    ceilings = Ceilings(read_bandwidth(settings.threads), int8_peak(settings.threads))
    with download_progress() as progress:
        loaded = load_engine(settings, progress=progress)
    try:
        results = _measure_batches(loaded, bench, ceilings)
        profile = _profile(loaded, bench, ceilings) if bench.profile else None
        serving = _serving(loaded, bench) if bench.profile else None
    finally:
        loaded.close()
    return {
        "model": loaded.model_name,
        "file_bytes": loaded.checkpoint.file_bytes,
        "pagoda": pagoda.__version__,
        "settings": asdict(settings),
        "machine": _machine(hardware, settings, ceilings),
        "results": results,
        "peak_memory_bytes": peak_memory(),
        "memory": {
            "weights": loaded.model.weight_bytes,
            "buffers": loaded.model.buffer_bytes,
            "kv": loaded.kv_plan.kv_bytes,
        },
        "profile": profile,
        "serving": serving,
    }


def _measure_batches(loaded: LoadedEngine, bench: BenchSettings, ceilings: Ceilings) -> list[dict[str, Any]]:
    block_bytes = loaded.kv_plan.footprint.block_bytes
    share = used_share(ModelFile(loaded.checkpoint, family_of(loaded.checkpoint)))
    work = model_work(loaded.checkpoint.tensors.values(), loaded.kv_plan.footprint.windows, block_bytes, share)
    runner = _runner(loaded, bench)
    results = []
    with Console(stderr=True).status("") as status:
        for batch in bench.batch:
            runs = []
            for number in range(bench.warmup + bench.runs):
                status.update(f"batch {batch}: run {number + 1} of {bench.warmup + bench.runs}")
                runs.append(runner.run(batch))
            results.append(result_of(batch, runs[bench.warmup :], bench.prompt, bench.gen, work, ceilings))
    return results


def _runner(loaded: LoadedEngine, bench: BenchSettings) -> Bench:
    slack = decode_slack(loaded.settings, bench.prompt, max(bench.batch))
    return Bench(loaded.core, prompt=bench.prompt, gen=bench.gen, slack=slack, seed=loaded.settings.seed)


def _profile(loaded: LoadedEngine, bench: BenchSettings, ceilings: Ceilings) -> list[dict[str, Any]] | None:
    """Profile each batch size op by op; None if the backend cannot."""
    program = getattr(loaded.model, "program", None)
    if program is None:
        return None
    return [profile(_runner(loaded, bench), program, batch, ceilings) for batch in bench.batch]


def _serving(loaded: LoadedEngine, bench: BenchSettings) -> dict[str, Any]:
    """Profile decoding with the largest batch as clients over HTTP."""
    from pagoda.benchmark.serving import profile_serving  # imports the server

    with Console(stderr=True).status("serving over HTTP"):
        return profile_serving(loaded, max(bench.batch), bench.prompt, bench.gen)


def _machine(hardware: Hardware, settings: EngineSettings, ceilings: Ceilings) -> dict[str, Any]:
    return {
        "cpu": hardware.cpu,
        "isa": settings.isa or (hardware.isa_paths[-1] if hardware.isa_paths else None),
        "physical_cores": hardware.physical_cores,
        "threads": settings.threads,
        "read_bandwidth": ceilings.read_bandwidth,
        "int8_peak": ceilings.int8_peak,
    }


def _print(report: dict[str, Any], bench: BenchSettings, console: Console) -> None:
    machine = report["machine"]
    console.print(
        f"{report['model']} on {machine['cpu']}, {machine['isa']}, {machine['threads']} threads, "
        f"{report['settings']['activation_type']} activations; "
        f"{_ceiling(machine['read_bandwidth'], 'GB/s read')}, {_ceiling(machine['int8_peak'], 'Gop/s int8')}",
        highlight=False,
    )
    table = Table(
        "batch", "prefill tok/s", "of peak", "TTFT ms", "decode tok/s", "of band-width", "TPOT ms", "between steps"
    )
    for row in report["results"]:
        table.add_row(
            str(row["batch"]),
            f"{row['prefill_tok_s']:.1f}",
            _percent(row["compute_share"]),
            f"{row['ttft_ms']:.1f}",
            f"{row['decode_tok_s']:.1f}",
            _percent(row["bandwidth_share"]),
            f"{row['tpot_ms']:.2f}",
            _percent(row["between_share"]),
        )
    console.print(table)
    memory = report["memory"]
    console.print(
        f"peak memory {_mb(report['peak_memory_bytes'])}: weights {_mb(memory['weights'])}, "
        f"buffers {_mb(memory['buffers'])}, KV {_mb(memory['kv'])}",
        highlight=False,
    )
    if bench.profile and report["profile"] is None:
        console.print("no profile: this backend does not tell where its time goes")
    for part in report["profile"] or ():
        for phase in ("prefill", "decode"):
            _print_profile(f"{phase}, batch {part['batch']}", part[phase], console)
    if report["serving"]:
        _print_serving(report["serving"], console)


def _print_profile(title: str, rows: list[dict[str, Any]], console: Console) -> None:
    table = Table("op", "ms", "of time", "GB/s", "Gop/s", "of bandwidth", "of peak", title=title)
    for row in rows:
        seconds = row["seconds"] or float("inf")
        table.add_row(
            row["op"],
            f"{1000 * row['seconds']:.2f}",
            _percent(row["time_share"]),
            f"{row['bytes'] / seconds / 1e9:.1f}" if row["bytes"] else "",
            f"{row['operations'] / seconds / 1e9:.1f}" if row["operations"] else "",
            _percent(row["bandwidth_share"]),
            _percent(row["compute_share"]),
        )
    console.print(table)


def _print_serving(report: dict[str, Any], console: Console) -> None:
    table = Table("part", "ms a step", "of time", title=f"a decode step over HTTP, {report['batch']} clients")
    for row in report["parts"]:
        table.add_row(row["part"], f"{1000 * row['seconds'] / report['steps']:.3f}", _percent(row["time_share"]))
    console.print(table)
    console.print(f"{_percent(report['outside'])} of the step is not the forward pass", highlight=False)


def _ceiling(value: float | None, unit: str) -> str:
    return f"{unit} not measured" if value is None else f"{value / 1e9:.1f} {unit}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.0f} MB"
