"""Passes over a machine of our making: what is measured again, what is believed, and what is said of the rest."""

from dataclasses import replace

import pytest

from pagoda.hardware.cpu_share import CpuShare
from pagoda.hardware.device import CacheLevel
from pagoda.hardware.matmul_bench import Product
from pagoda.hardware.passes import MOST_PASSES, Pass, best_of, doubts, measure_passes, thread_counts

QUIET = Pass(
    read_bandwidth={1: 20e9, 2: 36e9},
    peaks={"fp32": 222e9, "int8": 915e9},
    caches=(CacheLevel("L1", 65536, 360e9), CacheLevel("L2", 2 << 20, None)),
    products=(Product("Q4_0", 31e9, 560e9), Product("F32", 33e9, 200e9)),
    cpu_share=0.97,
)


def with_product(found: Pass, **changes: float) -> Pass:
    return replace(found, products=(replace(found.products[0], **changes), *found.products[1:]))


def measured(*passes: Pass) -> tuple[Pass, tuple[str, ...], int]:
    """What comes out, what is doubted, and how many passes it took; the last pass goes on for ever."""
    left = list(passes)
    said: list[str] = []
    found, words = measure_passes(lambda: left.pop(0) if len(left) > 1 else left[0], said.append)
    return found, words, len(said)


def test_two_passes_that_agree_are_enough() -> None:
    slower = with_product(QUIET, bytes_s=29e9)
    assert measured(slower, QUIET) == (QUIET, (), 2)


def test_a_product_faster_than_memory_is_measured_again() -> None:
    found, words, count = measured(with_product(QUIET, bytes_s=66_378e9), QUIET)
    assert (found, words, count) == (QUIET, (), 3)


def test_a_product_above_the_peak_is_measured_again() -> None:
    assert measured(with_product(QUIET, ops_s=2000e9), QUIET) == (QUIET, (), 3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bytes_s": 66_378.8e9}, "Q4_0 weights at 66,378.8 GB/s, which memory cannot give"),
        ({"ops_s": 2000e9}, "Q4_0 products of 2,000 Gop/s, which is above the arithmetic's peak"),
    ],
)
def test_what_stays_impossible_is_said(change: dict[str, float], sentence: str) -> None:
    _, words, count = measured(with_product(QUIET, **change))
    assert words == (sentence,)
    assert count == MOST_PASSES


def test_a_busy_pass_is_made_up_for() -> None:
    busy = replace(with_product(QUIET, bytes_s=8.9e9), cpu_share=0.6)
    assert measured(busy, QUIET) == (QUIET, (), 3)


def test_figures_that_never_agree_are_doubted() -> None:
    passes = [with_product(QUIET, bytes_s=rate) for rate in (5e9, 10e9, 15e9, 20e9)]
    found, words, count = measured(*passes)
    assert found.products[0].bytes_s == 20e9
    assert words == ("1 of the figures no two passes agree on (Q4_0 product for one token: 20.0 and 15.0 G/s)",)
    assert count == MOST_PASSES


def test_a_busy_machine_is_doubted_and_not_waited_for() -> None:
    assert measured(replace(QUIET, cpu_share=0.13))[1:] == (("other programs took 87% of the CPU time",), 2)
    assert measured(replace(QUIET, cpu_share=0.7))[1:] == (("other programs took 30% of the CPU time",), MOST_PASSES)


def test_floats_are_held_against_the_floats_peak() -> None:
    fast = replace(QUIET, products=(Product("F32", 33e9, 300e9),))
    assert list(doubts([fast, fast])) == ["F32 products of 300 Gop/s, which is above the arithmetic's peak"]
    assert not list(doubts([replace(fast, peaks={"fp32": 222e9, "bf16": 460e9, "int8": 915e9})] * 2))


def test_each_figures_best_counts() -> None:
    other = replace(QUIET, read_bandwidth={1: 21e9, 2: 30e9}, caches=(CacheLevel("L1", 65536, 370e9), QUIET.caches[1]))
    best = best_of([QUIET, other])
    assert best.read_bandwidth == {1: 21e9, 2: 36e9}
    assert [cache.bandwidth_bytes_s for cache in best.caches] == [370e9, None]


def test_thread_counts() -> None:
    assert thread_counts(1) == [1]
    assert thread_counts(6) == [1, 2, 4, 6]
    assert thread_counts(8) == [1, 2, 4, 8]


def test_cpu_share_counts_only_what_it_watched() -> None:
    wall, cpu = iter([0.0, 2.0, 10.0, 12.0]), iter([0.0, 3.0, 50.0, 53.0])
    meter = CpuShare(2, wall=lambda: next(wall), cpu=lambda: next(cpu))
    assert meter.share == 1
    for _ in range(2):
        with meter:
            pass
    assert meter.share == pytest.approx(6 / 4 / 2)
