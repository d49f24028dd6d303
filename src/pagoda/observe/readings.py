"""What the operating system and the GPUs' driver say of memory and CPUs, read when somebody asks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagoda.hardware.host import read_hardware
from pagoda.observe.own_series import MachineSeries


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """CPU seconds up to one moment: of this process, and of everything on the machine (None where nothing tells)."""

    wall: float
    own: float
    machine: float | None


def read_cpu_times(root: Path = Path("/")) -> CpuTimes:
    """Now; everything includes what a hypervisor gave to others."""
    return CpuTimes(time.monotonic(), time.process_time(), _machine_seconds(root))


def _machine_seconds(root: Path) -> float | None:
    """Busy seconds of all CPUs, from the ticks of 10 ms in /proc/stat (proc(5)); steal counts as busy."""
    try:
        with (root / "proc/stat").open() as file:
            words = file.readline().split()
    except OSError:
        return None
    ticks = [int(word) for word in words[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
    return (user + nice + system + irq + softirq + steal) / 100


class Gpus:
    """NVML, where `nvidia-ml-py` and a driver are installed."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        with contextlib.suppress(ImportError):
            import pynvml

            try:
                pynvml.nvmlInit()
                self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
                self._nvml = pynvml
            except pynvml.NVMLError:  # the package without a driver
                self._handles = []

    def __iter__(self) -> Iterator[tuple[str, dict[str, float]]]:
        """(index, figures by series) of each GPU. What a GPU does not tell is left out."""
        for index, handle in enumerate(self._handles):
            figures: dict[str, float] = {}
            for read in (self._memory, self._utilization, self._power):
                with contextlib.suppress(self._nvml.NVMLError):
                    figures |= read(handle)
            yield str(index), figures

    def _memory(self, handle: Any) -> dict[str, float]:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        return {"gpu_memory_used": float(memory.used), "gpu_memory": float(memory.total)}

    def _utilization(self, handle: Any) -> dict[str, float]:
        return {"gpu_utilization": self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100}

    def _power(self, handle: Any) -> dict[str, float]:
        return {"gpu_power": self._nvml.nvmlDeviceGetPowerUsage(handle) / 1000}


def read_into(series: MachineSeries, gpus: Gpus) -> None:
    """Bring the gauges of memory, CPUs and GPUs up to date."""
    hardware = read_hardware()
    total, free = hardware.memory_total or 0, hardware.memory_available or 0
    limit = min(total, hardware.memory_limit) if hardware.memory_limit else total
    series.memory_limit.value = limit
    series.memory_used.value = min(total - free, limit)
    series.cpus.value = min(hardware.allowed_cpus, hardware.cpu_quota or hardware.allowed_cpus)
    for index, figures in gpus:
        for name, value in figures.items():
            getattr(series, name).values[index] = value
