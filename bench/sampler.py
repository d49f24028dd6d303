"""Microseconds a row that sampling takes, beside plain numpy on the same logits in the same run.

    python bench/sampler.py [--runs 50]

Each figure is the median over the runs; native and numpy take turns. Logits look like a model's: a normal bulk with
twenty likely tokens above it. `ns/token` counts the vocabulary; reading it once at 20 GB/s would take 0.2.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from pagoda._native import sampler_isas
from pagoda.sampling.base import SamplingBatch, StateSpec
from pagoda.sampling.reference import ReferenceSampler
from pagoda.sampling.sampler import Sampler
from pagoda.types import FloatArray, SamplingParams

VOCABULARIES = (49152, 151936)  # SmolLM2, Qwen 2 and 3
NUM_ROWS = (1, 16)

KINDS = {
    "greedy": SamplingParams(temperature=0),
    "temperature": SamplingParams(),
    "top_p 0.95": SamplingParams(top_p=0.95),
    "top_k 50, top_p 0.95": SamplingParams(top_k=50, top_p=0.95),
    "min_p 0.05": SamplingParams(min_p=0.05),
    "top_p 0.95, T 2": SamplingParams(top_p=0.95, temperature=2.0),  # the bulk counts: the hardest cut
    "penalty 1.1, top_p 0.95": SamplingParams(top_p=0.95, repetition_penalty=1.1),
    "greedy, 5 logprobs": SamplingParams(temperature=0, logprobs=5),
}


def model_like_logits(num_rows: int, vocab_size: int) -> FloatArray:
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2.5, size=(num_rows, vocab_size))
    for row in logits:
        row[rng.integers(vocab_size, size=20)] = rng.uniform(10, 17, size=20)
    return logits.astype(np.float32)


def stepper(sampler: Sampler | ReferenceSampler, params: SamplingParams, logits: FloatArray) -> Callable[[], object]:
    """One step of the batch; prompts of 200 tokens."""
    prompt = range(200)
    states = [sampler.open(StateSpec(params, prompt, 0, seed)) for seed in range(logits.shape[0])]
    batch = SamplingBatch(logits, states)
    return lambda: sampler.sample(batch)


def paired_medians(steps: list[Callable[[], object]], runs: int) -> list[float]:
    """Seconds of each, taken in turns."""
    times: list[list[float]] = [[] for _ in steps]
    for step in steps:
        step()
    for _ in range(runs):
        for each, step in zip(times, steps, strict=True):
            start = time.perf_counter()
            step()
            each.append(time.perf_counter() - start)
    return [statistics.median(each) for each in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    runs: int = parser.parse_args().runs
    isas = sampler_isas()
    columns = ["vocabulary", "rows", "sampling", *(f"{isa} us/row" for isa in isas), "ns/token", "numpy us/row"]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for vocab_size in VOCABULARIES:
        for num_rows in NUM_ROWS:
            logits = model_like_logits(num_rows, vocab_size)
            samplers: list[Sampler | ReferenceSampler] = [
                *(Sampler(vocab_size, isa=isa) for isa in isas),
                ReferenceSampler(),
            ]
            for name, params in KINDS.items():
                steps = [stepper(sampler, params, logits) for sampler in samplers]
                *native, plain = [1e6 * s / num_rows for s in paired_medians(steps, runs)]
                cells = [f"{us:.1f}" for us in native] + [f"{1e3 * native[-1] / vocab_size:.2f}", f"{plain:.0f}"]
                print(f"| {vocab_size} | {num_rows} | {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
