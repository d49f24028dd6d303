"""What a step costs with keys and values in one type or another: the models in one process, step by step in turn.

    python bench/kv_types.py [MODEL] [--kv-type f16 int16] [--activation-type int8] [--rounds 7]

Steps: prefills of whole prompts, and decoding of sequences side by side behind a context. Each time is the least of its
rounds; the last column is the median over rounds of the ratio of the first type's time to the last's. With one thread
it is the thread's CPU time.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np

from pagoda.backends.base import run_batch
from pagoda.backends.specs import KVType
from pagoda.config import EngineSettings
from pagoda.engine.load import LoadedEngine, load_engine
from pagoda.types import BLOCK_SIZE, Batch

STEPS = {  # sequences, tokens of each, context before them
    "prefill 512": (1, 512, 0),
    "prefill 2048": (1, 2048, 0),
    "decode 1 at 256": (1, 1, 256),
    "decode 1 at 2048": (1, 1, 2048),
    "decode 16 at 256": (16, 1, 256),
    "decode 16 at 1024": (16, 1, 1024),
}
MOST = 2048 + BLOCK_SIZE


def load(options: argparse.Namespace, kv_type: KVType) -> LoadedEngine:
    settings = replace(
        EngineSettings(),
        model=options.model,
        activation_type=options.activation_type,
        isa=options.isa,
        threads=options.threads,
        kv_type=kv_type,
        speculation=("off",),
        max_num_seqs=16,
        max_context=MOST,
        max_batch_tokens=512,
        prefix_caching=False,
    )
    return load_engine(settings)


def batches(loaded: LoadedEngine, sequences: int, tokens: int, context: int) -> list[Batch]:
    """The steps of at most 512 tokens in which `tokens` of each sequence are computed, the last with logits."""
    blocks = -(-MOST // BLOCK_SIZE)
    table = np.arange(sequences * blocks, dtype=np.int32).reshape(sequences, blocks)
    steps = []
    for begin in range(0, tokens, 512):
        each = min(512, tokens - begin)
        first = context + begin
        steps.append(
            Batch(
                tokens=(np.arange(sequences * each, dtype=np.int32) * 7919 + 1000) % loaded.core.vocab_size,
                positions=np.tile(np.arange(first, first + each, dtype=np.int32), sequences),
                seq_starts=np.arange(sequences + 1, dtype=np.int32) * each,
                context_lens=np.full(sequences, first + each, np.int32),
                block_tables=(table,) * len(loaded.kv_plan.footprint.windows),
                logit_rows=np.arange(1, sequences + 1, dtype=np.int32) * each - 1,
            )
        )
    return steps


def fill(loaded: LoadedEngine) -> None:
    """Keys and values of all sequences, copied from those of one prompt: pages that nobody wrote share their memory."""
    seconds(loaded, batches(loaded, 1, 512, 0))
    written, blocks = 512 // BLOCK_SIZE, 16 * -(-MOST // BLOCK_SIZE)
    pairs = np.array([(block % written, block) for block in range(written, blocks)], np.int32)
    for group in range(len(loaded.kv_plan.footprint.windows)):
        loaded.model.copy_blocks(group, pairs)


def seconds(loaded: LoadedEngine, steps: list[Batch]) -> float:
    clock = time.thread_time if loaded.settings.threads == 1 else time.perf_counter
    start = clock()
    for step in steps:
        run_batch(loaded.model, step)
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--kv-type", nargs="+", default=["f16", "int16"])
    parser.add_argument("--activation-type", default="int16", choices=("int16", "int8"))
    parser.add_argument("--isa")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=list(STEPS))
    options = parser.parse_args()
    engines = {kv_type: load(options, kv_type) for kv_type in options.kv_type}
    for loaded in engines.values():
        fill(loaded)
    print(f"{options.activation_type} activations; milliseconds" + "".join(f"{kv_type:>10}" for kv_type in engines))
    for name in options.steps:
        plans = {kv_type: batches(loaded, *STEPS[name]) for kv_type, loaded in engines.items()}
        times: dict[KVType, list[float]] = {kv_type: [] for kv_type in engines}
        for _ in range(options.rounds * (5 if STEPS[name][1] == 1 else 1)):
            for kv_type, loaded in engines.items():
                times[kv_type].append(seconds(loaded, plans[kv_type]))
        first, last = (np.array(times[kv_type]) for kv_type in (options.kv_type[0], options.kv_type[-1]))
        line = "".join(f"{1000 * min(each):>10.2f}" for each in times.values())
        print(f"{name:>30}{line} {np.median(first / last):>8.3f}", flush=True)
    for loaded in engines.values():
        loaded.close()


if __name__ == "__main__":
    main()
