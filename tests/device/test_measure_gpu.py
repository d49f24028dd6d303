"""What torch measures on a real GPU stays below what no GPU has, and above what the slowest has."""

import importlib.util

import pytest

from pagoda.hardware.cuda import gpu_device, measure_gpu
from pagoda.hardware.devices import devices


def test_measure_gpu() -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    gpu = measure_gpu()
    if gpu is None:
        pytest.skip("torch finds no CUDA GPU")
    assert 100e9 < gpu.bandwidth_bytes_s < 10e12
    assert gpu.memory_bytes > 1 << 30
    assert 1e12 < gpu.flops["fp32"] <= gpu.flops["fp16"] < 1e16
    here = gpu_device(gpu, devices())
    assert 0.2 < here.efficiency.decode_bandwidth <= 1
