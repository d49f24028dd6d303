"""What this machine can do at most and what Pagoda's kernels reach of it, measured once in some seconds and remembered.

The measurement is kept in the user's cache folder under the CPU's model, the threads and Pagoda's version, so that
another machine that shares the folder, or a new version's kernels, is measured anew.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pagoda
from pagoda.config import cache_dir
from pagoda.hardware.caches import read_caches
from pagoda.hardware.cuda import Gpu, measure_gpu
from pagoda.hardware.device import CacheLevel, Device, Efficiency
from pagoda.hardware.host import Hardware, read_hardware
from pagoda.hardware.matmul_bench import Product
from pagoda.hardware.passes import Say, measure_once, measure_passes

FILE = "machine.json"
METHOD = 2  # of measuring: figures of another one are not comparable
TYPICAL = "Q4_K"  # whose products stand for the machine's efficiency: the usual format on CPUs
STEP_OVERHEAD_S = 0.22e-3  # between two decode steps of the default model: 3 % of 7.4 ms on two cores (docs/log.md)


@dataclass(frozen=True, slots=True)
class Measurement:
    """Measured rates of this machine, in bytes/s and operations/s; `read_bandwidth` is by number of threads."""

    cpu: str
    threads: int
    isa: str
    version: str
    date: str
    seconds: float
    read_bandwidth: Mapping[int, float]
    peaks: Mapping[str, float]
    caches: tuple[CacheLevel, ...]
    products: tuple[Product, ...] = ()
    gpu: Gpu | None = field(default=None)
    cpu_share: float = 1.0  # of the CPU time that the products could have got
    doubts: tuple[str, ...] = ()  # why it should not be believed, a sentence each; then it is not remembered

    @property
    def key(self) -> str:
        return _key(self.cpu, self.threads, self.isa, self.version)

    @property
    def source(self) -> str:
        """Where the figures come from, in words for a plan."""
        return f"measured on this machine {measured_when(self.date, self.doubts)}"


def measurement(*, threads: int = 0, refresh: bool = False, say: Say = lambda what: None) -> Measurement:
    """The remembered measurement of this machine with so many threads (0: the usual), or a new one.

    A new one that must be doubted is not remembered, so that the next call measures again.
    """
    hardware = read_hardware()
    threads = threads or hardware.usable_cores
    if not refresh and (known := remembered_measurement(hardware, threads)):
        return known
    found = measure(hardware, threads, say)
    if not found.doubts:
        _remember(cache_dir() / FILE, {**_remembered(cache_dir() / FILE), found.key: asdict(found)})
    return found


def remembered_measurement(hardware: Hardware, threads: int = 0) -> Measurement | None:
    """What was measured before on this machine with so many threads (0: the usual); nothing is measured now."""
    key = _key(hardware.cpu, threads or hardware.usable_cores, hardware.isa_paths[-1], pagoda.__version__)
    try:
        return _from_json(_remembered(cache_dir() / FILE)[key])
    except (KeyError, TypeError):  # none, or damaged
        return None


def measure(hardware: Hardware, threads: int, say: Say = lambda what: None) -> Measurement:
    """Measure now. `say` is called with what is being measured."""
    start = time.perf_counter()
    caches, cpus = read_caches(), min(threads, hardware.allowed_cpus, hardware.cpu_quota or threads)
    found, doubts = measure_passes(lambda: measure_once(threads, cpus, caches, hardware.memory_available), say)
    say("GPU")
    gpu = measure_gpu()
    return Measurement(
        cpu=hardware.cpu,
        threads=threads,
        isa=hardware.isa_paths[-1],
        version=pagoda.__version__,
        date=datetime.date.today().isoformat(),
        seconds=round(time.perf_counter() - start, 1),
        read_bandwidth=found.read_bandwidth,
        peaks=found.peaks,
        caches=found.caches,
        products=found.products,
        gpu=gpu,
        cpu_share=found.cpu_share,
        doubts=doubts,
    )


def age(date: str) -> str:
    """How long ago a day was, in words, with the day itself if it is long ago: today, yesterday, 12 days ago."""
    days = (datetime.date.today() - datetime.date.fromisoformat(date)).days
    return ("today", "yesterday")[days] if 0 <= days <= 1 else f"{days} days ago ({date})"


def measured_when(date: str, doubts: Sequence[str]) -> str:
    """How old a measurement is, and whether it can be believed."""
    return f"{age(date)}, and not to be trusted: {'; '.join(doubts)}" if doubts else f"{age(date)}, while it was quiet"


def this_device(found: Measurement, hardware: Hardware) -> Device:
    """The machine's CPU as a device to plan for; memory is what is free now, within the container's limit."""
    bandwidth = max(found.read_bandwidth.values())
    room = [size for size in (hardware.memory_available, hardware.memory_limit) if size is not None]
    return Device(
        id="this",
        name=f"{found.cpu}, {found.threads} threads",
        kind="cpu",
        memory_bytes=min(room) if room else hardware.memory_total or 0,
        bandwidth_bytes_s=bandwidth,
        flops=found.peaks,
        caches=found.caches,
        tdp_w=None,
        usd_per_hour=None,
        interconnect_bytes_s=None,
        efficiency=_efficiency(found, bandwidth),
        sources=dict.fromkeys(("bandwidth_bytes_s", "flops", "caches"), found.source)
        | {"memory_bytes": "the operating system, now"},
        isa=found.isa,
        doubts=found.doubts,
    )


def _efficiency(found: Measurement, bandwidth: float) -> Efficiency:
    product = next(product for product in found.products if product.type == TYPICAL)
    return Efficiency(
        decode_bandwidth=min(1.0, product.bytes_s / bandwidth),
        prefill_compute=min(1.0, product.ops_s / found.peaks["int8"]),
        step_overhead_s=STEP_OVERHEAD_S,
        source=f"{found.source}: Pagoda's products of {TYPICAL} weights, "
        f"{product.bytes_s / 1e9:.1f} of {bandwidth / 1e9:.1f} GB/s for one token, "
        f"{product.ops_s / 1e9:.0f} of {found.peaks['int8'] / 1e9:.0f} Gop/s for a prompt",
    )


def _key(cpu: str, threads: int, isa: str, version: str) -> str:
    return f"{cpu}, {threads} threads, {isa}, Pagoda {version}, method {METHOD}"


def _remembered(path: Path) -> dict[str, Any]:
    """Measurements by key; none if the file is not there or is another version's."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(path: Path, known: dict[str, Any]) -> None:
    """Write the file. If the folder cannot be written, nothing is kept and the next run measures again."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(known, indent=1))
        part.replace(path)


def _from_json(row: dict[str, Any]) -> Measurement:
    return Measurement(
        **row
        | {
            "read_bandwidth": {int(count): rate for count, rate in row["read_bandwidth"].items()},
            "caches": tuple(CacheLevel(**cache) for cache in row["caches"]),
            "products": tuple(Product(**product) for product in row["products"]),
            "gpu": Gpu(**row["gpu"]) if row["gpu"] else None,
            "doubts": tuple(row["doubts"]),
        }
    )
