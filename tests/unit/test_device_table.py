"""The device table holds together: every figure has a source, no figure is of the wrong magnitude."""

import re

import pytest

from pagoda.hardware.device import FLOP_TYPES, KINDS, Device
from pagoda.hardware.devices import device, devices

TABLE = devices()
DERIVED = {"id", "name", "kind", "isa", "efficiency", "sources"}


def by_id(name: str) -> Device:
    return next(d for d in TABLE if d.id == name)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
def test_every_figure_has_a_source(row: Device) -> None:
    figures = {name for name in row.__slots__ if name not in DERIVED and getattr(row, name)}
    assert set(row.sources) == figures
    assert any("https://" in text for text in row.sources.values())
    assert "https://" in row.efficiency.source or "the L40S" in row.efficiency.source
    if row.usd_per_hour is not None:
        dated = r"(list price|from memory) .*\b20\d\d\b"
        assert re.match(dated, row.sources["usd_per_hour"]), "what a price is, whose, and when"


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
def test_magnitudes(row: Device) -> None:
    assert row.kind in KINDS
    assert set(row.flops) <= set(FLOP_TYPES)
    assert 8e9 < row.memory_bytes < 1e12
    assert 10e9 < row.bandwidth_bytes_s <= 8e12
    assert 1e11 < row.flops["fp32"] < 1e15
    assert all(cache.bytes < row.memory_bytes / 10 for cache in row.caches)
    assert all((cache.bandwidth_bytes_s or row.bandwidth_bytes_s) >= row.bandwidth_bytes_s for cache in row.caches)
    assert 0 < row.efficiency.decode_bandwidth < 1
    assert 0 < row.efficiency.prefill_compute < 1
    assert 0 <= row.efficiency.step_overhead_s < 0.01
    assert row.tdp_w is None or 5 < row.tdp_w <= 1000
    assert row.usd_per_hour is None or 0.1 < row.usd_per_hour < 20


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
def test_narrower_types_are_never_slower(row: Device) -> None:
    order = [row.flops[name] for name in ("fp32", "tf32", "fp16", "fp8", "int8", "int4") if name in row.flops]
    assert order == sorted(order)
    if "fp16" in row.flops and "bf16" in row.flops:
        assert row.flops["fp16"] == row.flops["bf16"]


def test_figures_are_dense() -> None:
    """Sheets count sparsity; these are the halves. (FP16 TFLOP/s.)"""
    dense = {"a100-80gb": 312, "h100": 989.4, "h100-pcie": 756, "l4": 121, "l40s": 362.05, "b200": 2250}
    assert {name: by_id(name).flops["fp16"] / 1e12 for name in dense} == pytest.approx(dense)


def test_ridges() -> None:
    """FP16 FLOP a byte: 156 at the A100's round 2 TB/s."""
    a100 = by_id("a100-80gb")
    assert a100.flops["fp16"] / 2e12 == 156
    assert a100.flops["fp16"] / a100.bandwidth_bytes_s == pytest.approx(156, rel=0.03)
    assert by_id("h100").flops["fp16"] / by_id("h100").bandwidth_bytes_s == pytest.approx(295, rel=0.01)


def test_what_must_be_there() -> None:
    wanted = """a100-80gb a100-80gb-pcie a100-40gb a100-40gb-pcie h100 h100-pcie h200 b200 l4 l40s a10g rtx3090 rtx4090
        rtx5090 rtxa6000 mi300x apple-m1 apple-m2-pro apple-m3-max apple-m3-ultra apple-m4 apple-m4-max raspberry-pi-5
        aws-c7i-4xlarge aws-c7a-4xlarge aws-c7g-4xlarge aws-c8g-4xlarge aws-m7a-4xlarge gcp-c3-standard-22
        azure-d16as-v6"""
    assert set(wanted.split()) <= {row.id for row in TABLE}
    assert device("rtx4090").memory_bytes < 24 * 2**30


@pytest.mark.parametrize("row", [row for row in TABLE if row.kind == "cpu"], ids=lambda row: row.id)
def test_cloud_cpus_say_their_size(row: Device) -> None:
    assert re.search(r"\(\d+ vCPU, \d+ cores of ", row.name)
