"""Measures the engine's kernels on this machine, on a slice of a model.

Each probe is a real step of the native program, whose stages are timed one by one (`Program.take_profile`). Weights
come from memory as they do in the whole model, because the slice is larger than the caches; so do keys and values,
because each probe takes the next region of a pool that is larger than they are. What else makes reading them slow in
earnest is there, too. Every block of the pool was written: of memory that never was, the OS shows one page of zeros
again and again, and that page lies in a cache. And a sequence's blocks lie as far apart as in the whole model, where a
block holds the keys and values of all layers (`scattered`).
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean, median
from typing import TypeVar

import numpy as np

from pagoda.backends.base import LoadedModel, run_batch
from pagoda.backends.compile import StageKind
from pagoda.backends.cpu import CpuBackend, CpuModel
from pagoda.backends.specs import KVType
from pagoda.hardware.caches import read_caches
from pagoda.hardware.cpu_share import QUIET_SHARE, CpuShare
from pagoda.hardware.passes import STREAM_ROOM
from pagoda.models.layers import Decoder
from pagoda.plan.measured.engine_probe import engine_step_s
from pagoda.plan.measured.rates import Rates
from pagoda.plan.measured.setup import Setup
from pagoda.plan.measured.slices import attention_only, cut
from pagoda.types import BLOCK_SIZE, Batch, Int32Array

SLICE_BYTES = 192 << 20  # of weights: so many times what caches hold that hardly any is found there again
POOL_BYTES = 192 << 20  # of keys and values
TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512)
ROWS = (1, 2, 4, 8, 16)
BATCHES = (1, 2, 4, 8, 16)
CONTEXTS = (16, 128, 512, 1024, 2048, 4096)
CHUNKS = ((128, 128), (512, 512), (512, 1024), (512, 2048), (512, 4096))  # (queries, context)
SHORT_S = 0.06  # in a sweep, a probe is repeated until it has taken so long
SWEEPS = 3  # that say together whether the machine was quiet
ATTENTION_STAGES = (StageKind.ATTEND, StageKind.ROPE_AND_STORE_KV)  # their time is that of cold KV blocks

T = TypeVar("T")
StageTime = tuple[str, float]
Key = tuple[int, int, int, int]  # batch, queries, context, rows


def around_quartile(times: Sequence[T], key: Callable[[T], float]) -> Sequence[T]:
    """The items between the first and the third eighth of the order by `key`; of very few the least. Other programs
    only ever add time."""
    return sorted(times, key=key)[len(times) // 8 : len(times) * 3 // 8 + 1]


def lower_quartile(times: Sequence[float]) -> float:
    """Mean of the times around the lower quartile."""
    return mean(around_quartile(times, lambda seconds: seconds))


def scattered(num_blocks: int, stride: int) -> Int32Array:
    """All blocks of a pool in an order in which neighbours are `stride` apart."""
    return np.concatenate([np.arange(first, num_blocks, stride, dtype=np.int32) for first in range(stride)])


class Prober:
    """Sweeps over all sizes, as often as is wanted; rates are those of steps around the lower quartile of all sweeps.

    A shared machine's speed drifts from second to second, so a size measured in several sweeps, seconds apart, says
    more than one measured as often at once; and what neighbours do only ever adds time.
    """

    def __init__(self, model: Decoder, counts: Mapping[str, int], setup: Setup) -> None:
        self._counts = counts
        self._backend = setup.backend()
        self._slice = cut(model, SLICE_BYTES)
        self._vocab_size = model.vocab_size
        contexts = [context for context in CONTEXTS if context <= model.max_context]
        self._contexts = contexts or [model.max_context]
        self._chunks = [(q, c) for q, c in CHUNKS if c <= model.max_context] or [(self._contexts[-1],) * 2]
        self._linear = Probe(self._backend, self._slice.decoder, setup.kv_type, max(TOKENS))
        most = max(BATCHES) * self._contexts[-1]
        self._attention = Probe(self._backend, attention_only(model), setup.kv_type, most, stride=model.num_layers)
        self._engine: dict[int, list[float]] = {}
        self._shares: list[float] = []  # of the CPU time that each sweep could have got
        self._threads = setup.threads
        self._cache_bytes = max((cache.bytes for cache in read_caches()), default=0)

    @property
    def cpu_share(self) -> float:
        """Share of the available CPU time that the last sweeps' threads got."""
        return median(self._shares[-SWEEPS:])

    @property
    def is_quiet(self) -> bool:
        """Whether the last sweeps had the machine to themselves."""
        return self.cpu_share >= QUIET_SHARE

    def doubts(self, bandwidth: float) -> tuple[str, ...]:
        """Why the rates should not be believed, a sentence each. `bandwidth`: bytes/s that memory gives at most."""
        found = []
        if not self.is_quiet:
            found.append(f"other programs took {1 - self.cpu_share:.0%} of the CPU time")
        num_bytes, seconds = self._linear.streamed((1, 1, 1, _rows(1)))
        if num_bytes > 2 * self._cache_bytes and num_bytes / seconds > STREAM_ROOM * bandwidth:
            found.append(f"weights at {num_bytes / seconds / 1e9:,.1f} GB/s, which memory cannot give")
        return tuple(found)

    def sweep(self) -> None:
        with CpuShare(self._threads) as meter:
            self._sweep()
        self._shares.append(meter.share)

    def _sweep(self) -> None:
        for tokens in TOKENS:
            self._linear.run((1, tokens, tokens, _rows(tokens)))
        for batch in BATCHES:
            for context in self._contexts:
                self._attention.run((batch, 1, context, 1))
        for queries, context in self._chunks:
            self._attention.run((1, queries, context, 1))
        for batch in (1, max(BATCHES)):
            self._engine.setdefault(batch, []).append(engine_step_s(self._vocab_size, batch))

    def rates(self) -> Rates:
        layers, head = self._linear_curves()
        pair_s, query_s = _fit([(q * (2 * c - q + 1) / 2, q, self._attend(1, q, c)) for q, c in self._chunks])
        one, many = (lower_quartile(times) for times in self._engine.values())
        row_s = max(0.0, (many - one) / (max(BATCHES) - 1))
        return Rates(
            layers=layers,
            counts=self._counts,
            head=head,
            decode_attention={b: [(float(c), self._attend(b, 1, c)) for c in self._contexts] for b in BATCHES},
            prefill_pair_s=pair_s,
            prefill_query_s=query_s,
            engine_step_s=max(0.0, one - row_s),
            engine_row_s=row_s,
            source=f"kernels measured here on a slice of the model: {self._backend.threads} threads, "
            f"{self._backend.isa}, int{self._backend.runtime.activation_bits} activations",
            date=datetime.date.today().isoformat(),
        )

    def close(self) -> None:
        self._linear.model.close()
        self._attention.model.close()

    def _linear_curves(self) -> tuple[dict[str, list[tuple[float, float]]], list[tuple[float, float]]]:
        curves: dict[str, list[tuple[float, float]]] = {name: [] for name in self._counts}
        head: list[tuple[float, float]] = []
        for tokens in TOKENS:
            embed, *body, norm, last = self._linear.stages((1, tokens, tokens, _rows(tokens)))
            if tokens in ROWS:
                head.append((float(tokens), embed[1] + norm[1] + last[1]))
            for name, seconds in _by_signature(body, self._slice.signatures).items():
                curves[name].append((float(tokens), seconds))
        return curves, head

    def _attend(self, batch: int, queries: int, context: int) -> float:
        stages = self._attention.stages((batch, queries, context, 1))
        return sum(seconds for kind, seconds in stages if kind in ATTENTION_STAGES)


