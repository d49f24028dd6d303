"""How fast Pagoda's own matrix products run here, for each kind of weight: what decode and prefill mostly are.

Measured as a model runs them: a step program of one matrix, all threads, weights that no cache holds for one token at
a time, and a matrix that stays in the cache for many. The rest of a step (attention, norms) is not in it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

import pagoda._native as native
from pagoda.backends.compile import StageKind
from pagoda.formats.blocks import BLOCK_TYPES
from pagoda.hardware.cpu_share import CpuShare

TYPES = ("Q4_0", "Q4_K", "Q6_K", "Q8_0", "BF16", "F32")
COLUMNS = 4096
FILL = 0x2C  # every byte of the weights: half floats, bfloats and floats of it are small numbers, codes are codes
DECODE_BYTES = 64_000_000  # at least; twice what the last cache holds
PREFILL_ROWS, PREFILL_TOKENS = 1024, 256
ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Product:
    """Products with weights of one type: bytes/s of weights read for one token, operations/s for a prompt's chunk."""

    type: str
    bytes_s: float
    ops_s: float


def measure_products(
    threads: int, cache_bytes: int, meter: CpuShare, types: tuple[str, ...] = TYPES
) -> tuple[Product, ...]:
    """The best of ROUNDS rounds for each type. `cache_bytes`: size of the last cache. `meter` runs during the
    rounds."""
    runtime = native.Runtime(threads)
    return tuple(_measure(runtime, kind, max(DECODE_BYTES, 2 * cache_bytes), meter) for kind in types)


def _measure(runtime: native.Runtime, kind: str, num_bytes: int, meter: CpuShare) -> Product:
    row_bytes = COLUMNS // BLOCK_TYPES[kind].elements * BLOCK_TYPES[kind].bytes
    rows = num_bytes // row_bytes // 16 * 16
    decode_s = _best_seconds(runtime, _weight(runtime, kind, rows, row_bytes), 1, meter)
    prefill_s = _best_seconds(runtime, _weight(runtime, kind, PREFILL_ROWS, row_bytes), PREFILL_TOKENS, meter)
    return Product(kind, rows * row_bytes / decode_s, 2 * PREFILL_ROWS * COLUMNS * PREFILL_TOKENS / prefill_s)


def _weight(runtime: native.Runtime, kind: str, rows: int, row_bytes: int) -> native.Weight:
    return runtime.pack(np.full(rows * row_bytes, FILL, np.uint8), kind, rows, COLUMNS)


def _best_seconds(runtime: native.Runtime, weight: native.Weight, tokens: int, meter: CpuShare) -> float:
    """Seconds of the fastest round, by the clock of the thread that waits for it.

    Not by the program's own profile of its stages: on a busy machine the thread that takes those times may sleep
    through a stage, which then seems to have taken none. What else is in a round, an embedding and the activations'
    quantization, takes some hundredths of it.
    """
    program = _program(runtime, weight, tokens)
    ids = np.zeros(tokens, np.int32)
    positions, starts = np.arange(tokens, dtype=np.int32), np.array([0, tokens], np.int32)
    blocks, no_rows = [np.arange(-(-tokens // 16), dtype=np.int32)[None]], np.empty(0, np.int32)
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        with meter:
            program.forward(ids, positions, starts, blocks, no_rows, no_rows)
        best = min(best, time.perf_counter() - start)
    return best


def _program(runtime: native.Runtime, weight: native.Weight, tokens: int) -> native.Program:
    """A program that embeds `tokens` tokens and multiplies them by `weight`. It has a KV layer because every program
    must."""
    program = runtime.program(tokens, 1, "f16")
    program.set_layers([(0, 1, 64, None)], 1)
    x, out = program.add_buffer(COLUMNS), program.add_buffer(weight.rows)
    table = np.random.default_rng(0).standard_normal((1, COLUMNS), dtype=np.float32)
    data = table.view(np.uint8).reshape(-1)
    program.add(StageKind.EMBED, out=x, table=data, type="F32", rows=1, columns=COLUMNS)
    parts = [native.LinearPart([weight], out)]
    if weight.is_float:
        program.add(StageKind.LINEAR, x=x, parts=parts)
    else:
        quantized = program.add_quantized(COLUMNS)
        program.add(StageKind.ROWWISE, x=x, quantized=quantized)
        program.add(StageKind.LINEAR, quantized=quantized, parts=parts)
    program.allocate_kv([-(-tokens // 16)])
    return program
