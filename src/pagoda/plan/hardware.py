"""What this machine has: cores this process may use, memory it may take, and the ceilings that native code measures.

Linux tells in /proc and /sys, macOS in sysctl; what neither tells is None.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pagoda._native as native

IS_MACOS = platform.system() == "Darwin"


@dataclass(frozen=True, slots=True)
class Hardware:
    """Facts of one moment. Bytes and counts."""

    cpu: str
    machine: str  # x86_64, aarch64, arm64
    logical_cpus: int  # of the machine
    allowed_cpus: int  # that this process may run on
    physical_cores: int  # of the allowed ones
    cpu_quota: float | None  # CPUs' worth of time that the cgroup allows
    isa_paths: tuple[str, ...]  # that Pagoda has kernels for here, best last
    memory_total: int | None
    memory_available: int | None
    memory_limit: int | None  # of the cgroup
    huge_pages: str | None  # of transparent huge pages: always, madvise or never
    numa_nodes: int | None


def read_hardware(root: Path = Path("/")) -> Hardware:
    """Look at this machine; `root` is where its /proc and /sys are."""
    allowed = allowed_cpus()
    meminfo = _meminfo(root)
    return Hardware(
        cpu=_cpu_name(root),
        machine=platform.machine(),
        logical_cpus=os.cpu_count() or 1,
        allowed_cpus=len(allowed),
        physical_cores=_physical_cores(root, allowed),
        cpu_quota=_cpu_quota(root),
        isa_paths=isa_paths(),
        memory_total=meminfo.get("MemTotal") or _sysctl_int("hw.memsize"),
        memory_available=meminfo.get("MemAvailable"),
        memory_limit=_memory_limit(root),
        huge_pages=_huge_pages(root),
        numa_nodes=len(list((root / "sys/devices/system/node").glob("node[0-9]*"))) or None,
    )


def allowed_cpus() -> frozenset[int]:
    """Numbers of the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def isa_paths() -> tuple[str, ...]:
    """Instruction sets that there are kernels for on this machine, best last."""
    isas: Callable[[], list[str]] | None = getattr(native, "isas", None) or getattr(native, "sampler_isas", None)
    return tuple(isas()) if isas else ()


def read_bandwidth(threads: int) -> float | None:
    """Bytes per second that `threads` threads read from memory, measured now; None where it cannot be."""
    measure: Callable[[int], float] | None = getattr(native, "measure_read_bandwidth", None)
    return measure(threads) if measure else None


def int8_peak(threads: int) -> float | None:
    """Integer operations per second of `threads` threads (a multiply-add is two), measured now."""
    measure: Callable[[int], float] | None = getattr(native, "measure_int8_peak", None)
    return measure(threads) if measure else None


def _cpu_name(root: Path) -> str:
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def _physical_cores(root: Path, allowed: frozenset[int]) -> int:
    """Of hyper-threads that share a core, one counts."""
    if IS_MACOS:
        return _sysctl_int("hw.physicalcpu") or len(allowed)
    topology = root / "sys/devices/system/cpu"
    siblings = {_text(topology / f"cpu{number}/topology/thread_siblings_list") or str(number) for number in allowed}
    return len(siblings)


def _cpu_quota(root: Path) -> float | None:
    folder = root / "sys/fs/cgroup"
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    if not period:  # cgroup v1
        quota, period = _text(folder / "cpu/cpu.cfs_quota_us"), _text(folder / "cpu/cpu.cfs_period_us")
    if quota in ("", "max", "-1") or not period:
        return None
    return int(quota) / int(period)


def _memory_limit(root: Path) -> int | None:
    folder = root / "sys/fs/cgroup"
    text = _text(folder / "memory.max") or _text(folder / "memory/memory.limit_in_bytes")
    return int(text) if text.isdigit() and int(text) < 2**60 else None


def _meminfo(root: Path) -> dict[str, int]:
    lines = (line.split() for line in _text(root / "proc/meminfo").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) == 3}


def _huge_pages(root: Path) -> str | None:
    text = _text(root / "sys/kernel/mm/transparent_hugepage/enabled")
    return text[text.index("[") + 1 : text.index("]")] if "[" in text else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _sysctl(name: str) -> str | None:
    if not IS_MACOS:
        return None
    return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False).stdout.strip() or None


def _sysctl_int(name: str) -> int | None:
    text = _sysctl(name)
    return int(text) if text and text.isdigit() else None
