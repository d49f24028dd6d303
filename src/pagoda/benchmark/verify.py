"""Predicted beside measured: the planner's figures for a model, and what the engine does with it here.

A machine's speed drifts while others use it, so kernels are probed and the engine is timed in turns, round after
round, and both sides are lower quartiles over the rounds. TTFT is timed as it is. For TPOT at long contexts the
prompts need not be computed, only to be there: their steps are skipped, then real steps decode at that context.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import exp
from pathlib import Path
from typing import Any

import numpy as np

from pagoda.backends.base import LoadedModel
from pagoda.backends.cpu import CpuBackend
from pagoda.benchmark.prompts import random_ids
from pagoda.engine.engine import Engine
from pagoda.engine.load import MIN_ROWS
from pagoda.errors import ConfigError, UnsupportedError
from pagoda.kv.cache import blocks_for
from pagoda.plan.costs import peak_flops
from pagoda.plan.devices import Device, device
from pagoda.plan.here import setup_here, sliced
from pagoda.plan.memory import cpu_runtime_bytes, kv_request_bytes
from pagoda.plan.models import shape_of_file
from pagoda.plan.probes import NoText, Prober, Setup, lower_quartile
from pagoda.plan.rates import MeasuredCosts
from pagoda.plan.resident import embedding_bytes, engine_buffer_bytes, packed_bytes
from pagoda.plan.shapes import ModelShape
from pagoda.plan.speed import prefill_s
from pagoda.plan.weights import STORED, Weights, weights_in
from pagoda.plan.work import Workload, decode_step
from pagoda.sampling.sampler import Sampler
from pagoda.types import Batch, FloatArray, Request, SamplingParams

CHUNK = 512
PROMPTS = (128, 512, 1024, 2048)
DECODES = ((1, 128), (1, 1024), (1, 4096), (2, 512), (4, 128), (4, 1024), (8, 512), (16, 128), (16, 1024))
LOADS = ((1, 128), (4, 256), (8, 256))  # (requests, prompt) of which resident memory is measured
STEPS = 8  # timed at each point and round
LONG_S = 3.0  # a prompt that takes longer is timed in the first two rounds alone
TOO_LONG_S = 40.0  # and one that takes longer than this not at all
ROUNDS = 6
FAULT_AROUND = 32_768  # bytes of a mapped file that a touched one brings along: Linux maps up to 64 KiB at once

Say = Callable[[str], None]
Decode = tuple[int, int]  # sequences, context


@dataclass(frozen=True, slots=True)
class Point:
    """One figure. Bytes for memory, seconds else."""

    figure: str  # memory, ttft or tpot
    batch: int
    tokens: int  # prompt of a ttft, context of a tpot
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def verify(path: Path, kv_type: str, *, rounds: int = ROUNDS, say: Say = lambda line: None) -> list[Point]:
    """Run the engine on the model at `path` here. UnsupportedError if it does not run such a model."""
    shape = shape_of_file(path)
    weights = weights_in(shape, STORED)
    setup = setup_here(kv_type)
    points = []
    for requests, prompt in LOADS:
        say(f"resident memory with {requests} × {prompt} tokens")
        predicted = predicted_resident(shape, weights, setup, requests, prompt)
        points.append(Point("memory", requests, prompt, predicted, measured_resident(path, kv_type, requests, prompt)))
    return points + _speeds(shape, weights, setup, rounds, say)


# Memory


def predicted_resident(shape: ModelShape, weights: Weights, setup: Setup, requests: int, prompt: int) -> int:
    """Bytes of a process that has served `requests` prompts of so many tokens: only pages that were used are there."""
    packed = packed_bytes(shape, weights)
    if packed is None:
        raise UnsupportedError(f"the engine here does not read {weights.format}")
    tokens = min(CHUNK, requests * prompt)
    buffers = engine_buffer_bytes(
        shape, weights, setup.kv_type, batch_tokens=tokens, rows=requests, threads=setup.threads
    )
    kv = requests * kv_request_bytes(shape, setup.kv_type, prompt + GENERATED, CHUNK)
    table = embedding_bytes(shape, weights)
    untouched = exp(-requests * (prompt + GENERATED) * FAULT_AROUND / table)  # tokens are random
    return round(packed - untouched * table) + buffers + kv + cpu_runtime_bytes(shape, server=False)


GENERATED = 8


def measured_resident(path: Path, kv_type: str, requests: int, prompt: int) -> int:
    """The same load in a process of its own."""
    words = [sys.executable, "-m", "pagoda.benchmark.resident", str(path), kv_type, str(requests), str(prompt)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"the engine could not be run: {done.stderr.strip().splitlines()[-1:]}")
    return int(json.loads(done.stdout)["resident_bytes"])


# Speed


class Skipping:
    """A `LoadedModel` that leaves steps out while `skip` is set."""

    def __init__(self, model: LoadedModel, vocab_size: int, rows: int) -> None:
        self._model = model
        self._zeros: FloatArray = np.zeros((rows, vocab_size), np.float32)
        self.skip = False
        self.weight_bytes, self.buffer_bytes = model.weight_bytes, model.buffer_bytes

    def forward(self, batch: Batch) -> FloatArray:
        return self._zeros[: len(batch.logit_rows)] if self.skip else self._model.forward(batch)

    def block_bytes(self, group: int) -> int:
        return self._model.block_bytes(group)

    def allocate_kv(self, num_blocks: tuple[int, ...]) -> None:
        self._model.allocate_kv(num_blocks)

    def copy_blocks(self, group: int, pairs: Any) -> None:
        self._model.copy_blocks(group, pairs)

    def close(self) -> None:
        self._model.close()


class Runner:
    """The engine on the whole model, timed."""

    def __init__(
        self, shape: ModelShape, setup: Setup, model: Any, decodes: list[tuple[int, int]], prompt: int
    ) -> None:
        rows = max(MIN_ROWS, max(batch for batch, _ in decodes))
        backend = CpuBackend(threads=setup.threads, isa=setup.isa)
        loaded = backend.load(model, max_batch_tokens=CHUNK, max_batch_seqs=rows, kv_type=setup.kv_type)
        self.model = Skipping(loaded, shape.vocab_size, rows)
        self._vocab_size = shape.vocab_size
        blocks = max([batch * blocks_for(context + SPARE) for batch, context in decodes] + [blocks_for(prompt + SPARE)])
        self.engine = Engine(
            self.model,
            NoText(),
            Sampler(shape.vocab_size),
            vocab_size=shape.vocab_size,
            windows=[group.window for group in model.kv_groups],
            num_blocks=[blocks] * len(model.kv_groups),
            max_context=min(shape.max_context, max([prompt, *(context for _, context in decodes)]) + SPARE),
            max_batch_tokens=CHUNK,
            max_num_seqs=max(batch for batch, _ in decodes),
            max_rows=rows,
            prefix_caching=False,
        )
        self._number = 0

    def ttft(self, prompt: int) -> float:
        start = time.perf_counter()
        self._add(1, prompt, 1)
        while self.engine.has_work:
            self.engine.step()
        return time.perf_counter() - start

    def tpots(self, batch: int, context: int) -> list[float]:
        """Seconds of each of some steps in which `batch` sequences of about `context` tokens decode."""
        self.model.skip = True
        prompt = context - STEPS // 2
        names = self._add(batch, prompt, SPARE - 1)
        started: set[str] = set()
        while len(started) < batch:
            started |= {delta.request_id for delta in self.engine.step().deltas}
        self.model.skip = False
        times = []
        for _ in range(STEPS):
            start = time.perf_counter()
            self.engine.step()
            times.append(time.perf_counter() - start)
        for name in names:
            self.engine.abort(name)
        while self.engine.has_work:
            self.engine.step()
        return times

    def _add(self, batch: int, prompt: int, max_tokens: int) -> list[str]:
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        names = []
        for _ in range(batch):
            self._number += 1
            ids = random_ids(0, self._number, prompt, self._vocab_size)
            names.append(str(self._number))
            self.engine.add(Request(names[-1], tuple(ids), params, time.monotonic()))
        return names


SPARE = 128  # tokens that a sequence may get while the others' prompts are skipped


@contextmanager
def _probing(shape: ModelShape, weights: Weights, setup: Setup) -> Iterator[tuple[Prober, Any]]:
    with sliced(shape, weights) as (model, counts):
        if model.num_layers != shape.num_layers:
            raise UnsupportedError(f"{shape.name} cannot be run whole from here: name a file that can be served")
        prober = Prober(model, counts, setup)
        try:
            yield prober, model
        finally:
            prober.close()


def _speeds(shape: ModelShape, weights: Weights, setup: Setup, rounds: int, say: Say) -> list[Point]:
    decodes = [(batch, context) for batch, context in DECODES if context + SPARE <= shape.max_context]
    prompts = [prompt for prompt in PROMPTS if prompt <= shape.max_context - SPARE]
    if not decodes or not prompts:
        raise UnsupportedError(f"a context of {shape.max_context} tokens is too short to verify anything")
    ttfts: dict[int, list[float]] = {}
    tpots: dict[tuple[int, int], list[float]] = {}
    here = device("this")
    with _probing(shape, weights, setup) as (prober, model):
        runner = Runner(shape, setup, model, decodes, max(prompts))
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}: probing kernels")
            prober.sweep()
            costs = _costs(prober, shape, weights, setup, here)
            for prompt in prompts:
                expected = prefill_s(costs, prompt, CHUNK)
                if expected < (TOO_LONG_S if number < 2 else LONG_S):
                    say(f"round {number + 1} of {rounds}: TTFT of {prompt} tokens")
                    ttfts.setdefault(prompt, []).append(runner.ttft(prompt))
            for point in decodes:
                say(f"round {number + 1} of {rounds}: TPOT of {point[0]} × {point[1]} tokens")
                tpots.setdefault(point, []).extend(runner.tpots(*point))
        costs = _costs(prober, shape, weights, setup, here)
        runner.model.close()
    found = [Point("ttft", 1, n, prefill_s(costs, n, CHUNK), lower_quartile(times)) for n, times in ttfts.items()]
    for (batch, context), times in tpots.items():
        found.append(
            Point("tpot", batch, context, costs.step(decode_step(batch, context)).seconds, lower_quartile(times))
        )
    return found


def _costs(prober: Prober, shape: ModelShape, weights: Weights, setup: Setup, here: Device) -> MeasuredCosts:
    peak = peak_flops(here, weights.computes_on(here.kind))[1]
    rates = replace(prober.rates(), source="probed now")
    return MeasuredCosts(rates, Workload(shape, weights, setup.kv_type), here.bandwidth_bytes_s, peak)
