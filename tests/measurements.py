"""Measurements of this machine that were never made, for tests of what reads them."""

from __future__ import annotations

import pagoda
from pagoda.hardware.cuda import Gpu
from pagoda.hardware.device import CacheLevel
from pagoda.hardware.host import read_hardware
from pagoda.hardware.machine import Measurement
from pagoda.hardware.matmul_bench import Product
from pagoda.plan.measured.rates import Rates

HARDWARE = read_hardware()
FOUND = Measurement(
    cpu=HARDWARE.cpu,
    threads=HARDWARE.usable_cores,
    isa=HARDWARE.isa_paths[-1],
    version=pagoda.__version__,
    date="2026-11-22",
    seconds=3.0,
    read_bandwidth={1: 20e9, 2: 30e9},
    peaks={"fp32": 200e9, "int8": 300e9},
    caches=(CacheLevel("L1", 65536, 200e9), CacheLevel("L2", 1 << 20, None)),
    products=(Product("Q4_K", 18e9, 120e9),),
    gpu=Gpu("NVIDIA A100-SXM4-80GB", 80 << 30, 40 << 20, 1.8e12, {"bf16": 250e12}),
    cpu_share=0.97,
)
RATES = Rates(
    layers={"wide": ((1, 0.010), (64, 0.100)), "narrow": ((1, 0.001), (64, 0.010))},
    counts={"wide": 2, "narrow": 28},
    head=((1, 0.020), (16, 0.050)),
    decode_attention={1: ((16, 0.001), (128, 0.002)), 4: ((16, 0.004), (128, 0.008))},
    prefill_pair_s=1e-6,
    prefill_query_s=1e-5,
    engine_step_s=0.003,
    engine_row_s=0.0001,
    source="made up",
    date="2026-11-01",
)
