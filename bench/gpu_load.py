"""Many requests at once through the engine: output tokens a second, beside what the roofline allows for that mix.

The roofline's time is that of the same work in whole steps: all prompts in steps of the token budget, then all answers
a token a step, each step at least as long as its bytes take at the measured bandwidth and its operations at the
measured rate. The device's own time is taken with events around each step; the rest is gaps, which are the host's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gpu_models import Cost, Rates, Shape, cost_of, random_model
from gpu_steps import Device, load
from pagoda.backends.base import ForwardModel, LoadedModel
from pagoda.engine.engine import Engine
from pagoda.engine.limits import EngineLimits
from pagoda.plan.measured.engine_probe import NoText
from pagoda.sampling.sampler import Sampler
from pagoda.sampling.top_k import TopKSampler
from pagoda.types import BLOCK_SIZE, Int32Array, Request, SamplingParams


@dataclass(frozen=True)
class Load:
    requests: int
    prompt: int
    output: int
    max_batch_tokens: int

    @property
    def title(self) -> str:
        return f"{self.requests} requests, {self.prompt} in / {self.output} out"

    def prompts(self, vocab: int) -> list[list[int]]:
        rng = np.random.default_rng(1)
        return [[int(token) for token in row] for row in rng.integers(1, vocab, (self.requests, self.prompt))]

    def floor_s(self, cost: Cost, rates: Rates) -> float:
        per_step = max(1, self.max_batch_tokens // self.prompt)
        full, rest = divmod(self.requests, per_step)
        prefill = full * cost.prefill_s(rates, self.prompt, per_step)
        prefill += cost.prefill_s(rates, self.prompt, rest) if rest else 0.0
        decode = (cost.decode_s(rates, self.requests, self.prompt + i) for i in range(1, self.output))
        return prefill + sum(decode)


LOAD = Load(256, 512, 128, 8192)
SMALL_LOAD = Load(3, 20, 5, 32)  # where there is no GPU


def make_engine(model: LoadedModel, decoder: ForwardModel, *, tokens: int, seqs: int, context: int) -> Engine:
    """Greedy answers without text, and KV blocks for all."""
    blocks = [seqs * -(-context // BLOCK_SIZE)] * len(decoder.kv_groups)
    limits = EngineLimits(
        max_context=context,
        windows=[group.window for group in decoder.kv_groups],
        num_blocks=blocks,
        max_batch_tokens=tokens,
        max_num_seqs=seqs,
    )
    sampler = (Sampler if model.ranker is None else TopKSampler)(decoder.vocab_size)
    return Engine(model, NoText(), sampler, limits, vocab_size=decoder.vocab_size, prefix_caching=False)


def answer(engine: Engine, prompts: Sequence[Sequence[int]], output: int) -> list[list[int]]:
    """Greedy answers of `output` tokens."""
    params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
    tokens: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}
    for i, prompt in enumerate(prompts):
        engine.add(Request(str(i), tuple(prompt), params, time.monotonic()))
    while engine.has_work:
        for delta in engine.step().deltas:
            assert delta.error is None, delta.error
            tokens[delta.request_id] += delta.token_ids
    return list(tokens.values())


class Busy:
    """How long the device was at work between the start of the first step and the end of the last."""

    def __init__(self, model: LoadedModel, device: Device) -> None:
        self._device = device
        self._marks: list[tuple[Any, Any]] = []
        self._launch = model.launch
        model.launch = self._marked  # type: ignore[method-assign]

    def clear(self) -> None:
        self._marks.clear()

    def _marked(self, tokens: Int32Array) -> None:
        start = self._mark()
        self._launch(tokens)
        self._marks.append((start, self._mark()))

    def _mark(self) -> Any:
        if not self._device.is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def share_of_gaps(self) -> float:
        busy = sum(self._between(start, end) for start, end in self._marks)
        return 1 - busy / self._between(self._marks[0][0], self._marks[-1][1])

    def _between(self, start: Any, end: Any) -> float:
        return float(1e-3 * start.elapsed_time(end) if self._device.is_gpu else end - start)


def measure_load(
    device: Device, shape: Shape, type: str, rates: Rates, add: Callable[..., None], *, invariant: bool = False
) -> float:
    """→ output tokens a second"""
    work = LOAD if device.is_gpu else SMALL_LOAD
    decoder = random_model(shape, type, max_context=work.prompt + work.output)
    loaded = load(device, decoder, invariant=invariant, tokens=work.max_batch_tokens, seqs=work.requests, kv_type="f16")
    engine = make_engine(
        loaded, decoder, tokens=work.max_batch_tokens, seqs=work.requests, context=work.prompt + work.output
    )
    busy = Busy(loaded, device)
    prompts = work.prompts(shape.vocab)
    answer(engine, prompts, 3)  # compiles kernels, and nothing of it is cached
    busy.clear()
    device.wait()
    start = time.perf_counter()
    answers = answer(engine, prompts, work.output)
    device.wait()
    seconds = time.perf_counter() - start
    assert all(len(tokens) == work.output for tokens in answers), "a request ended early"
    floor = work.floor_s(cost_of(shape, loaded.weight_bytes, loaded.block_bytes(0) / BLOCK_SIZE), rates)
    add(
        case=work.title + (", batch-invariant" if invariant else ""),
        weights=type,
        ms=1e3 * seconds,
        tokens_s=work.requests * work.output / seconds,
        floor_ms=1e3 * floor,
        share=floor / seconds,
        note=f"host gaps {busy.share_of_gaps():.1%}",
    )
    loaded.close()
    device.free()
    return work.requests * work.output / seconds
