"""Each situation gets its sentence, from figures alone, with the figures in it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pagoda.observe.explain import SITUATIONS, Facts, explain, more_streams_cost

# The default model on two Zen 4 cores: 76 MB a step at 36 GB/s, 0.2 G operations a token at 915 G/s.
DECODE = Facts(
    num_steps=3000, step_s=0.0026, busy_share=0.98, forward_share=0.95, batch=1.0, decode_tokens=3000,
    output_tokens=3000, num_running=1, tpot_s=0.0027, ttft_s=0.02, kv_share=0.01, bandwidth_share=0.83,
    arithmetic_share=0.09, weight_bytes=76e6, kv_bytes=0.9e6, token_operations=0.2e9, bandwidth=36e9, peak=915e9,
    num_threads=2, cpu_share=0.97, other_cpus=0.05, num_streams=1,
)  # fmt: skip

CASES = {
    "memory-bound decode": (DECODE, ["83 %", "batch 1", "7 more streams", "TPOT"]),
    "prefill burst": (
        replace(DECODE, prompt_tokens=9000, decode_tokens=1000, tpot_s=0.4, arithmetic_share=0.6, num_running=4),
        ["90 %", "10,000", "60 %", "400 ms", "--max-batch-tokens"],
    ),
    "KV exhausted": (
        replace(DECODE, kv_share=0.98, num_preempted=3, num_running=12, num_waiting=5, batch=12.0),
        ["98 %", "12 sequences", "3 sequences were preempted", "5 requests", "--kv-memory"],
    ),
    "queue bound": (
        replace(DECODE, num_running=64, num_waiting=30, queue_s=4.2, batch=64.0),
        ["64", "30 requests", "4.2 s", "--max-num-seqs"],
    ),
    "slow client": (replace(DECODE, slow_streams=2, num_streams=5), ["2 of 5", "2.7 ms"]),
    "thread stolen": (
        replace(DECODE, cpu_share=0.55, other_cpus=0.9, bandwidth_share=0.4),
        ["0.9 CPUs", "2 threads", "55 %", "--threads 1"],
    ),
    "grammar-bound": (replace(DECODE, mask_share=0.4, step_s=0.01), ["40 %", "10 ms", "masks"]),
    "small batch": (
        replace(DECODE, bandwidth_share=0.31, busy_share=0.4, batch=1.5),
        ["1.5 sequences", "31 %", "9 %", "60 %", "more streams"],
    ),
    "draft losing": (replace(DECODE, draft_tokens=3400, accepted_tokens=408), ["12 %", "3,400", "25 %"]),
    "cache away": (replace(DECODE, cache_error="redis: connection refused"), ["redis: connection refused", "3000"]),
    "bound by arithmetic": (
        replace(DECODE, batch=48.0, bandwidth_share=0.3, arithmetic_share=0.55, num_running=48), ["55 %", "batch 48"],
    ),
    "idle": (Facts(seconds=60), ["60 s"]),
    "at work": (replace(DECODE, bandwidth_share=None, arithmetic_share=None), ["300 tokens/s", "pagoda doctor"]),
}  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS)
def test_each_situation_gets_its_sentence(situation: str) -> None:
    facts, figures = CASES[situation]
    found = explain(facts)
    assert found.situation == situation, found.sentence
    for figure in figures:
        assert figure.replace(" %", "%") in found.sentence, found.sentence
    assert "\n" not in found.sentence


def test_one_thread_is_not_told_to_be_fewer() -> None:
    found = explain(replace(DECODE, num_threads=1, cpu_share=0.23, other_cpus=1.8, bandwidth_share=0.08))
    assert found.situation == "thread stolen"
    assert "one thread got 23% of the time it wanted; stop those programs" in found.sentence
    assert "--threads" not in found.sentence


def test_more_streams_cost_what_the_roofline_says() -> None:
    """One stream reads 76.9 MB, eight read 83.2 MB and compute 1.6 G operations: 2.31 ms against 2.14 ms."""
    assert more_streams_cost(DECODE, 7) == pytest.approx(83.2 / 76.9 - 1)
    assert more_streams_cost(DECODE, 31) == pytest.approx((32 * 0.2 / 915) / (76.9e6 / 36e9) - 1)
    assert more_streams_cost(replace(DECODE, bandwidth=None), 7) is None


@pytest.mark.parametrize(
    "facts",
    [
        replace(DECODE, cpu_share=0.5, other_cpus=0.0),  # nobody else: its own threads slept
        replace(DECODE, cpu_share=0.95, other_cpus=0.9),  # others have CPUs of their own
        replace(DECODE, draft_tokens=3400, accepted_tokens=2000),
        replace(DECODE, draft_tokens=10),
        replace(DECODE, kv_share=0.95),  # full, but nobody waits
        replace(DECODE, prompt_tokens=2000),
        replace(DECODE, mask_share=0.1),
    ],
)
def test_what_does_no_harm_is_not_blamed(facts: Facts) -> None:
    assert explain(facts).situation == "memory-bound decode"


def test_whatever_the_figures_are_there_is_a_sentence() -> None:
    for facts in (Facts(num_steps=1), Facts(num_waiting=1), Facts(num_running=1, num_steps=1, bandwidth_share=0.0)):
        assert explain(facts).sentence
