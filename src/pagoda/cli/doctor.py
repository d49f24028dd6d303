"""`pagoda doctor`: what this machine has to run models, and what stands in the way, with the remedy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

import pagoda
from pagoda.cli.options import with_settings
from pagoda.cli.top import live_state
from pagoda.config import EngineSettings, ServerSettings, cache_dir
from pagoda.errors import ConfigError
from pagoda.hardware.host import Hardware, read_hardware
from pagoda.hardware.machine import age, measurement

# Packages of the extras, and what they are imported as.
OPTIONAL = {
    "torch": "torch",
    "triton": "triton",
    "matplotlib": "matplotlib",
    "jsonschema": "jsonschema",
    "transformers": "transformers",
    "peft": "peft",
    "accelerate": "accelerate",
    "redis": "redis",
    "psycopg": "psycopg",
    "usearch": "usearch",
    "cryptography": "cryptography",
    "nvidia-ml-py": "pynvml",
    "opentelemetry-sdk": "opentelemetry.sdk",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter.otlp.proto.http",
    "ray": "ray",
}
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Something that stands in the way, and what helps."""

    problem: str
    remedy: str


@partial(with_settings, only=("threads", "isa", "host", "port"))
def doctor(
    engine: EngineSettings,
    server: ServerSettings,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    measure: Annotated[bool, typer.Option(help="Measure memory, caches and arithmetic, or recall it.")] = True,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure again what is remembered.")] = False,
    url: Annotated[str | None, typer.Option(help="Ask a running server why it is as fast as it is.")] = None,
    url_key: Annotated[str | None, typer.Option("--url-key", help="Its admin key, where it asks for keys.")] = None,
) -> None:
    """Show what this machine has to run models, and warn of what stands in the way, with the remedy.

    What memory, caches, arithmetic and Pagoda's matrix products reach is measured once, in some seconds, and kept in
    the cache folder; pagoda plan --on this reads it too. Measure while the machine rests.
    """
    if url is not None:
        state = live_state(url, url_key)
        typer.echo(json.dumps(state, indent=2) if as_json else f"{state['situation']}: {state['sentence']}")
        return
    report = examine(engine, server, measure=measure or refresh, refresh=refresh)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(report)


def examine(engine: EngineSettings, server: ServerSettings, *, measure: bool, refresh: bool = False) -> dict[str, Any]:
    """All facts and warnings, as `--json` prints them."""
    hardware = read_hardware()
    threads = engine.threads or hardware.usable_cores
    machine = _measured(threads, refresh) if measure else None
    free = port_is_free(server.host, server.port)
    warnings = [*find_warnings(hardware, engine, server, port_free=free)]
    if machine and machine["doubts"]:
        problem = f"what was measured is not to be trusted, and not kept: {'; '.join(machine['doubts'])}"
        warnings.append(Obstacle(problem, "run pagoda doctor again while the machine rests"))
    return {
        "versions": _versions(),
        "hardware": asdict(hardware),
        "threads": threads,
        "isa": engine.isa or (hardware.isa_paths[-1] if hardware.isa_paths else None),
        "read_bandwidth": machine["read_bandwidth"][threads] if machine else None,
        "int8_peak": machine["peaks"]["int8"] if machine else None,
        "machine": machine,
        "cache": {"folder": str(cache_dir()), "models": cached_models(cache_dir())},
        "port": {"host": server.host, "port": server.port, "free": free},
        "warnings": [asdict(warning) for warning in warnings],
    }


def _measured(threads: int, refresh: bool) -> dict[str, Any]:
    with Console(stderr=True).status("") as status:

        def say(what: str) -> None:
            status.update(f"measuring: {what}")

        return asdict(measurement(threads=threads, refresh=refresh, say=say))


def find_warnings(
    hardware: Hardware, engine: EngineSettings, server: ServerSettings, *, port_free: bool
) -> Iterator[Obstacle]:
    """Every obstacle on this machine with these settings."""
    if engine.isa and engine.isa not in hardware.isa_paths:
        yield Obstacle(f"--isa {engine.isa} is not available here", f"use one of {', '.join(hardware.isa_paths)}")
    if hardware.isa_paths == ("generic",):
        yield Obstacle("only generic kernels run on this CPU: slow", "use a CPU with AVX2, AVX-512 or NEON")
    threads = engine.threads or hardware.usable_cores
    if threads > hardware.allowed_cpus:
        remedy = f"use --threads {hardware.usable_cores}, or allow more CPUs"
        yield Obstacle(f"{threads} threads share {hardware.allowed_cpus} CPUs", remedy)
    if hardware.cpu_quota is not None and hardware.cpu_quota < threads:
        remedy = f"raise the container's CPU limit, or use --threads {max(1, int(hardware.cpu_quota))}"
        yield Obstacle(f"the cgroup allows {hardware.cpu_quota:g} CPUs to {threads} threads: they are stopped", remedy)
    room = _least(hardware.memory_available, hardware.memory_limit)
    if room is not None and room < GIB:
        yield Obstacle(f"only {room / GIB:.1f} GiB of memory are free", "free some, or raise the container's limit")
    if hardware.huge_pages == "never":
        remedy = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled, as root"
        yield Obstacle("transparent huge pages are off: weights are read more slowly", remedy)
    if not port_free:
        yield Obstacle(f"port {server.port} is taken on {server.host}", "stop what uses it, or choose another --port")
    if not _writable(cache_dir()):
        yield Obstacle(f"{cache_dir()} cannot be written", "set PAGODA_CACHE to a folder that can")


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now. ConfigError: no such host."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigError(f"--host {host}: {error.strerror}") from None
    with socket.socket(family, kind, proto) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
        except OSError:
            return False
    return True


