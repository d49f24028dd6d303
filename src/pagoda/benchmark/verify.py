"""Predicted beside measured: the planner's figures for a model, and what the engine does with it here.

A machine's speed drifts while others use it, so kernels are probed and the engine is timed in turns, round after
round, and both sides are lower quartiles over the rounds. TTFT is timed as it is. For TPOT at long contexts the
prompts need not be computed, only to be there: their steps are skipped, then real steps decode at that context, whose
blocks have memory of their own (`write_all_blocks`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from pagoda.backends.base import LoadedModel, PlacedAdapter
from pagoda.backends.specs import AdapterWeights, LoraType
from pagoda.benchmark.prompts import random_ids
from pagoda.engine.engine import Engine
from pagoda.engine.limits import EngineLimits
from pagoda.engine.load import MIN_ROWS
from pagoda.errors import ConfigError, UnsupportedError
from pagoda.hardware.cpu_share import QUIET_SHARE
from pagoda.hardware.device import Device
from pagoda.hardware.devices import device
from pagoda.kv.table import blocks_for
from pagoda.plan.cost.memory import cpu_runtime_bytes, kv_request_bytes
from pagoda.plan.cost.resident import engine_bytes
from pagoda.plan.cost.roofline import peak_flops
from pagoda.plan.cost.speed import prefill_s
from pagoda.plan.cost.work import Workload, decode_step
from pagoda.plan.measured.engine_probe import NoText
from pagoda.plan.measured.measured_costs import sliced
from pagoda.plan.measured.probes import Prober, lower_quartile, write_all_blocks
from pagoda.plan.measured.rates import MeasuredCosts
from pagoda.plan.measured.setup import Setup, setup_here
from pagoda.plan.model.models import shape_of_file
from pagoda.plan.model.shapes import ModelShape
from pagoda.plan.model.weights import STORED, ModelWeights, weights_in
from pagoda.plan.settings import FIGURES, Figure
from pagoda.sampling.sampler import Sampler
from pagoda.types import Batch, FloatArray, Int32Array, Request, SamplingParams

CHUNK = 512
PROMPTS = (128, 512, 1024, 2048)
DECODES = ((1, 128), (1, 1024), (1, 4096), (2, 512), (4, 128), (4, 1024), (8, 512), (16, 128), (16, 1024))
LOADS = ((1, 128), (4, 256), (8, 256))  # (requests, prompt) of which resident memory is measured
STEPS = 8  # timed at each point and round
SHORT_S = 0.5  # of prompts in a round
LONG_S = 3.0  # a prompt that takes longer is timed in the first two rounds alone
TOO_LONG_S = 40.0  # and one that takes longer than this not at all
ROUNDS = 6

Say = Callable[[str], None]
Decode = tuple[int, int]  # sequences, context


@dataclass(frozen=True, slots=True)
class Prediction:
    """One predicted figure beside the measured one: bytes for memory, else seconds."""

    figure: str  # memory, ttft or tpot
    batch: int
    tokens: int  # prompt of a ttft, context of a tpot
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


@dataclass(frozen=True, slots=True)
class Verified:
    """All predictions. `cpu_share`: share of the available CPU time that the probes got; None if nothing was timed."""

    points: list[Prediction]
    cpu_share: float | None

    @property
    def is_quiet(self) -> bool:
        return self.cpu_share is None or self.cpu_share >= QUIET_SHARE


def verify(
    path: Path,
    kv_type: str,
    *,
    activation_type: str = "int16",
    figures: Collection[Figure] = FIGURES,
    seconds: float | None = None,
    say: Say = lambda line: None,
) -> Verified:
    """Run the engine on the model at `path` here. Once `seconds` are over, no further round of timing begins.

    UnsupportedError if the engine does not run such a model.
    """
    start = time.perf_counter()
    shape = shape_of_file(path)
    weights = weights_in(shape, STORED)
    setup = setup_here(kv_type, activation_type)
    points = []
    for requests, prompt in LOADS if "memory" in figures else ():
        say(f"resident memory with {requests} × {prompt} tokens")
        predicted = predicted_resident(shape, weights, setup, requests, prompt)
        points.append(
            Prediction("memory", requests, prompt, predicted, measured_resident(path, kv_type, requests, prompt))
        )
    if not {"ttft", "tpot"} & set(figures):
        return Verified(points, None)
    speeds = _speeds(shape, weights, setup, figures, Clock(start + (seconds or inf)), say)
    return replace(speeds, points=points + speeds.points)


# Memory


def predicted_resident(shape: ModelShape, weights: ModelWeights, setup: Setup, requests: int, prompt: int) -> int:
    """Bytes of a process that has served `requests` prompts of so many tokens, without pages of the model's file."""
    sizes = engine_bytes(
        shape,
        weights,
        setup.kv_type,
        batch_tokens=min(CHUNK, requests * prompt),
        rows=requests,
        threads=setup.threads,
    )
    if sizes is None:
        raise UnsupportedError(f"the engine here does not run {shape.architecture} in {weights.format}")
    kv = requests * kv_request_bytes(shape, setup.kv_type, prompt + GENERATED, CHUNK)
    return sum(sizes) + kv + cpu_runtime_bytes(shape, server=False)


