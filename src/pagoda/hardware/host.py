"""What this machine has: cores this process may use, memory it may take, and the ceilings that native code measures.

Linux tells in /proc and /sys, macOS in sysctl; what neither tells is None.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import pagoda._native as native
from pagoda.backends.cores import allowed_cpus, cpu_quota, physical_cores, read, sysctl, usable_cores


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the machine has at one moment. Memory is in bytes."""

    cpu: str
    machine: str  # x86_64, aarch64, arm64
    logical_cpus: int  # of the machine
    allowed_cpus: int  # that this process may run on
    physical_cores: int  # of the allowed ones
    usable_cores: int  # threads that are used by default
    cpu_quota: float | None  # CPUs' worth of time that the cgroup allows
    isa_paths: tuple[str, ...]  # that Pagoda has kernels for here, best last
    memory_total: int | None
    memory_available: int | None
    memory_limit: int | None  # of the cgroup
    huge_pages: str | None  # of transparent huge pages: always, madvise or never
    numa_nodes: int | None


def read_hardware(root: Path = Path("/")) -> Hardware:
    """Read the facts of this machine; `root` is the folder that holds its /proc and /sys."""
    allowed = allowed_cpus()
    meminfo = _meminfo(root)
    return Hardware(
        cpu=_cpu_name(root),
        machine=platform.machine(),
        logical_cpus=os.cpu_count() or 1,
        allowed_cpus=len(allowed),
        physical_cores=physical_cores(allowed, root),
        usable_cores=usable_cores(root),
        cpu_quota=cpu_quota(root),
        isa_paths=isa_paths(),
        memory_total=meminfo.get("MemTotal") or _memory_total(),
        memory_available=meminfo.get("MemAvailable"),
        memory_limit=_memory_limit(root),
        huge_pages=_huge_pages(root),
        numa_nodes=len(list((root / "sys/devices/system/node").glob("node[0-9]*"))) or None,
    )


def isa_paths() -> tuple[str, ...]:
    """Instruction sets that there are kernels for on this machine, best last."""
    return tuple(reversed(native.available_isas()))


def read_bandwidth(threads: int) -> float:
    """Bytes per second that `threads` threads read from memory, measured now. 0: a thread a core."""
    return native.measure_read_bandwidth(threads or usable_cores())


def int8_peak(threads: int) -> float:
    """Integer operations per second of `threads` threads (a multiply-add is two), measured now. 0: a thread a core."""
    return native.measure_int8_peak(threads or usable_cores())


def _cpu_name(root: Path) -> str:
    for line in read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def _memory_limit(root: Path) -> int | None:
    folder = root / "sys/fs/cgroup"
    text = read(folder / "memory.max") or read(folder / "memory/memory.limit_in_bytes")
    return int(text) if text.isdigit() and int(text) < 2**60 else None


def _meminfo(root: Path) -> dict[str, int]:
    lines = (line.split() for line in read(root / "proc/meminfo").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) == 3}


def _huge_pages(root: Path) -> str | None:
    text = read(root / "sys/kernel/mm/transparent_hugepage/enabled")
    return text[text.index("[") + 1 : text.index("]")] if "[" in text else None


def _memory_total() -> int | None:
    text = sysctl("hw.memsize")
    return int(text) if text else None
