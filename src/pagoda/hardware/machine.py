"""What this machine can do at most and what Pagoda's kernels reach of it, measured once in some seconds and remembered.

The measurement is kept in the user's cache folder under the CPU's model, the threads and Pagoda's version, so that
another machine that shares the folder, or a new version's kernels, is measured anew.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pagoda
import pagoda._native as native
from pagoda.config import cache_dir
from pagoda.hardware.caches import read_caches
from pagoda.hardware.cuda import Gpu, measure_gpu
from pagoda.hardware.device import CacheLevel, Device, Efficiency
from pagoda.hardware.host import Hardware, read_hardware
from pagoda.hardware.matmul_bench import Product, measure_products

FILE = "machine.json"
LEAST_BYTES, MOST_SHARE = 256 << 20, 8  # bandwidth is read from so much memory, but an eighth of what is free at most
PEAKS = ("fp32", "bf16", "int8")
TYPICAL = "Q4_K"  # whose products stand for the machine's efficiency: the usual format on CPUs
STEP_OVERHEAD_S = 0.22e-3  # between two decode steps of the default model: 3 % of 7.4 ms on two cores (docs/log.md)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Bytes/s and operations/s; `read_bandwidth` by the number of threads."""

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

    @property
    def key(self) -> str:
        return _key(self.cpu, self.threads, self.isa, self.version)


def measurement(*, threads: int = 0, refresh: bool = False, say: Say = lambda what: None) -> Measurement:
    """The remembered measurement of this machine with so many threads (0: the usual), or a new one."""
    hardware = read_hardware()
    threads = threads or hardware.usable_cores
    known = _remembered(cache_dir() / FILE)
    key = _key(hardware.cpu, threads, hardware.isa_paths[-1], pagoda.__version__)
    if refresh or key not in known:
        found = measure(hardware, threads, say)
        _remember(cache_dir() / FILE, {**known, key: asdict(found)})
        return found
    return _from_json(known[key])


def measure(hardware: Hardware, threads: int, say: Say = lambda what: None) -> Measurement:
    """Look now. `say` hears what is being measured."""
    start = time.perf_counter()
    caches = read_caches()
    last = max((cache.bytes for cache in caches), default=0)
    say("memory bandwidth")
    num_bytes = _stream_bytes(last, hardware.memory_available)
    bandwidth = {count: native.measure_read_bandwidth(count, num_bytes) for count in thread_counts(threads)}
    say("arithmetic peaks")
    found = {kind: native.measure_peak(kind, threads) for kind in PEAKS}
    say("caches")
    caches = tuple(_with_bandwidth(cache, caches, threads) for cache in caches)
    say("matrix products")
    products = measure_products(threads, last)
    say("GPU")
    gpu = measure_gpu()
    return Measurement(
        cpu=hardware.cpu,
        threads=threads,
        isa=hardware.isa_paths[-1],
        version=pagoda.__version__,
        date=datetime.date.today().isoformat(),
        seconds=round(time.perf_counter() - start, 1),
        read_bandwidth=bandwidth,
        peaks={kind: rate for kind, rate in found.items() if rate is not None},
        caches=caches,
        products=products,
        gpu=gpu,
    )


def thread_counts(threads: int) -> list[int]:
    """1, 2, 4, … and `threads` itself."""
    return sorted({1 << i for i in range(threads.bit_length()) if 1 << i < threads} | {threads})


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
        sources=dict.fromkeys(("bandwidth_bytes_s", "flops", "caches"), f"measured on this machine, {found.date}")
        | {"memory_bytes": "the operating system, now"},
    )


def _efficiency(found: Measurement, bandwidth: float) -> Efficiency:
    product = next(product for product in found.products if product.type == TYPICAL)
    return Efficiency(
        decode_bandwidth=min(1.0, product.bytes_s / bandwidth),
        prefill_compute=min(1.0, product.ops_s / found.peaks["int8"]),
        step_overhead_s=STEP_OVERHEAD_S,
        source=f"measured on this machine, {found.date}: Pagoda's products of {TYPICAL} weights, "
        f"{product.bytes_s / 1e9:.1f} of {bandwidth / 1e9:.1f} GB/s for one token, "
        f"{product.ops_s / 1e9:.0f} of {found.peaks['int8'] / 1e9:.0f} Gop/s for a prompt",
    )


def _stream_bytes(last_cache: int, available: int | None) -> int:
    wanted = max(LEAST_BYTES, 4 * last_cache)
    return wanted if available is None else max(16 << 20, min(wanted, available // MOST_SHARE))


def _with_bandwidth(cache: CacheLevel, caches: tuple[CacheLevel, ...], threads: int) -> CacheLevel:
    """Each thread reads half of its part of the level; None where the level before would hold that."""
    each = cache.bytes // threads // 2
    smaller = max((other.bytes // threads for other in caches if other.bytes < cache.bytes), default=0)
    if each < max(4096, smaller):
        return cache
    return replace(cache, bandwidth_bytes_s=native.measure_cache_bandwidth(threads, each))


def _key(cpu: str, threads: int, isa: str, version: str) -> str:
    return f"{cpu}, {threads} threads, {isa}, Pagoda {version}"


def _remembered(path: Path) -> dict[str, Any]:
    """Measurements by key; none if the file is not there or is another version's."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(path: Path, known: dict[str, Any]) -> None:
    """Where the folder cannot be written, the next run measures again."""
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
        }
    )
