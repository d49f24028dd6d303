"""Measuring this machine once and remembering it; what native code measures is plausible."""

import datetime
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import pagoda._native as native
from measurements import FOUND, HARDWARE
from pagoda.backends import cores
from pagoda.errors import ConfigError
from pagoda.hardware import caches as caches_module
from pagoda.hardware import machine, matmul_bench
from pagoda.hardware.caches import read_caches
from pagoda.hardware.cpu_share import CpuShare
from pagoda.hardware.cuda import Gpu, gpu_device
from pagoda.hardware.devices import device, devices
from pagoda.hardware.host import Hardware
from pagoda.hardware.machine import Measurement, age, measurement, remembered_measurement, this_device
from pagoda.hardware.matmul_bench import measure_products


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads of each measurement that was really made."""
    made: list[int] = []

    def measure(hardware: Hardware, threads: int, say: machine.Say) -> Measurement:
        made.append(threads)
        return replace(FOUND, threads=threads)

    monkeypatch.setenv("PAGODA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "measure", measure)
    return made


def test_a_measurement_is_remembered(asked: list[int]) -> None:
    first = measurement(threads=2)
    assert measurement(threads=2) == first
    assert asked == [2]
    measurement(threads=1)
    assert asked == [2, 1]
    measurement(threads=2, refresh=True)
    assert asked == [2, 1, 2]
    assert measurement(threads=1).threads == 1
    assert asked == [2, 1, 2]


def test_another_version_is_measured_anew(asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    measurement(threads=2)
    monkeypatch.setattr("pagoda.__version__", "9.9")
    measurement(threads=2)
    assert asked == [2, 2]


def test_what_must_be_doubted_is_not_remembered(asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    good = measurement(threads=2)
    doubted = replace(FOUND, cpu_share=0.3, doubts=("other programs took 70% of the CPU time",))
    monkeypatch.setattr(machine, "measure", lambda hardware, threads, say: doubted)
    assert measurement(threads=2, refresh=True) == doubted
    assert measurement(threads=2) == good
    assert "not to be trusted: other programs took 70% of the CPU time" in doubted.source
    assert measurement(threads=1) == doubted
    assert measurement(threads=1) == doubted


def test_age_is_said_in_words() -> None:
    today = datetime.date.today()
    assert [age((today - datetime.timedelta(days)).isoformat()) for days in (0, 1)] == ["today", "yesterday"]
    day = (today - datetime.timedelta(12)).isoformat()
    assert age(day) == f"12 days ago ({day})"
    assert replace(FOUND, date=day).source == f"measured on this machine 12 days ago ({day}), while it was quiet"


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"'])
def test_a_broken_file_is_measured_anew(asked: list[int], tmp_path: Path, text: str) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/machine.json").write_text(text)
    measurement(threads=2)
    assert measurement(threads=2).read_bandwidth == {1: 20e9, 2: 30e9}
    assert asked == [2]


def test_a_damaged_row_is_measured_anew(asked: list[int], tmp_path: Path) -> None:
    measurement(threads=2)
    file = tmp_path / "cache/machine.json"
    (key,) = json.loads(file.read_text())
    for row in (None, {"cpu": "c"}, []):
        file.write_text(json.dumps({key: row}))
        assert remembered_measurement(HARDWARE, 2) is None
        assert measurement(threads=2).read_bandwidth == {1: 20e9, 2: 30e9}
    assert asked == [2, 2, 2, 2]


def test_a_cache_that_cannot_be_written_only_costs_time(asked: list[int], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    assert measurement(threads=2) == measurement(threads=2)
    assert asked == [2, 2]


def test_what_is_remembered_can_be_read_by_others(asked: list[int], tmp_path: Path) -> None:
    measurement(threads=2)
    known = json.loads((tmp_path / "cache/machine.json").read_text())
    assert list(known) == [replace(FOUND, threads=2).key]
    assert known[replace(FOUND, threads=2).key]["peaks"] == FOUND.peaks


def test_this_device() -> None:
    hardware = replace(HARDWARE, memory_available=8 << 30, memory_limit=4 << 30)
    here = this_device(FOUND, hardware)
    assert (here.id, here.kind, here.memory_bytes, here.bandwidth_bytes_s) == ("this", "cpu", 4 << 30, 30e9)
    assert here.efficiency.decode_bandwidth == pytest.approx(0.6)
    assert here.efficiency.prefill_compute == pytest.approx(0.4)
    assert "18.0 of 30.0 GB/s" in here.efficiency.source


def test_this_is_measured(asked: list[int]) -> None:
    assert device("this").bandwidth_bytes_s == 30e9
    assert device("this-gpu").name == "NVIDIA A100-SXM4-80GB"


def test_no_gpu_is_said(asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "measure", lambda hardware, threads, say: replace(FOUND, gpu=None))
    with pytest.raises(ConfigError, match="no CUDA GPU"):
        device("this-gpu")


def test_a_gpu_reaches_what_its_row_reaches() -> None:
    """0.79 of the sheet's 2,039 GB/s is 0.895 of the 1,800 measured; so with the products."""
    assert FOUND.gpu is not None
    here = gpu_device(FOUND.gpu, devices())
    row = device("a100-80gb")
    reached = here.bandwidth_bytes_s * here.efficiency.decode_bandwidth
    assert reached == pytest.approx(row.bandwidth_bytes_s * row.efficiency.decode_bandwidth)
    reached = here.flops["bf16"] * here.efficiency.prefill_compute
    assert reached == pytest.approx(row.flops["bf16"] * row.efficiency.prefill_compute)


