"""Scoring a model on a text, by llama-perplexity's method, and against what another model says of it.

The text's tokens are cut into windows that do not overlap; where the tokenizer puts a BOS before texts, it takes the
place of each window's first token. In each window the tokens after the first half are predicted from all before them.
Perplexity is exp of their mean negative log-likelihood, and divergence is KL(original || candidate) at each of them.

An original's predictions are kept as 16-bit floats and normalized again: a likely token's probability moves by less
than a thousandth, and divergence, which errs by the square of that, is right to 1e-6.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pagoda.backends.base import run_batch
from pagoda.config import EngineSettings
from pagoda.engine.load import LoadedEngine, load_engine
from pagoda.types import BLOCK_SIZE, Batch, FloatArray, Int32Array

Doubles = npt.NDArray[np.float64]

ROWS_AT_ONCE = 32  # of logits, so that what is computed of them stays small
KV_BYTES = 512 * 2**20
ADAPTER = "scored"  # what the adapter is called
DECODE_PROMPT, DECODE_STEPS = 64, 24  # of the measurement of speed


@contextmanager
def scoring(model: str, context: int, threads: int = 0, adapter: Path | None = None) -> Iterator[LoadedEngine]:
    """The model in an engine that gives logits for half of a window at once; with the adapter, if there is one."""
    engine = load_engine(
        EngineSettings(
            model=model,
            threads=threads,
            max_batch_tokens=context,
            max_num_seqs=context,
            kv_memory_bytes=KV_BYTES,
            prefix_caching=False,
            lora=() if adapter is None else (f"{ADAPTER}={adapter}",),
        )
    )
    try:
        yield engine
    finally:
        engine.close()


def windows_of(engine: LoadedEngine, text: str, context: int) -> list[Int32Array]:
    """The text's whole windows of `context` tokens."""
    ids = engine.tokenizer.encode(text)
    count = len(ids) // context
    cut = np.array(ids[: count * context], dtype=np.int32).reshape(count, context)
    if engine.tokenizer.bos_id is not None and engine.tokenizer.encode(""):
        cut[:, 0] = engine.tokenizer.bos_id
    return list(cut)


def predictions(engine: LoadedEngine, window: Int32Array) -> FloatArray:
    """Logits [R, V] for the tokens after the first half of the window; valid until the next call."""
    rows = np.arange(len(window) // 2, len(window) - 1, dtype=np.int32)
    return run_batch(engine.model, _batch(engine, window, 0, rows))


def targets_of(window: Int32Array) -> Int32Array:
    """The tokens that the rows of `predictions` predict. [R]"""
    return window[len(window) // 2 + 1 :]


def _batch(engine: LoadedEngine, tokens: Int32Array, first: int, rows: Int32Array) -> Batch:
    """One sequence in the first blocks of every KV group, its tokens at positions from `first` on."""
    end = first + len(tokens)
    table = np.arange(-(-end // BLOCK_SIZE), dtype=np.int32)[None]
    has_adapter = ADAPTER in engine.adapters.names
    return Batch(
        tokens=tokens,
        positions=np.arange(first, end, dtype=np.int32),
        seq_starts=np.array([0, len(tokens)], dtype=np.int32),
        context_lens=np.array([end], dtype=np.int32),
        block_tables=(table,) * len(engine.kv_plan.num_blocks),
        logit_rows=rows,
        adapters=(engine.adapters.find(ADAPTER).placed,) if has_adapter else (),
        adapter_of=np.zeros(1, np.int32) if has_adapter else None,
        state_starts=np.array([0 if first else -1], np.int32),
        state_saves=np.append(np.full(len(tokens) - 1, -1, np.int32), np.int32(0)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class KeptPredictions:
    """An original's predictions of one window: log probabilities up to `log_totals`, its likeliest tokens."""

    logits: npt.NDArray[np.float16]  # [R, V], the largest of a row 0
    log_totals: Doubles  # [R]
    likeliest: npt.NDArray[np.int64]  # [R]

    @classmethod
    def of(cls, logits: FloatArray) -> KeptPredictions:
        best = logits.max(axis=-1, keepdims=True)
        kept = np.empty(logits.shape, np.float16)
        totals = np.empty(len(logits))
        for rows in _slices(len(logits)):
            kept[rows] = np.maximum(logits[rows] - best[rows], -60000)
            totals[rows] = np.log(np.exp(kept[rows].astype(np.float32)).sum(axis=-1, dtype=np.float64))
        return cls(kept, totals, logits.argmax(axis=-1))

    def divergence(self, logits: FloatArray) -> Doubles:
        """KL(self || softmax(logits)) at each row, over the tokens that both know. [R]"""
        size = min(self.logits.shape[1], logits.shape[1])
        out = np.empty(len(logits))
        for rows in _slices(len(logits)):
            ours = self.logits[rows, :size].astype(np.float32) - self.log_totals[rows, None].astype(np.float32)
            theirs = logits[rows, :size] - log_total(logits[rows, :size])[:, None].astype(np.float32)
            out[rows] = (np.exp(ours) * (ours - theirs)).sum(axis=-1, dtype=np.float64)
        return np.maximum(out, 0)


def log_total(logits: FloatArray) -> Doubles:
    """log Σ exp of each row of logits [R, V]. → [R]"""
    best = logits.max(axis=-1)
    return np.asarray(np.log(np.exp(logits - best[:, None]).sum(axis=-1, dtype=np.float64)) + best)


def negative_log_likelihood(logits: FloatArray, targets: Int32Array) -> Doubles:
    """−log softmax(logits [R, V]) at targets [R]."""
    out = np.empty(len(logits))
    for rows in _slices(len(logits)):
        chosen = logits[rows][np.arange(len(targets[rows])), targets[rows]]
        out[rows] = log_total(logits[rows]) - chosen
    return out


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, count, ROWS_AT_ONCE))


@dataclass(slots=True)
class ScoreTally:
    """Scores of one model, an array for each window."""

    nll: list[Doubles] = field(default_factory=list)
    divergence: list[Doubles] = field(default_factory=list)
    agreed: list[npt.NDArray[np.bool_]] = field(default_factory=list)

    def add(self, window: Int32Array, logits: FloatArray, kept: KeptPredictions | None) -> None:
        """`kept` is the original's; None: this is the original."""
        self.nll.append(negative_log_likelihood(logits, targets_of(window)))
        if kept is not None:
            self.divergence.append(kept.divergence(logits))
            self.agreed.append(logits.argmax(axis=-1) == kept.likeliest)


def speeds(engine: LoadedEngine, window: Int32Array) -> tuple[float, float]:
    """→ tokens a second of one prompt as long as the window, and of one stream that is generated; here and now."""
    last = np.array([len(window) - 1], dtype=np.int32)
    prefill = [_timed(engine, _batch(engine, window, 0, last)) for _ in range(2)]
    prompt = window[: min(DECODE_PROMPT, len(window) // 2)]
    run_batch(engine.model, _batch(engine, prompt, 0, np.array([len(prompt) - 1], dtype=np.int32)))
    only = np.zeros(1, np.int32)
    steps = range(len(prompt), min(len(prompt) + DECODE_STEPS, len(window)))
    decode = [_timed(engine, _batch(engine, window[i : i + 1], i, only)) for i in steps]
    return len(window) / min(prefill), 1 / statistics.median(decode)


def _timed(engine: LoadedEngine, batch: Batch) -> float:
    start = time.perf_counter()
    run_batch(engine.model, batch)
    return time.perf_counter() - start
