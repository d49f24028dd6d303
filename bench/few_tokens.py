"""What a step of a few tokens costs: as drafts of one sequence, and as sequences that decode side by side.

    python bench/few_tokens.py [MODEL] [--activation-type int8] [--context 256] [--rounds 12] [--profile 8] [--json]

Every row has logits of its own, as a draft that is checked has. Each time is the least of its rounds, which go through
all sizes in turn: what else runs on the machine makes a step longer, never shorter. With one thread it is the thread's
CPU time. Beside it stands the least that the machine allows: the bytes of all weights and the KV over its bandwidth,
and operations over its integer peak.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np

from pagoda.backends.base import run_batch
from pagoda.benchmark.engine import ModelWork, model_work
from pagoda.config import EngineSettings
from pagoda.engine.load import LoadedEngine, load_engine
from pagoda.hardware.host import int8_peak, read_bandwidth
from pagoda.types import BLOCK_SIZE, Batch

SIZES = (1, 2, 3, 4, 5, 6, 8, 12, 16)


class Steps:
    """Steps of a loaded model that nobody else uses, at a context of so many tokens."""

    def __init__(self, loaded: LoadedEngine, context: int) -> None:
        self.model = loaded.model
        self._context = context
        self._clock = time.thread_time if loaded.settings.threads == 1 else time.perf_counter
        self._vocab = loaded.core.vocab_size
        self._groups = len(loaded.kv_plan.footprint.windows)
        self._blocks = -(-(context + max(SIZES)) // BLOCK_SIZE)
        for seq in range(max(SIZES)):  # keys and values of all sequences are written once, not left as zeros
            self._run(self._batch([seq], context, 0))

    def _batch(self, sequences: list[int], tokens: int, first: int) -> Batch:
        """`tokens` tokens of each sequence, from position `first` on, each with logits."""
        count = len(sequences) * tokens
        tables = np.array([np.arange(self._blocks) + seq * self._blocks for seq in sequences], np.int32)
        return Batch(
            tokens=(np.arange(count, dtype=np.int32) * 7919 + 1000) % self._vocab,
            positions=np.tile(np.arange(first, first + tokens, dtype=np.int32), len(sequences)),
            seq_starts=np.arange(len(sequences) + 1, dtype=np.int32) * tokens,
            context_lens=np.full(len(sequences), first + tokens, np.int32),
            block_tables=(tables,) * self._groups,
            logit_rows=np.arange(count if first else 0, dtype=np.int32),
        )

    def _run(self, batch: Batch) -> float:
        start = self._clock()
        run_batch(self.model, batch)
        return self._clock() - start

    def drafts(self, size: int) -> float:
        """Seconds of a step of `size` tokens of one sequence."""
        return self._run(self._batch([0], size, self._context))

    def sequences(self, size: int) -> float:
        """Seconds of a step of a token each of `size` sequences."""
        return self._run(self._batch(list(range(size)), 1, self._context))

    def profile(self, size: int, rounds: int) -> dict[str, float]:
        """Seconds of each op in a step of `size` tokens of one sequence."""
        program = self.model.program  # type: ignore[attr-defined]
        program.profiling = True
        best: dict[str, float] = {}
        for _ in range(rounds):
            program.take_profile()
            self.drafts(size)
            times: defaultdict[str, float] = defaultdict(float)
            for _, label, seconds, *_ in program.take_profile():
                times[label] += seconds
            best = {label: min(seconds, best.get(label, seconds)) for label, seconds in times.items()}
        program.profiling = False
        return best


def measure(steps: Steps, rounds: int) -> dict[str, dict[int, float]]:
    """Seconds by kind of step and size."""
    kinds = {"drafts": steps.drafts, "sequences": steps.sequences}
    best: dict[str, dict[int, float]] = {kind: dict.fromkeys(SIZES, float("inf")) for kind in kinds}
    for _ in range(rounds):
        for size in SIZES:
            for kind, run in kinds.items():
                best[kind][size] = min(best[kind][size], run(size), run(size))
    return best


def floor(work: ModelWork, size: int, context: int, bandwidth: float, peak: float) -> tuple[float, float]:
    """The least seconds that a step of `size` tokens of one sequence can take: for its bytes, for its operations."""
    operations = 2 * size * (work.layer_weights + work.head_weights)
    return (work.weight_bytes + work.kv_bytes(context)) / bandwidth, operations / peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--activation-type", default="int16", choices=("int16", "int8"))
    parser.add_argument("--isa", help="an instruction set, such as avx2")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--profile", type=int, nargs="*", default=[], help="sizes to take apart, op by op")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    settings = replace(
        EngineSettings(),
        model=options.model,
        activation_type=options.activation_type,
        isa=options.isa,
        threads=options.threads,
        speculation=("off",),
        max_num_seqs=max(SIZES),
        max_context=options.context + max(SIZES) + BLOCK_SIZE,
        max_batch_tokens=max(512, options.context),
    )
    loaded = load_engine(settings)
    try:
        report = _report(loaded, options)
    finally:
        loaded.close()
    json.dump(report, sys.stdout, indent=2) if options.json else _print(report, options)


def _report(loaded: LoadedEngine, options: argparse.Namespace) -> dict[str, Any]:
    steps = Steps(loaded, options.context)
    times = measure(steps, options.rounds)
    bandwidth, peak = read_bandwidth(options.threads), int8_peak(options.threads)
    footprint = loaded.kv_plan.footprint
    work = model_work(loaded.checkpoint.tensors.values(), footprint.windows, footprint.block_bytes)
    return {
        "model": loaded.model_name,
        "activations": options.activation_type,
        "bandwidth": bandwidth,
        "int8_peak": peak,
        "ms": {kind: {size: 1000 * s for size, s in by_size.items()} for kind, by_size in times.items()},
        "floor_ms": {
            size: [1000 * s for s in floor(work, size, options.context, bandwidth or 1e12, peak or 1e15)]
            for size in SIZES
        },
        "profile_ms": {
            size: {label: 1000 * s for label, s in steps.profile(size, options.rounds).items()}
            for size in options.profile
        },
    }


def _print(report: dict[str, Any], options: argparse.Namespace) -> None:
    print(f"{report['model']}, {report['activations']} activations, context {options.context}; milliseconds")
    print(f"{'tokens':>7} {'drafts':>8} {'×':>5} {'sequences':>10} {'×':>5} {'bytes':>7} {'operations':>10}")
    drafts, sequences = report["ms"]["drafts"], report["ms"]["sequences"]
    for size in SIZES:
        num_bytes, operations = report["floor_ms"][size]
        print(
            f"{size:>7} {drafts[size]:>8.2f} {drafts[size] / drafts[1]:>5.2f} {sequences[size]:>10.2f} "
            f"{sequences[size] / sequences[1]:>5.2f} {num_bytes:>7.2f} {operations:>10.2f}"
        )
    for size, ops in report["profile_ms"].items():
        print(f"\na step of {size} tokens, {sum(ops.values()):.2f} ms in its ops")
        for label, ms in sorted(ops.items(), key=lambda item: -item[1]):
            print(f"{ms:>9.3f}  {label}")


if __name__ == "__main__":
    main()
