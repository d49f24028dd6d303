"""The engine's own time around a forward pass: its steps with a model that computes nothing.

The model reads as much memory as caches hold, outside of the measured time, as a real forward pass does: the engine's
code and data are then not in the caches, which takes several times as long as in a tight loop.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from statistics import median

import numpy as np

from pagoda.backends.base import PlacedAdapter
from pagoda.backends.specs import AdapterWeights, LoraType
from pagoda.engine.engine import Engine
from pagoda.engine.limits import EngineLimits
from pagoda.sampling.sampler import Sampler
from pagoda.types import BLOCK_SIZE, Batch, FloatArray, Int32Array, Request, SamplingParams


class _NoModel:
    """A `LoadedModel` that computes nothing, so that a step takes the engine's own time only."""

    weight_bytes = buffer_bytes = graph_bytes = 0
    asynchronous = False
    ranker = None
    state_bytes = 0

    def __init__(self, vocab_size: int, rows: int) -> None:
        self._made: FloatArray = np.random.default_rng(0).standard_normal((rows, vocab_size), np.float32)
        self._logits = np.empty_like(self._made)
        self._memory = np.ones(SWEPT_BYTES // 8)
        self.seconds = 0.0  # that the last forward pass took

    def block_bytes(self, group: int) -> int:
        return BLOCK_SIZE

    def place_adapter(self, weights: AdapterWeights, *, type: LoraType) -> PlacedAdapter:
        raise AssertionError("nothing here has an adapter")

    def allocate_kv(self, num_blocks: tuple[int, ...], num_states: int = 0) -> None: ...

    def stage(self, batch: Batch) -> None: ...

    def launch(self, tokens: Int32Array) -> None:
        start = time.perf_counter()
        self._memory.sum()
        self._logits[:] = self._made  # in caches, as after the last product
        self.seconds = time.perf_counter() - start

    def wait(self, rows: Int32Array | None = None) -> FloatArray:
        return self._logits if rows is None else self._logits[rows]

    def hidden_states(self) -> FloatArray:
        return self._logits[:0]

    def copy_blocks(self, group: int, pairs: Int32Array) -> None: ...

    def close(self) -> None: ...


class NoText:
    """A tokenizer stand-in: every token is the letter a, no token ends a sequence."""

    eos_ids: tuple[int, ...] = ()
    vocab_size = 0

    def token_bytes(self, token_id: int) -> bytes:
        return b"a"

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return []

    def stream(
        self, *, skip_special: bool = True, prompt_ids: Sequence[int] = (), shown_ids: Collection[int] = ()
    ) -> NoText:
        return self

    def push(self, token_id: int) -> str:
        return "a"

    def flush(self) -> str:
        return ""


ENGINE_STEPS = 50
SWEPT_BYTES = 48 << 20


def engine_step_s(vocab_size: int, batch: int) -> float:
    """Seconds of scheduling, sampling and bookkeeping around a decode step of `batch` sequences."""
    model = _NoModel(vocab_size, batch)
    limits = EngineLimits(
        max_context=ENGINE_STEPS + 2 * BLOCK_SIZE,
        windows=(None,),
        num_blocks=(batch * (ENGINE_STEPS + 3 * BLOCK_SIZE) // BLOCK_SIZE + batch,),
        max_num_seqs=batch,
    )
    engine = Engine(model, NoText(), Sampler(vocab_size), limits, vocab_size=vocab_size)
    params = SamplingParams(max_tokens=ENGINE_STEPS + BLOCK_SIZE, temperature=0.0, ignore_eos=True)
    for i in range(batch):
        engine.add(Request(str(i), (1, 2, 3), params, time.monotonic()))
    times = []
    for _ in range(ENGINE_STEPS):
        start = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start - model.seconds)
    return median(times)
