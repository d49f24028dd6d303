"""The devices a plan can be made for: a table of data (`devices.toml`), each figure with its source.

`device("this")` is the machine's CPU, measured, and `device("this-gpu")` its first CUDA GPU.
"""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Mapping
from importlib import resources
from typing import Any

from pagoda.errors import ConfigError
from pagoda.hardware.cuda import gpu_device
from pagoda.hardware.device import THIS, THIS_GPU, CacheLevel, Device, Efficiency
from pagoda.hardware.host import read_hardware
from pagoda.hardware.machine import measurement, this_device

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


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
    text = resources.files("pagoda.hardware").joinpath("devices.toml").read_text(encoding="utf-8")
    return tuple(_device(id, row) for id, row in tomllib.loads(text).items())


def this() -> Device:
    """This machine's CPU, as measured now or remembered (`pagoda.hardware.machine`)."""
    return this_device(measurement(), read_hardware())


def this_gpu() -> Device:
    """This machine's first GPU, as measured. ConfigError without one, or without torch."""
    gpu = measurement().gpu
    if gpu is None:
        raise ConfigError(
            "this-gpu: torch finds no CUDA GPU here; install torch and a driver, then run "
            "pagoda doctor --refresh, or name a device of the table"
        )
    return gpu_device(gpu, devices())


def _device(id: str, row: Mapping[str, Any]) -> Device:
    caches = tuple(CacheLevel(c["level"], c["bytes"], c.get("bandwidth_bytes_s")) for c in row.get("caches", ()))
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
        isa=row.get("isa"),
    )
