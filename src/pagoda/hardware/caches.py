"""The CPU's caches that this process's cores have: from /sys on Linux, from sysctl on macOS."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from pagoda.backends import cores
from pagoda.backends.cores import allowed_cpus, read, sysctl
from pagoda.hardware.device import CacheLevel
from pagoda.settings import parse_size


def read_caches(root: Path = Path("/")) -> tuple[CacheLevel, ...]:
    """Data caches by level, smallest first, without bandwidths; sizes are sums over the allowed cores. Empty where
    nothing tells."""
    return _from_sysctl() if cores.IS_MACOS else _from_sys(root)


def _from_sys(root: Path) -> tuple[CacheLevel, ...]:
    """Caches by level, from /sys; a cache that several CPUs share is counted once."""
    sizes: dict[int, dict[str, int]] = defaultdict(dict)  # level → who shares it → bytes
    for number in allowed_cpus():
        for folder in (root / f"sys/devices/system/cpu/cpu{number}/cache").glob("index[0-9]*"):
            level, size = read(folder / "level"), read(folder / "size")
            if level.isdigit() and size and read(folder / "type") != "Instruction":
                sizes[int(level)][read(folder / "shared_cpu_list") or str(number)] = parse_size(size + "iB")
    return tuple(CacheLevel(f"L{level}", sum(sizes[level].values()), None) for level in sorted(sizes))


def _from_sysctl() -> tuple[CacheLevel, ...]:
    """The performance cores' caches, which are those that compute."""
    count = int(sysctl("hw.perflevel0.physicalcpu") or sysctl("hw.physicalcpu") or 1)
    sharing = int(sysctl("hw.perflevel0.cpusperl2") or count)
    first = sysctl("hw.perflevel0.l1dcachesize") or sysctl("hw.l1dcachesize")
    second = sysctl("hw.perflevel0.l2cachesize") or sysctl("hw.l2cachesize")
    levels = [("L1", first, count), ("L2", second, -(-count // sharing))]
    return tuple(CacheLevel(level, int(size) * times, None) for level, size, times in levels if size)
