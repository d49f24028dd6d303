"""Which cores this process may compute on: affinity mask, threads that share a core, the cgroup's quota."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

IS_MACOS = platform.system() == "Darwin"


def usable_cores(root: Path = Path("/")) -> int:
    """How many threads to compute with. Two threads on one core share its arithmetic units and win nothing, and what
    exceeds the cgroup's quota is stopped in the middle of a step."""
    cores = physical_cores(allowed_cpus(), root)
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def allowed_cpus() -> frozenset[int]:
    """Numbers of the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def physical_cores(allowed: frozenset[int], root: Path = Path("/")) -> int:
    """How many cores the allowed CPUs are: those that share one count once. `root` is where /sys is."""
    if IS_MACOS:
        return int(sysctl("hw.physicalcpu") or len(allowed))
    topology = root / "sys/devices/system/cpu"
    siblings = {read(topology / f"cpu{number}/topology/thread_siblings_list") or str(number) for number in allowed}
    return len(siblings)


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that the cgroup allows; None: no limit."""
    folder = root / "sys/fs/cgroup"
    quota, _, period = read(folder / "cpu.max").partition(" ")
    if not period:  # cgroup v1
        quota, period = read(folder / "cpu/cpu.cfs_quota_us"), read(folder / "cpu/cpu.cfs_period_us")
    if quota in ("", "max", "-1") or not period:
        return None
    return int(quota) / int(period)


def read(path: Path) -> str:
    """What the file says; nothing if there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def sysctl(name: str) -> str | None:
    """What macOS says; None elsewhere."""
    if not IS_MACOS:
        return None
    return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False).stdout.strip() or None