GENERATED = 8


def measured_resident(path: Path, kv_type: str, requests: int, prompt: int) -> int:
    """Resident bytes after the same load in a process of its own, without pages of the model's file."""
    words = [sys.executable, "-m", "pagoda.benchmark.resident", str(path), kv_type, str(requests), str(prompt)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"the engine could not be run: {done.stderr.strip().splitlines()[-1:]}")
    return int(json.loads(done.stdout)["resident_bytes"])


# Speed


class Skipping:
    """A `LoadedModel` that leaves steps out while `skip` is set."""

    asynchronous = False
    ranker = None

    def __init__(self, model: LoadedModel, vocab_size: int, rows: int) -> None:
        self._model = model
        self._zeros: FloatArray = np.zeros((rows, vocab_size), np.float32)
        self.skip = False
        self.weight_bytes, self.buffer_bytes = model.weight_bytes, model.buffer_bytes
        self.graph_bytes = model.graph_bytes

    def stage(self, batch: Batch) -> None:
        self._model.stage(batch)

    def launch(self, tokens: Int32Array) -> None:
        if not self.skip:
            self._model.launch(tokens)

    def wait(self, rows: Int32Array | None = None) -> FloatArray:
        return self._zeros if self.skip else self._model.wait(rows)

    def hidden_states(self) -> FloatArray:
        return self._model.hidden_states()

    def block_bytes(self, group: int) -> int:
        return self._model.block_bytes(group)

    @property
    def state_bytes(self) -> int:
        return self._model.state_bytes

    def place_adapter(self, weights: AdapterWeights, *, type: LoraType) -> PlacedAdapter:
        return self._model.place_adapter(weights, type=type)

    def allocate_kv(self, num_blocks: tuple[int, ...], num_states: int = 0) -> None:
        self._model.allocate_kv(num_blocks, num_states)

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
        loaded = setup.backend().load(model, max_batch_tokens=CHUNK, max_batch_seqs=rows, kv_type=setup.kv_type)
        self.model = Skipping(loaded, shape.vocab_size, rows)
        self._vocab_size = shape.vocab_size
        blocks = max([batch * blocks_for(context + SPARE) for batch, context in decodes] + [blocks_for(prompt + SPARE)])
        limits = EngineLimits(
            max_context=min(shape.max_context, max([prompt, *(context for _, context in decodes)]) + SPARE),
            windows=[group.window for group in model.kv_groups],
            num_blocks=[blocks] * len(model.kv_groups),
            num_states=rows if loaded.state_bytes else 0,
            max_batch_tokens=CHUNK,
            max_num_seqs=max(batch for batch, _ in decodes),
            max_rows=rows,
        )
        sampler, vocab_size = Sampler(shape.vocab_size), shape.vocab_size
        self.engine = Engine(self.model, NoText(), sampler, limits, vocab_size=vocab_size, prefix_caching=False)
        for group in range(len(model.kv_groups)):
            write_all_blocks(loaded, group, blocks)
        self._number = 0

    def ttfts(self, prompt: int) -> list[float]:
        """Seconds until the first token, several times if they are short."""
        times: list[float] = []
        while sum(times) < SHORT_S:
            start = time.perf_counter()
            self._add(1, prompt, 1)
            while self.engine.has_work:
                self.engine.step()
            times.append(time.perf_counter() - start)
        return times

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
def _probing(shape: ModelShape, weights: ModelWeights, setup: Setup) -> Iterator[tuple[Prober, Any]]:
    with sliced(shape, weights) as (model, counts):
        if model.num_layers != shape.num_layers:
            raise UnsupportedError(f"{shape.name} cannot be run whole from here: name a file that can be served")
        prober = Prober(model, counts, setup)
        try:
            yield prober, model
        finally:
            prober.close()


