"""What the first GPU can do at most, measured through torch: nothing here imports torch unless there is one to ask."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagoda.hardware.device import CacheLevel, Device, Efficiency

COPY_BYTES = 1 << 30
SIDE = 8192  # of the square matrices: large enough for the peak, 128 MiB each at 16 bits
ROUNDS = 10


@dataclass(frozen=True, slots=True)
class Gpu:
    """A measured GPU. `bandwidth_bytes_s`: bytes read plus written per second by a copy; `flops`: FLOP/s of square
    matrix products by type."""

    name: str
    memory_bytes: int
    l2_bytes: int | None
    bandwidth_bytes_s: float
    flops: Mapping[str, float]


def measure_gpu() -> Gpu | None:
    """Measure the first GPU. None without torch, or without a GPU that torch can use."""
    if importlib.util.find_spec("torch") is None:
        return None
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    gpu = Gpu(
        name=properties.name,
        memory_bytes=properties.total_memory,
        l2_bytes=getattr(properties, "L2_cache_size", None),
        bandwidth_bytes_s=_copy_bandwidth(torch, properties.total_memory),
        flops=_peaks(torch),
    )
    torch.cuda.empty_cache()
    return gpu


def gpu_device(gpu: Gpu, table: Sequence[Device]) -> Device:
    """The GPU as a device to plan for. The shares that programs reach are those of its row in the table, of the
    measured ceilings instead of the sheet's; without a row, those of the row with the nearest bandwidth."""
    rows = [row for row in table if row.kind == "gpu"]
    named = [row for row in rows if _model(row.name) in gpu.name.replace("-", " ").split()]
    row = min(named or rows, key=lambda row: (-_words_shared(row, gpu) if named else 0, _distance(row, gpu)))
    measured = "measured on this machine through torch"
    return Device(
        id="this-gpu",
        name=gpu.name,
        kind="gpu",
        memory_bytes=gpu.memory_bytes,
        bandwidth_bytes_s=gpu.bandwidth_bytes_s,
        flops=gpu.flops,
        caches=(CacheLevel("L2", gpu.l2_bytes, None),) if gpu.l2_bytes else (),
        tdp_w=row.tdp_w if named else None,
        usd_per_hour=None,
        interconnect_bytes_s=row.interconnect_bytes_s if named else None,
        efficiency=_efficiency(gpu, row, bool(named)),
        sources={"memory_bytes": measured, "bandwidth_bytes_s": f"{measured}: a copy", "flops": f"{measured}: 8192³"},
    )


def _efficiency(gpu: Gpu, row: Device, is_same: bool) -> Efficiency:
    known = row.efficiency
    decode, prefill = known.decode_bandwidth, known.prefill_compute
    if is_same:  # of what was measured instead of what the sheet says
        decode = min(1.0, decode * row.bandwidth_bytes_s / gpu.bandwidth_bytes_s)
        shared = [kind for kind in ("bf16", "fp16") if kind in gpu.flops and kind in row.flops]
        prefill = min(1.0, prefill * row.flops[shared[0]] / gpu.flops[shared[0]]) if shared else prefill
    whose = "its row in the table" if is_same else f"{row.id}, which has the nearest bandwidth, for lack of its own row"
    return Efficiency(decode, prefill, known.step_overhead_s, f"the shares of {whose}. {known.source}")


def _words_shared(row: Device, gpu: Gpu) -> int:
    """How many words of the row's name the GPU's name holds: "SXM" and "80GB" are in "NVIDIA A100-SXM4-80GB"."""
    return sum(word in gpu.name for word in row.name.split())


def _distance(row: Device, gpu: Gpu) -> float:
    return abs(row.bandwidth_bytes_s / gpu.bandwidth_bytes_s - 1)


def _model(name: str) -> str:
    """What in a row's name says which chip it is: "A100" of "NVIDIA A100 80GB SXM", "4090" of the RTX 4090's."""
    return next(word for word in name.split() if any(letter.isdigit() for letter in word))


def _copy_bandwidth(torch: Any, memory_bytes: int) -> float:
    num_bytes = min(COPY_BYTES, memory_bytes // 8)
    source = torch.ones(num_bytes, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * num_bytes / _seconds(torch, lambda: target.copy_(source))


def _peaks(torch: Any) -> dict[str, float]:
    """FLOP/s by number type; types that this GPU or this torch cannot multiply are left out."""
    peaks = {}
    for kind, product in _products(torch).items():
        try:
            peaks[kind] = 2 * SIDE**3 / _seconds(torch, product)
        except (RuntimeError, NotImplementedError, ValueError, TypeError):
            torch.cuda.empty_cache()  # not supported here
    return peaks


def _products(torch: Any) -> dict[str, Callable[[], Any]]:
    def square(dtype: Any) -> Any:
        return torch.ones((SIDE, SIDE), device="cuda").to(dtype)

    def floats(dtype: Any, tf32: bool = False) -> Callable[[], Any]:
        def run() -> Any:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            return torch.mm(a, a)

        a = square(dtype)
        return run

    def int8() -> Any:
        return torch._int_mm(eight, eight.t())

    def fp8() -> Any:
        return torch._scaled_mm(quarter, quarter.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    eight = square(torch.int8)
    one = torch.ones((), device="cuda")
    found = {
        "fp32": floats(torch.float32),
        "tf32": floats(torch.float32, tf32=True),
        "fp16": floats(torch.float16),
        "bf16": floats(torch.bfloat16),
        "int8": int8,
    }
    if hasattr(torch, "float8_e4m3fn"):
        quarter = square(torch.float8_e4m3fn)
        found["fp8"] = fp8
    return found


def _seconds(torch: Any, job: Callable[[], Any]) -> float:
    """Seconds of the fastest of ROUNDS runs."""
    job()  # chooses its kernel
    best = float("inf")
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        job()
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return best
