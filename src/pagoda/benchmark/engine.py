"""The speed of the engine itself, as llama-bench and llama-batched-bench measure it, and beside the machine's limits.

For each batch size B, a run is: B random prompts prefilled (tokens over seconds, and each one's TTFT), then B
sequences that all decode, `gen` steps at contexts from `prompt` on. Greedy, no prefix cache, nothing ends early.

Shares of the ceiling count the least that must be done: the file's bytes of all weight matrices once a step and the
KV of all sequences (bandwidth_share, of decode), and two operations for each weight and token (compute_share, of
prefill; decode_compute_share). What a step does besides is not counted, so a share never flatters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from pagoda.benchmark.prompts import random_ids
from pagoda.benchmark.stats import median
from pagoda.config import EngineSettings
from pagoda.engine.engine import Engine
from pagoda.errors import CapacityError
from pagoda.types import BLOCK_SIZE, RawTensor, Request, SamplingParams, StepResult

EMBEDDINGS = ("token_embd.weight", "model.embed_tokens.weight", "embed_tokens.weight")
HEADS = ("output.weight", "lm_head.weight")


@dataclass(frozen=True, slots=True)
class ModelWork:
    """The least that a model has to do."""

    weight_bytes: int  # read in each step: all matrices of the layers, and the output head
    layer_weights: int  # in matrices that each token is multiplied with
    head_weights: int  # in the output head, which only sampled tokens need
    kv_token_bytes: tuple[tuple[int | None, float], ...]  # a KV group each: window, bytes that a token takes

    def kv_bytes(self, context: float) -> float:
        """Bytes of KV that one sequence of `context` tokens reads in a step."""
        return sum(size * min(context, window or context) for window, size in self.kv_token_bytes)


def model_work(tensors: Iterable[RawTensor], windows: Iterable[int | None], block_bytes: Iterable[int]) -> ModelWork:
    """`windows` and `block_bytes` (of one block) are those of each KV group."""
    by_name = {tensor.name: tensor for tensor in tensors if len(tensor.shape) >= 2}
    embeddings = [by_name[name] for name in EMBEDDINGS if name in by_name]
    heads = [by_name[name] for name in HEADS if name in by_name] or embeddings  # none of its own: they are tied
    layers = [tensor for name, tensor in by_name.items() if name not in (*EMBEDDINGS, *HEADS)]
    return ModelWork(
        weight_bytes=sum(tensor.num_bytes for tensor in (*layers, *heads)),
        layer_weights=sum(_size(tensor) for tensor in layers),
        head_weights=sum(_size(tensor) for tensor in heads),
        kv_token_bytes=tuple((window, size / BLOCK_SIZE) for window, size in zip(windows, block_bytes, strict=True)),
    )


def _size(tensor: RawTensor) -> int:
    size = 1
    for length in tensor.shape:
        size *= length
    return size


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """One measurement of one batch size. Seconds."""

    prefill: float
    ttfts: tuple[float, ...]
    decode: float
    forward: float  # of decode, in the backend
    sample: float  # of decode


def bench_settings(settings: EngineSettings, prompt: int, gen: int, batches: Iterable[int]) -> EngineSettings:
    """What the engine needs to run the largest batch: room for its sequences, and no prefix cache."""
    batch = max(batches)
    context = prompt + gen + decode_slack(settings, prompt, batch)
    return replace(
        settings,
        prefix_caching=False,
        max_num_seqs=batch,
        max_batch_tokens=max(settings.batch_tokens, batch),
        max_context=max(context, settings.max_context or 0),
    )


def decode_slack(settings: EngineSettings, prompt: int, batch: int) -> int:
    """Tokens that the first sequence may have got by the time that the last one's prompt is done, and some."""
    room = max(1, settings.batch_tokens - batch)  # for prompts, while others decode
    return -(-batch * prompt // room) + 2


class Bench:
    """Runs the measurements on an engine that nobody else uses."""

    def __init__(self, core: Engine, *, prompt: int, gen: int, slack: int, seed: int = 0) -> None:
        """`slack` is `decode_slack` of the largest batch."""
        self._core = core
        self._prompt = prompt
        self._gen = gen
        self._slack = slack
        self._seed = seed
        self._num_requests = 0

    def run(self, batch: int) -> BatchTimes:
        """Measure once. Raises CapacityError if the KV cache cannot hold the batch."""
        prefill, ttfts = self.prefill(batch)
        results, decode = self.decode(batch)
        forward, sample = sum(result.forward_s for result in results), sum(result.sample_s for result in results)
        return BatchTimes(prefill, ttfts, decode, forward, sample)

    def prefill(self, batch: int) -> tuple[float, tuple[float, ...]]:
        """Seconds until all prompts have their first token, and until each has."""
        start = time.perf_counter()
        self._add(batch, max_tokens=1)
        ttfts: list[float] = []
        while self._core.has_work:
            finished = self._step().finished
            ttfts += [time.perf_counter() - start] * len(finished)
        return ttfts[-1], tuple(ttfts)

    def decode(self, batch: int, begin: Callable[[], object] = lambda: None) -> tuple[list[StepResult], float]:
        """`gen` steps with all sequences decoding, and their seconds. `begin` is called before the first of them."""
        ids = self._add(batch, max_tokens=self._gen + self._slack)
        started: set[str] = set()
        while len(started) < batch:
            started |= {delta.request_id for delta in self._step().deltas}
        begin()
        start = time.perf_counter()
        results = [self._step() for _ in range(self._gen)]
        seconds = time.perf_counter() - start
        if any(result.num_generation_tokens != batch for result in results):  # some waited for room
            raise _does_not_fit(results[-1])
        for request_id in ids:
            self._core.abort(request_id)
        while self._core.has_work:
            self._core.step()
        return results, seconds

    def _add(self, batch: int, max_tokens: int) -> list[str]:
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        ids = []
        for _ in range(batch):
            self._num_requests += 1
            prompt = random_ids(self._seed, self._num_requests, self._prompt, self._core.vocab_size)
            ids.append(f"bench-{self._num_requests}")
            self._core.add(Request(ids[-1], tuple(prompt), params, time.monotonic()))
        return ids

    def _step(self) -> StepResult:
        result = self._core.step()
        if result.num_preempted:
            raise _does_not_fit(result)
        return result


def _does_not_fit(result: StepResult) -> CapacityError:
    return CapacityError(
        f"the KV cache of {result.kv_blocks_total * BLOCK_SIZE} tokens does not hold the batch: "
        "lower --batch, --prompt or --gen, or raise --kv-memory"
    )


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the machine can do, measured; None where it was not."""

    read_bandwidth: float | None  # bytes/s
    int8_peak: float | None  # operations/s


def result_of(
    batch: int, runs: list[BatchTimes], prompt: int, gen: int, work: ModelWork, ceilings: Ceilings
) -> dict[str, Any]:
    """The report of one batch size: medians, and each run."""
    each = [_rates(batch, run, prompt, gen) for run in runs]
    rates = {name: round(median(one[name] for one in each), 3) for name in each[0]}
    prefill_ops = 2 * (work.layer_weights + work.head_weights / prompt)
    decode_ops = 2 * (work.layer_weights + work.head_weights)
    step_bytes = work.weight_bytes + batch * work.kv_bytes(prompt + gen / 2)
    return {
        "batch": batch,
        "prompt": prompt,
        "gen": gen,
        **rates,
        "bandwidth_share": share(step_bytes * rates["decode_tok_s"] / batch, ceilings.read_bandwidth),
        "compute_share": share(prefill_ops * rates["prefill_tok_s"], ceilings.int8_peak),
        "decode_compute_share": share(decode_ops * rates["decode_tok_s"], ceilings.int8_peak),
        "read_gb_s": round(step_bytes * rates["decode_tok_s"] / batch / 1e9, 3),
        "runs": [{name: round(value, 3) for name, value in one.items()} for one in each],
    }


def _rates(batch: int, run: BatchTimes, prompt: int, gen: int) -> dict[str, float]:
    return {
        "prefill_tok_s": batch * prompt / run.prefill,
        "decode_tok_s": batch * gen / run.decode,
        "ttft_ms": 1000 * median(run.ttfts),
        "tpot_ms": 1000 * run.decode / gen,
        "between_share": 1 - run.forward / run.decode,  # of a decode step, outside of the backend's forward pass
        "sample_share": run.sample / run.decode,
    }


def share(rate: float, ceiling: float | None) -> float | None:
    """Of the ceiling; None where that was not measured."""
    return None if ceiling is None else round(rate / ceiling, 4)
