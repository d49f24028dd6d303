"""Measures every ceiling of this machine several times, seconds apart, until two passes agree.

A pass that other programs disturbed finds less than the machine can do, so of each figure the most counts. What no two
passes agree on, and what cannot be (weights that stream from memory faster than memory reads), is said in `doubts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pagoda._native as native
from pagoda.hardware.cpu_share import QUIET_SHARE, CpuShare
from pagoda.hardware.device import CacheLevel
from pagoda.hardware.matmul_bench import Product, measure_products

PASSES, MOST_PASSES = 2, 4
HOPELESS_SHARE = 0.5  # with less of the CPU time than that, further passes would only take longer
AGREE = 0.8  # the second most of a figure is at least so much of the most
LEAST_BYTES, MOST_SHARE = 256 << 20, 8  # bandwidth is read from so much memory, but an eighth of what is free at most
PEAKS = ("fp32", "bf16", "int8")
FLOAT_TYPES = ("F32", "F16", "BF16")
STREAM_ROOM = 1.5  # over the bandwidth: a part of the weights may still lie in a cache that holds half of them
PEAK_ROOM = 1.1

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Pass:
    """One measurement of every figure, in bytes/s and operations/s; `read_bandwidth` is by number of threads."""

    read_bandwidth: Mapping[int, float]
    peaks: Mapping[str, float]
    caches: tuple[CacheLevel, ...]
    products: tuple[Product, ...]
    cpu_share: float  # of the CPU time that the products could have got

    def figures(self) -> dict[str, float]:
        """The rates by name, to compare passes."""
        return {
            **{f"bandwidth with {threads} threads": rate for threads, rate in self.read_bandwidth.items()},
            **{f"{kind} peak": rate for kind, rate in self.peaks.items()},
            **{f"{cache.level} bandwidth": cache.bandwidth_bytes_s for cache in self.caches if cache.bandwidth_bytes_s},
            **{f"{one.type} product for one token": one.bytes_s for one in self.products},
            **{f"{one.type} product for a prompt": one.ops_s for one in self.products},
        }


def measure_passes(measure: Callable[[], Pass], say: Say) -> tuple[Pass, tuple[str, ...]]:
    """The best of PASSES passes, or of up to MOST_PASSES until nothing is doubted; and what is doubted in the end."""
    passes: list[Pass] = []
    for number in range(1, MOST_PASSES + 1):
        say(f"pass {number}" if number <= PASSES else f"pass {number}, because the machine seems busy")
        passes.append(measure())
        if number >= PASSES and (not any(doubts(passes)) or best_of(passes).cpu_share < HOPELESS_SHARE):
            break
    return best_of(passes), tuple(doubts(passes))


def measure_once(threads: int, cpus: float, caches: tuple[CacheLevel, ...], available: int | None) -> Pass:
    """Measure every figure once. `cpus`: how many the threads may keep busy; `available`: free bytes of memory, if
    known."""
    last = max((cache.bytes for cache in caches), default=0)
    num_bytes = _stream_bytes(last, available)
    meter = CpuShare(cpus)
    peaks = {kind: native.measure_peak(kind, threads) for kind in PEAKS}
    return Pass(
        read_bandwidth={count: native.measure_read_bandwidth(count, num_bytes) for count in thread_counts(threads)},
        peaks={kind: rate for kind, rate in peaks.items() if rate is not None},
        caches=tuple(_with_bandwidth(cache, caches, threads) for cache in caches),
        products=measure_products(threads, last, meter),
        cpu_share=round(meter.share, 3),
    )


def thread_counts(threads: int) -> list[int]:
    """1, 2, 4, … and `threads` itself."""
    return sorted({1 << i for i in range(threads.bit_length()) if 1 << i < threads} | {threads})


def best_of(passes: Sequence[Pass]) -> Pass:
    """The largest value of each figure; of products, the largest that is possible."""
    first = passes[0]
    found = Pass(
        read_bandwidth={count: max(one.read_bandwidth[count] for one in passes) for count in first.read_bandwidth},
        peaks={kind: max(one.peaks[kind] for one in passes) for kind in first.peaks},
        caches=tuple(max(same, key=_bandwidth) for same in zip(*(one.caches for one in passes), strict=True)),
        products=(),
        cpu_share=max(one.cpu_share for one in passes),
    )
    return replace(
        found, products=tuple(_best(same, found) for same in zip(*(one.products for one in passes), strict=True))
    )


def doubts(passes: Sequence[Pass]) -> Iterator[str]:
    """Why the best of at least two passes should not be believed, a sentence each."""
    share = sorted(one.cpu_share for one in passes)[-PASSES:][0]
    if share < QUIET_SHARE:
        yield f"other programs took {1 - share:.0%} of the CPU time"
    best = best_of(passes)
    differing = []
    for name, most in best.figures().items():
        *_, second, _ = (0.0, *sorted(rate for one in passes if (rate := one.figures()[name]) <= most))
        if second < AGREE * most:
            differing.append(f"{name}: {most / 1e9:,.1f} and {second / 1e9:,.1f} G/s")
    if differing:
        yield f"{len(differing)} of the figures no two passes agree on ({differing[0]})"
    for one in best.products:
        stream, peak = _most_bytes(best), _most_operations(best, one.type)
        if one.bytes_s > stream:
            yield f"{one.type} weights at {one.bytes_s / 1e9:,.1f} GB/s, which memory cannot give"
        if one.ops_s > peak:
            yield f"{one.type} products of {one.ops_s / 1e9:,.0f} Gop/s, which is above the arithmetic's peak"


def _best(same: Sequence[Product], found: Pass) -> Product:
    bytes_s = _most_within(_most_bytes(found), [one.bytes_s for one in same])
    ops_s = _most_within(_most_operations(found, same[0].type), [one.ops_s for one in same])
    return Product(same[0].type, bytes_s, ops_s)


def _most_within(bound: float, values: Sequence[float]) -> float:
    """The largest up to the bound; the smallest where all are above it."""
    return max((value for value in values if value <= bound), default=min(values))


def _most_bytes(found: Pass) -> float:
    """Bytes/s of weights that could stream from memory at most."""
    return STREAM_ROOM * max(found.read_bandwidth.values())


def _most_operations(found: Pass, type: str) -> float:
    """Operations/s that a product with weights of this type could reach at most."""
    kinds = ("fp32", "bf16") if type in FLOAT_TYPES else ("int8",)
    return PEAK_ROOM * max((found.peaks[kind] for kind in kinds if kind in found.peaks), default=float("inf"))


def _bandwidth(cache: CacheLevel) -> float:
    return cache.bandwidth_bytes_s or 0.0


def _stream_bytes(last_cache: int, available: int | None) -> int:
    wanted = max(LEAST_BYTES, 4 * last_cache)
    return wanted if available is None else max(16 << 20, min(wanted, available // MOST_SHARE))


def _with_bandwidth(cache: CacheLevel, caches: tuple[CacheLevel, ...], threads: int) -> CacheLevel:
    """The cache with its bandwidth: each thread reads half of its share. Unchanged if the level below would hold
    that."""
    each = cache.bytes // threads // 2
    smaller = max((other.bytes // threads for other in caches if other.bytes < cache.bytes), default=0)
    if each < max(4096, smaller):
        return cache
    return replace(cache, bandwidth_bytes_s=native.measure_cache_bandwidth(threads, each))
