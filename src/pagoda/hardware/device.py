"""What a plan needs to know of a device: memory, ceilings, caches, and the shares of the ceilings that programs reach.

Bytes are bytes, rates are per second, FLOP/s are dense (no sparsity) and count a multiply-add as two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

THIS, THIS_GPU = "this", "this-gpu"
KINDS = ("gpu", "cpu", "apple", "board")
FLOP_TYPES = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8", "int4")


@dataclass(frozen=True, slots=True)
class CacheLevel:
    """One cache level. `bytes` is what all cores together have of it."""

    level: str  # "L1", "L2", "L3"
    bytes: int
    bandwidth_bytes_s: float | None


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of the ceilings that real programs reach, and the time a step takes beside its work."""

    decode_bandwidth: float
    prefill_compute: float
    step_overhead_s: float
    source: str


@dataclass(frozen=True, slots=True)
class Device:
    """One device. `flops` has the types that the device computes in: keys of FLOP_TYPES."""

    id: str
    name: str
    kind: str  # one of KINDS
    memory_bytes: int
    bandwidth_bytes_s: float
    flops: Mapping[str, float]
    caches: tuple[CacheLevel, ...]
    tdp_w: float | None
    usd_per_hour: float | None
    interconnect_bytes_s: float | None  # to a neighbour, one direction
    efficiency: Efficiency
    sources: Mapping[str, str]  # figure → where it stands
    isa: str | None = None  # of CPUs: the best of their instruction sets that Pagoda has kernels for
    doubts: tuple[str, ...] = ()  # why its measurement should not be believed, a sentence each
