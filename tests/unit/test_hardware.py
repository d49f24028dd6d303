"""Reading machines that are not this one, from copies of their /proc and /sys."""

from pathlib import Path

import pytest

from pagoda.backends import cores
from pagoda.hardware import host as hardware_module
from pagoda.hardware.host import read_hardware


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four logical CPUs on two cores, three of them allowed."""
    monkeypatch.setattr(cores, "IS_MACOS", False)
    for module in (cores, hardware_module):
        monkeypatch.setattr(module, "allowed_cpus", lambda: frozenset({0, 1, 2}))
    write(tmp_path, "proc/cpuinfo", "processor\t: 0\nmodel name\t: EPYC 9654\n\nprocessor\t: 1\n")
    write(tmp_path, "proc/meminfo", "MemTotal:  1024 kB\nMemAvailable:  512 kB\nHugePages_Total:   0\n")
    for number in range(4):
        write(
            tmp_path,
            f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list",
            f"{number % 2},{number % 2 + 2}",
        )
    write(tmp_path, "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never")
    (tmp_path / "sys/devices/system/node/node0").mkdir(parents=True)
    (tmp_path / "sys/devices/system/node/node1").mkdir()
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_a_bare_machine(machine: Path) -> None:
    hardware = read_hardware(machine)
    assert hardware.cpu == "EPYC 9654"
    assert (hardware.allowed_cpus, hardware.physical_cores, hardware.usable_cores) == (3, 2, 2)
    assert (hardware.memory_total, hardware.memory_available) == (1 << 20, 1 << 19)
    assert (hardware.cpu_quota, hardware.memory_limit) == (None, None)
    assert (hardware.huge_pages, hardware.numa_nodes) == ("madvise", 2)


def test_a_container_with_limits(machine: Path) -> None:
    write(machine, "sys/fs/cgroup/cpu.max", "150000 100000")
    write(machine, "sys/fs/cgroup/memory.max", "4096")
    assert (read_hardware(machine).cpu_quota, read_hardware(machine).memory_limit) == (1.5, 4096)
    assert read_hardware(machine).usable_cores == 1
    write(machine, "sys/fs/cgroup/cpu.max", "max 100000")
    write(machine, "sys/fs/cgroup/memory.max", "max")
    assert (read_hardware(machine).cpu_quota, read_hardware(machine).memory_limit) == (None, None)


def test_a_container_of_the_older_kind(machine: Path) -> None:
    write(machine, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    write(machine, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1")
    write(machine, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    assert (read_hardware(machine).cpu_quota, read_hardware(machine).memory_limit) == (None, None)
    write(machine, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000")
    assert read_hardware(machine).cpu_quota == 0.5


def test_a_machine_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "IS_MACOS", False)
    hardware = read_hardware(tmp_path)
    assert hardware.physical_cores == hardware.allowed_cpus >= 1
    assert hardware.memory_total is hardware.huge_pages is hardware.numa_nodes is None
    assert hardware.cpu


def test_this_machine() -> None:
    hardware = read_hardware()
    assert 1 <= hardware.physical_cores <= hardware.allowed_cpus <= hardware.logical_cpus
    assert "generic" in hardware.isa_paths
    assert hardware.memory_total is None or hardware.memory_total > 1 << 28


def test_no_number_of_threads_is_a_thread_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing measured with 0 threads is a number."""
    asked: list[int] = []
    monkeypatch.setattr(hardware_module.native, "measure_read_bandwidth", lambda threads: asked.append(threads) or 1.0)
    monkeypatch.setattr(hardware_module.native, "measure_int8_peak", lambda threads: asked.append(threads) or 1.0)
    for threads in (0, 3):
        hardware_module.read_bandwidth(threads)
        hardware_module.int8_peak(threads)
    assert asked == [cores.usable_cores()] * 2 + [3] * 2
