"""Ceilings of the device, and single steps of a model beside them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from gpu_models import Cost, Rates, Shape, cost_of, random_model
from pagoda.backends.base import run_batch
from pagoda.backends.cuda.backend import CudaBackend
from pagoda.backends.cuda.model import CudaModel
from pagoda.backends.cuda.options import CudaOptions
from pagoda.backends.specs import KVType
from pagoda.models.layers import Decoder
from pagoda.types import BLOCK_SIZE, Batch

CASES = [("decode", 1, 1024), ("decode", 16, 1024), ("decode", 64, 1024), ("prefill", 1, 4096)]
SMALL_CASES = [("decode", 2, 32), ("prefill", 1, 20)]  # where there is no GPU: a test of the script


@dataclass(frozen=True)
class Device:
    """Where to measure: a GPU with kernels, or torch's CPU, which tells nothing but that this script works."""

    name: str  # torch's

    @property
    def is_gpu(self) -> bool:
        return self.name == "cuda"

    @property
    def title(self) -> str:
        return torch.cuda.get_device_name() if self.is_gpu else "CPU: a test of this script, not a measurement"

    def options(self, *, invariant: bool = False, graphs: bool = True) -> CudaOptions:
        return CudaOptions(self.name, "fast" if self.is_gpu else "eager", invariant, graphs and self.is_gpu)

    def wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def free(self) -> None:
        """Give back what a closed model held."""
        if self.is_gpu:
            torch.cuda.empty_cache()

    def median_s(self, run: Callable[[], object], rounds: int = 10) -> float:
        for _ in range(3 if self.is_gpu else 1):
            run()
        times = []
        for _ in range(rounds if self.is_gpu else 1):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def ceilings(device: Device) -> Rates:
    """Of a large copy, counting what is read and written, of a large sum, and of a large product of random bf16."""
    source = torch.randn((1 << 29) if device.is_gpu else (1 << 20), device=device.name)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / device.median_s(lambda: target.copy_(source))
    read = source.nbytes / device.median_s(lambda: source.sum())
    side = 8192 if device.is_gpu else 256
    a = torch.randn(side, side, device=device.name).to(torch.bfloat16)
    product = 2 * side**3 / device.median_s(lambda: a @ a)
    return Rates(copy, max(copy, read), product)


def load(device: Device, model: Decoder, *, invariant: bool, tokens: int, seqs: int, kv_type: KVType) -> CudaModel:
    backend = CudaBackend(device.options(invariant=invariant))
    return backend.load(model, max_batch_tokens=tokens, max_batch_seqs=seqs, kv_type=kv_type)


def step(kind: str, seqs: int, context: int) -> Batch:
    """`seqs` sequences at `context` tokens that decode one more, or one prompt of `context` tokens."""
    width = -(-context // BLOCK_SIZE)
    count = 1 if kind == "decode" else context
    starts = np.arange(seqs + 1, dtype=np.int32) * np.int32(count)
    return Batch(
        tokens=np.arange(seqs * count, dtype=np.int32) % 256,
        positions=np.tile(np.arange(context - count, context, dtype=np.int32), seqs),
        seq_starts=starts,
        context_lens=np.full(seqs, context, np.int32),
        block_tables=(np.arange(seqs * width, dtype=np.int32).reshape(seqs, width),),
        logit_rows=starts[1:] - 1,
    )


def floor_s(cost: Cost, rates: Rates, kind: str, seqs: int, context: int) -> float:
    return cost.decode_s(rates, seqs, context) if kind == "decode" else cost.prefill_s(rates, context)


def _start(model: CudaModel, batch: Batch) -> None:
    """A step whose logits stay on the device."""
    model.stage(batch)
    model.launch(batch.tokens)


def measure_steps(
    device: Device, shape: Shape, type: str, rates: Rates, add: Callable[..., None], *, model: Decoder | None = None
) -> None:
    """A row each for decoding and prefill, with library products and batch-invariant."""
    cases = CASES if device.is_gpu else SMALL_CASES
    seqs, tokens = max(case[1] for case in cases), max(case[1] if case[0] == "decode" else case[2] for case in cases)
    free: dict[str, float] = {}
    for invariant in (False, True):
        decoder = model or random_model(shape, type)
        loaded = load(device, decoder, invariant=invariant, tokens=tokens, seqs=seqs, kv_type="f16")
        loaded.allocate_kv((max(n * -(-context // BLOCK_SIZE) for _, n, context in cases),))
        cost = cost_of(shape, loaded.weight_bytes, loaded.block_bytes(0) / BLOCK_SIZE)
        for kind, count, context in cases:
            batch = step(kind, count, context)
            assert np.isfinite(run_batch(loaded, batch)).all(), f"{kind} {count} x {context}: logits are not finite"
            seconds = device.median_s(partial(_start, loaded, batch))
            floor = floor_s(cost, rates, kind, count, context)
            name = f"{kind} {count} x {context}"
            if not invariant:
                free[name] = seconds
            add(
                case=name + (", batch-invariant" if invariant else ""),
                weights=type,
                ms=1e3 * seconds,
                tokens_s=(count if kind == "decode" else context) / seconds,
                floor_ms=1e3 * floor,
                share=floor / seconds,
                note=f"{seconds / free[name]:.2f} times the time without" if invariant else "",
            )
        loaded.close()
        device.free()