class Clock:
    """Says whether another round as long as the longest so far would end in time."""

    def __init__(self, end: float, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._end, self._last, self._longest = end, now(), 0.0

    def has_room(self) -> bool:
        now = self._now()
        self._longest, self._last = max(self._longest, now - self._last), now
        return now + self._longest <= self._end


def _speeds(
    shape: ModelShape, weights: ModelWeights, setup: Setup, figures: Collection[Figure], clock: Clock, say: Say
) -> Verified:
    decodes = [(batch, context) for batch, context in DECODES if context + SPARE <= shape.max_context]
    prompts = [prompt for prompt in PROMPTS if prompt <= shape.max_context - SPARE]
    if not decodes or not prompts:
        raise UnsupportedError(f"a context of {shape.max_context} tokens is too short to verify anything")
    ttfts: dict[int, list[float]] = {}
    tpots: dict[Decode, list[float]] = {}
    here = device("this")
    with _probing(shape, weights, setup) as (prober, model):
        runner = Runner(shape, setup, model, decodes, max(prompts))
        clock.has_room()  # loading is no round
        for number in range(ROUNDS):
            say(f"round {number + 1} of {ROUNDS}: probing kernels")
            prober.sweep()
            costs = _costs(prober, shape, weights, setup, here)
            for prompt in prompts if "ttft" in figures else ():
                if prefill_s(costs, prompt, CHUNK) < (TOO_LONG_S if number < 2 else LONG_S):
                    say(f"round {number + 1} of {ROUNDS}: TTFT of {prompt} tokens")
                    ttfts.setdefault(prompt, []).extend(runner.ttfts(prompt))
            for point in decodes if "tpot" in figures else ():
                say(f"round {number + 1} of {ROUNDS}: TPOT of {point[0]} × {point[1]} tokens")
                tpots.setdefault(point, []).extend(runner.tpots(*point))
            if not clock.has_room():
                break
        costs = _costs(prober, shape, weights, setup, here)
        runner.model.close()
    return Verified(_points(costs, ttfts, tpots), prober.cpu_share)


def _points(
    costs: MeasuredCosts, ttfts: Mapping[int, Sequence[float]], tpots: Mapping[Decode, Sequence[float]]
) -> list[Prediction]:
    found = [Prediction("ttft", 1, n, prefill_s(costs, n, CHUNK), lower_quartile(times)) for n, times in ttfts.items()]
    for (batch, context), times in tpots.items():
        step_s = costs.step(decode_step(batch, context)).seconds
        found.append(Prediction("tpot", batch, context, step_s, lower_quartile(times)))
    return found


def _costs(prober: Prober, shape: ModelShape, weights: ModelWeights, setup: Setup, here: Device) -> MeasuredCosts:
    peak = peak_flops(here, weights.computes_on(here.kind))[1]
    rates = replace(prober.rates(), source="probed now")
    return MeasuredCosts(rates, Workload(shape, weights, setup.kv_type), here.bandwidth_bytes_s, peak)