def cached_models(cache: Path) -> list[dict[str, Any]]:
    """Model files of the cache, with their size in bytes."""
    files = sorted(path for path in (cache / "models").rglob("*") if path.suffix in (".gguf", ".safetensors"))
    return [{"file": str(path.relative_to(cache)), "bytes": path.stat().st_size} for path in files]


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {
        "pagoda": pagoda.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "numpy": importlib.metadata.version("numpy"),
        "tokenizers": importlib.metadata.version("tokenizers"),
    }
    return versions | {name: _version(name) for name in OPTIONAL}


def _version(name: str) -> str | None:
    """The installed version of an optional package; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # or a package whose distribution is called otherwise
        module = OPTIONAL[name]
        return "installed" if "." not in module and importlib.util.find_spec(module) is not None else None


def _writable(folder: Path) -> bool:
    """Whether the folder, or the nearest parent that is there, can be written."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def _least(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _print(report: dict[str, Any]) -> None:
    console = Console(highlight=False)
    table = Table("", Column(overflow="fold"), show_header=False, box=None, pad_edge=False)
    for label, text in _rows(report):
        table.add_row(f"[bold]{label}[/]", escape(text))
    console.print(table)
    for warning in report["warnings"]:
        console.print(f"[yellow]warning:[/] {escape(warning['problem'])}\n         → {escape(warning['remedy'])}")
    if not report["warnings"]:
        console.print("[green]nothing stands in the way[/]")


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    versions, hardware = report["versions"], report["hardware"]
    yield "Pagoda", f"{versions['pagoda']} on Python {versions['python']}, {versions['system']}"
    yield "CPU", f"{hardware['cpu']} ({hardware['machine']})"
    yield "cores", _cores(hardware, report["threads"])
    paths = " ".join(hardware["isa_paths"]) or "not known"
    yield "kernels", f"{paths}; {report['isa'] or 'none'} is used"
    yield "memory", _memory(hardware)
    if report["machine"]:
        yield from _machine_rows(report["machine"])
    models = report["cache"]["models"]
    total = sum(model["bytes"] for model in models)
    yield "cache", f"{report['cache']['folder']}: {len(models)} model files, {total / 1e6:.0f} MB"
    for model in models:
        yield "", f"{model['file']} ({model['bytes'] / 1e6:.0f} MB)"
    port = report["port"]
    yield "port", f"{port['port']} on {port['host']} is {'free' if port['free'] else 'taken'}"
    yield "extras", ", ".join(f"{name} {versions[name]}" for name in OPTIONAL if versions[name]) or "none installed"


def _machine_rows(machine: dict[str, Any]) -> Iterator[tuple[str, str]]:
    rates = (f"{rate / 1e9:.1f} with {threads}" for threads, rate in machine["read_bandwidth"].items())
    yield "bandwidth", f"GB/s read by threads: {', '.join(rates)}"
    yield "arithmetic", ", ".join(f"{kind} {rate / 1e9:,.0f} Gop/s" for kind, rate in machine["peaks"].items())
    yield "caches", ", ".join(_cache(cache) for cache in machine["caches"]) or "not known"
    yield "products", "GB/s of weights for one token, Gop/s for a prompt:"
    for one in machine["products"]:
        yield "", f"{one['type']:<5} {one['bytes_s'] / 1e9:6.1f} {one['ops_s'] / 1e9:7,.0f}"
    if gpu := machine["gpu"]:
        peaks = ", ".join(f"{kind} {rate / 1e12:,.0f}" for kind, rate in gpu["flops"].items())
        memory = f"{gpu['memory_bytes'] / GIB:.1f} GiB, {gpu['bandwidth_bytes_s'] / 1e9:,.0f} GB/s"
        yield "GPU", f"{gpu['name']}: {memory}; TFLOP/s: {peaks}"
    state = "while the machine was busy, so it is not kept" if machine["doubts"] else "while the machine was quiet"
    yield "measured", f"{age(machine['date'])} with {machine['threads']} threads, {state}; --refresh measures again"


def _cache(cache: dict[str, Any]) -> str:
    size, rate = cache["bytes"], cache["bandwidth_bytes_s"]
    shown = f"{size / 2**20:g} MiB" if size >= 2**20 else f"{size / 2**10:g} KiB"
    return f"{cache['level']} {shown}" + (f" at {rate / 1e9:,.0f} GB/s" if rate else "")


def _cores(hardware: dict[str, Any], threads: int) -> str:
    quota = f", the cgroup allows {hardware['cpu_quota']:g} CPUs" if hardware["cpu_quota"] else ""
    allowed = f"{hardware['allowed_cpus']} of {hardware['logical_cpus']} logical CPUs allowed"
    return f"{hardware['physical_cores']} physical cores, {allowed}{quota}; {threads} threads compute"


def _memory(hardware: dict[str, Any]) -> str:
    parts = [
        f"{hardware[key] / GIB:.1f} GiB {label}"
        for key, label in (
            ("memory_total", "in all"),
            ("memory_available", "available"),
            ("memory_limit", "allowed by the cgroup"),
        )
        if hardware[key] is not None
    ]
    pages = f"; huge pages: {hardware['huge_pages']}" if hardware["huge_pages"] else ""
    nodes = f"; {hardware['numa_nodes']} NUMA nodes" if (hardware["numa_nodes"] or 1) > 1 else ""
    return ", ".join(parts) + pages + nodes
