"""The devices a plan can be made for: a table of data (`devices.toml`), each figure with its source.

`device("this")` is the machine's CPU, measured, and `device("this-gpu")` its first CUDA GPU. Bytes are bytes, rates are
per second, FLOP/s are dense (no sparsity) and count a multiply-add as two.
"""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from pagoda.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

THIS, THIS_GPU = "this", "this-gpu"
KINDS = ("gpu", "cpu", "apple", "board")
FLOP_TYPES = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8", "int4")


@dataclass(frozen=True, slots=True)
class Cache:
    """One cache level. `bytes` is what all cores together have of it."""

    level: str  # "L1", "L2", "L3"
    bytes: int
    bandwidth_bytes_s: float | None


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of the ceilings that real programs reach, and the time a step takes beside its work."""

    decode_bandwidth: float
    prefill_compute: float
    step_overhead_s: float
    source: str


@dataclass(frozen=True, slots=True)
class Device:
    """One device. `flops` has the types that the device computes in: keys of FLOP_TYPES."""

    id: str
    name: str
    kind: str  # one of KINDS
    memory_bytes: int
    bandwidth_bytes_s: float
    flops: Mapping[str, float]
    caches: tuple[Cache, ...]
    tdp_w: float | None
    usd_per_hour: float | None
    interconnect_bytes_s: float | None  # to a neighbour, one direction
    efficiency: Efficiency
    sources: Mapping[str, str]  # figure → where it stands


def device(id: str) -> Device:
    """The device of that id; "this" and "this-gpu" are measured. ConfigError that names what is near."""
    if id == THIS:
        return this()
    if id == THIS_GPU:
        return this_gpu()
    known = {d.id: d for d in devices()}
    if id not in known:
        near = difflib.get_close_matches(id.lower(), known, 3, 0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join([THIS, *known])}"
        raise ConfigError(f"unknown device {id!r}; {hint}")
    return known[id]


@functools.cache
def devices() -> tuple[Device, ...]:
    """All devices of the table, in its order."""
    text = resources.files("pagoda.plan").joinpath("devices.toml").read_text(encoding="utf-8")
    return tuple(_device(id, row) for id, row in tomllib.loads(text).items())


def this() -> Device:
    """This machine's CPU, as measured now or remembered (`pagoda.plan.machine`)."""
    from pagoda.plan.hardware import read_hardware
    from pagoda.plan.machine import measurement, this_device

    return this_device(measurement(), read_hardware())


def this_gpu() -> Device:
    """This machine's first GPU, as measured. ConfigError without one, or without torch."""
    from pagoda.plan.cuda import gpu_device
    from pagoda.plan.machine import measurement

    gpu = measurement().gpu
    if gpu is None:
        raise ConfigError(
            "this-gpu: torch finds no CUDA GPU here; install pagoda-llm[cuda] with a driver, then run "
            "pagoda doctor --refresh, or name a device of the table"
        )
    return gpu_device(gpu, devices())


def _device(id: str, row: Mapping[str, Any]) -> Device:
    caches = tuple(Cache(c["level"], c["bytes"], c.get("bandwidth_bytes_s")) for c in row.get("caches", ()))
    return Device(
        id=id,
        name=row["name"],
        kind=row["kind"],
        memory_bytes=int(row["memory_bytes"]),
        bandwidth_bytes_s=float(row["bandwidth_bytes_s"]),
        flops={key: float(value) for key, value in row["flops"].items()},
        caches=caches,
        tdp_w=row.get("tdp_w"),
        usd_per_hour=row.get("usd_per_hour"),
        interconnect_bytes_s=row.get("interconnect_bytes_s"),
        efficiency=Efficiency(**row["efficiency"]),
        sources=dict(row["sources"]),
    )