def test_an_unknown_gpu_takes_the_nearest_shares() -> None:
    here = gpu_device(Gpu("NVIDIA X9000", 24 << 30, None, 290e9, {"fp16": 100e12}), devices())
    assert here.efficiency.decode_bandwidth == device("l4").efficiency.decode_bandwidth
    assert "l4, which has the nearest bandwidth" in here.efficiency.source


def test_caches_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four CPUs; L2 belongs to pairs, L3 to all; CPU 3 is not ours."""
    monkeypatch.setattr(cores, "IS_MACOS", False)
    monkeypatch.setattr(caches_module, "allowed_cpus", lambda: frozenset({0, 1, 2}))
    for cpu in range(4):
        rows = [(1, "Data", "32K", str(cpu)), (1, "Instruction", "32K", str(cpu))]
        rows += [(2, "Unified", "1024K", f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}"), (3, "Unified", "32M", "0-3")]
        for index, row in enumerate(rows):
            folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
            folder.mkdir(parents=True)
            for name, value in zip(("level", "type", "size", "shared_cpu_list"), row, strict=True):
                (folder / name).write_text(f"{value}\n")
    found = read_caches(tmp_path)
    assert [(c.level, c.bytes >> 10) for c in found] == [("L1", 96), ("L2", 2048), ("L3", 32768)]


def test_native_measurements_are_plausible() -> None:
    assert 1e8 < native.measure_read_bandwidth(1, 16 << 20) < 1e12
    assert 1e8 < native.measure_cache_bandwidth(1, 16 << 10) < 1e13
    fp32, bf16 = native.measure_peak("fp32", 1), native.measure_peak("bf16", 1)
    assert fp32 is not None
    assert 1e8 < fp32 < 1e12
    assert bf16 is None or 1e8 < bf16 < 1e13
    with pytest.raises(ValueError, match="fp64"):
        native.measure_peak("fp64", 1)


def test_products_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul_bench, "DECODE_BYTES", 1 << 20)
    monkeypatch.setattr(matmul_bench, "ROUNDS", 2)
    meter = CpuShare(1)
    found = measure_products(1, 0, meter)
    assert 0 < meter.share < 1.5
    assert [product.type for product in found] == list(matmul_bench.TYPES)
    for product in found:
        assert 1e7 < product.bytes_s < 1e12
        assert 1e8 < product.ops_s < 1e13


def test_a_measurement_survives_json() -> None:
    assert machine._from_json(json.loads(json.dumps(asdict(FOUND)))) == FOUND