class Probe:
    """A loaded slice and a pool of KV blocks that steps walk through; records the time of each stage."""

    def __init__(
        self, backend: CpuBackend, model: Decoder, kv_type: KVType, least_tokens: int, *, stride: int = 1
    ) -> None:
        self.model: CpuModel = backend.load(
            model, max_batch_tokens=max(TOKENS), max_batch_seqs=max(*ROWS, *BATCHES), kv_type=kv_type
        )
        block_bytes = self.model.block_bytes(0)
        self.num_blocks = max(POOL_BYTES // block_bytes, -(-least_tokens // BLOCK_SIZE) + 1)
        self.model.allocate_kv((self.num_blocks,))
        write_all_blocks(self.model, 0, self.num_blocks)
        self._order = scattered(self.num_blocks, stride)
        self.vocab_size = model.vocab_size
        self._next_block = 0
        self._rng = np.random.default_rng(0)
        self._kinds: dict[Key, list[str]] = {}
        self._runs: dict[Key, list[list[float]]] = {}
        self._bytes: dict[Key, float] = {}  # that such a step reads, weights for the most part
        self._step((1, 16, 16, 1))  # wakes threads and pages
        self.model.program.profiling = True

    def run(self, key: Key) -> None:
        """Run and time a step of this shape, several times if it is short."""
        end = time.perf_counter() + SHORT_S
        while True:
            profile = self._step(key)
            self._kinds[key] = [kind for kind, *_ in profile]
            self._bytes[key] = sum(num_bytes for _, _, _, num_bytes, _ in profile)
            self._runs.setdefault(key, []).append([seconds for _, _, seconds, _, _ in profile])
            if time.perf_counter() >= end:
                break

    def stages(self, key: Key) -> list[StageTime]:
        """Kind and seconds of each stage of such a step: means over the steps around the lower quartile of all.

        Not each stage's own quartile: what disturbs a step hits one stage here and another there, so that quartiles
        of stages add up to less than any step ever took.
        """
        around = around_quartile(self._runs[key], sum)
        return [(kind, mean(run[i] for run in around)) for i, kind in enumerate(self._kinds[key])]

    def streamed(self, key: Key) -> tuple[float, float]:
        """Bytes that a step of this shape reads, and the seconds it takes."""
        return self._bytes[key], sum(seconds for _, seconds in self.stages(key))

    def _step(self, key: Key) -> list[tuple[str, str, float, float, float]]:
        run_batch(self.model, self._batch(*key))
        return self.model.program.take_profile()

    def _batch(self, batch: int, queries: int, context: int, rows: int) -> Batch:
        num_tokens = batch * queries
        return Batch(
            tokens=self._rng.integers(0, self.vocab_size, num_tokens).astype(np.int32),
            positions=np.tile(np.arange(context - queries, context, dtype=np.int32), batch),
            seq_starts=np.arange(batch + 1, dtype=np.int32) * queries,
            context_lens=np.full(batch, context, np.int32),
            block_tables=(self._tables(batch, context),),
            logit_rows=np.arange(num_tokens - rows, num_tokens, dtype=np.int32),
        )

    def _tables(self, batch: int, context: int) -> Int32Array:
        """Block tables [batch, blocks] of the next blocks of the pool."""
        each = -(-context // BLOCK_SIZE)
        places = (self._next_block + np.arange(batch * each)) % self.num_blocks
        self._next_block = int(places[-1] + 1) % self.num_blocks
        table: Int32Array = self._order[places].reshape(batch, each)
        return table


def write_all_blocks(model: LoadedModel, group: int, num_blocks: int) -> None:
    """Give each KV block of a pool memory of its own, by copying the first one over the others."""
    others = np.arange(1, num_blocks, dtype=np.int32)
    model.copy_blocks(group, np.stack([np.zeros_like(others), others], axis=1))


def _rows(tokens: int) -> int:
    return tokens if tokens in ROWS else 1


def _by_signature(body: Sequence[StageTime], signatures: Sequence[str]) -> dict[str, float]:
    """Mean seconds of a layer of each signature, without attention's stages. Layers must have equally many stages."""
    each, rest = divmod(len(body), len(signatures))
    assert rest == 0, f"{len(body)} stages in {len(signatures)} layers"
    times: dict[str, list[float]] = {}
    for i, name in enumerate(signatures):
        stages = body[i * each : (i + 1) * each]
        times.setdefault(name, []).append(sum(seconds for stage, seconds in stages if stage not in ATTENTION_STAGES))
    return {name: sum(values) / len(values) for name, values in times.items()}


def _fit(points: Iterable[tuple[float, float, float]]) -> tuple[float, float]:
    """Seconds per (query, key) pair and per query, a least-squares fit of relative errors; neither is negative."""
    table = np.array(list(points))
    features = table[:, :2] / table[:, 2:]
    (pair_s, query_s), *_ = np.linalg.lstsq(features, np.ones(len(table)), rcond=None)
    if pair_s < 0 or query_s < 0 or len(table) < 2:
        return float(np.mean(table[:, 2] / table[:, 0])), 0.0
    return float(pair_s), float(query_s)
