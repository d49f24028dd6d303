"""Figures that anybody can check with a pencil come out of the planner."""

from dataclasses import replace

import pytest

from pagoda.hardware.devices import device
from pagoda.plan.cost.memory import kv_request_bytes, usual_lengths, waste
from pagoda.plan.cost.roofline import RooflineCosts
from pagoda.plan.cost.speed import RequestLoad, batch_of_compute, largest_concurrency, prefill_s, speed
from pagoda.plan.cost.work import Chunk, StepShape, Workload, decode_step, pairs, prefill_steps
from pagoda.plan.model.models import builtin_shape
from pagoda.plan.model.weights import format_names, weights_in

LLAMA = builtin_shape("llama-3-8b")
A100 = device("a100-80gb")
FP16 = weights_in(LLAMA, "fp16")
WORK = Workload(LLAMA, FP16, "f16")


def test_8b_in_fp16_is_16_gb() -> None:
    assert FP16.total == 2 * 8_030_261_248


@pytest.mark.parametrize(("format", "gigabytes"), [("fp32", 280), ("fp16", 140), ("int8", 70), ("int4", 35)])
def test_70b_in_four_formats(format: str, gigabytes: float) -> None:
    assert weights_in(builtin_shape("llama-3-70b"), format).total / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_ridge_of_the_a100() -> None:
    assert A100.flops["fp16"] / 2e12 == 156
    assert A100.flops["fp16"] / A100.bandwidth_bytes_s == pytest.approx(153, abs=0.5)


def test_decode_does_one_flop_a_byte_and_is_bound_by_memory() -> None:
    work = WORK.of(decode_step(1, 1))
    assert work.intensity == pytest.approx(1, abs=0.01)
    assert RooflineCosts(A100, WORK, FP16).step(decode_step(1, 512)).bound == "memory"


def test_prefill_of_1000_tokens_takes_about_50_ms() -> None:
    """2 × 8e9 × 1,000 / 312e12 = 51 ms; less, because the embedding is no product, nor the head but for one row."""
    assert 2 * LLAMA.parameters * 1000 / A100.flops["fp16"] == pytest.approx(0.051, abs=0.001)
    ceiling = RooflineCosts(A100, WORK, FP16, ideal=True)
    assert prefill_s(ceiling, 1000, 2048) == pytest.approx(0.05, rel=0.1)
    assert ceiling.step(prefill_steps(1000, 2048)[0]).bound == "compute"


def test_kv_of_a_token_is_128_kib() -> None:
    assert kv_request_bytes(LLAMA, "f16", 16, 512) == 16 * 128 * 1024
    assert kv_request_bytes(LLAMA, "f16", 17, 512) == 32 * 128 * 1024  # whole blocks


def test_a_window_keeps_no_more_than_it_sees() -> None:
    gemma = builtin_shape("gemma-3-27b")
    short, long = (kv_request_bytes(gemma, "f16", tokens, 512) for tokens in (16_384, 32_768))
    full, sliding = gemma.attention
    assert long - short == 16_384 * 2 * full.kv_elements
    assert sliding.window == 1024


# Sizes of files that llama.cpp's quantizer made of Llama 3 8B, in GB, as published beside them (to 10 MB).
PUBLISHED = {
    "q8_0": 8.54,
    "q6_k": 6.59,
    "q5_k_m": 5.73,
    "q4_k_m": 4.92,
    "q4_k_s": 4.69,
    "q3_k_m": 4.01,
    "q2_k": 3.17,
    "awq": 5.73,
}


@pytest.mark.parametrize("format", PUBLISHED)
def test_quantized_sizes_are_the_published_ones(format: str) -> None:
    assert weights_in(LLAMA, format).total / 1e9 == pytest.approx(PUBLISHED[format], rel=0.003)


@pytest.mark.parametrize("name", format_names())
def test_every_format_has_a_size(name: str) -> None:
    weights = weights_in(LLAMA, name)
    assert 1e9 < weights.total <= 4 * LLAMA.parameters
    assert set(weights.tensors) == {tensor.name for tensor in LLAMA.tensors}


def test_lora_of_rank_16() -> None:
    """Two thin matrices beside each adapted one: r × in + out × r."""

    def added(*roles: str) -> int:
        adapted = [t for t in LLAMA.layer_matrices if any(f".{role}." in t.name for role in roles)]
        return sum(16 * sum(t.shape) for t in adapted)

    assert added("attn_q", "attn_v") == 6_815_744
    assert added("attn_q", "attn_k", "attn_v") == 9_437_184


# Work


@pytest.mark.parametrize("window", [None, 1, 5, 40])
@pytest.mark.parametrize(("queries", "context"), [(1, 1), (1, 30), (7, 7), (7, 30), (30, 30)])
def test_pairs_are_what_counting_gives(queries: int, context: int, window: int | None) -> None:
    seen = [min(position + 1, window or context) for position in range(context - queries, context)]
    assert pairs(Chunk(1, queries, context), window) == sum(seen)


def test_chunks_cover_the_prompt_and_only_the_last_makes_logits() -> None:
    steps = prefill_steps(1100, 512)
    assert [(s.chunks[0].queries, s.chunks[0].context, s.rows) for s in steps] == [
        (512, 512, 0.0),
        (512, 1024, 0.0),
        (76, 1100, 1.0),
    ]


def test_experts_are_read_as_far_as_tokens_pick_them() -> None:
    mixtral = builtin_shape("mixtral-8x7b")
    weights = weights_in(mixtral, "fp16")
    work = Workload(mixtral, weights, "f16")
    one, many = (work.of(decode_step(batch, 1)) for batch in (1, 64))
    assert one.weight_bytes / 2 == pytest.approx(mixtral.active_parameters - 32_000 * 4096, rel=0.001)
    assert many.weight_bytes / 2 == pytest.approx(mixtral.parameters - 32_000 * 4096, rel=0.001)
    assert many.flops == pytest.approx(64 * one.flops)


# Speed


def test_more_users_are_slower_each_and_faster_together() -> None:
    costs = RooflineCosts(A100, WORK, FP16)
    speeds = [speed(costs, RequestLoad(512, 128, 2048), n) for n in (1, 4, 16, 64)]
    assert [s.tpot_s for s in speeds] == sorted(s.tpot_s for s in speeds)
    assert [s.ttft_s for s in speeds] == sorted(s.ttft_s for s in speeds)
    assert [s.output_tok_s for s in speeds] == sorted(s.output_tok_s for s in speeds)


def test_the_largest_concurrency_meets_the_bounds_and_the_next_does_not() -> None:
    costs, load = RooflineCosts(A100, WORK, FP16), RequestLoad(512, 128, 2048)
    most = largest_concurrency(costs, load, 500, 0.5, 0.03)
    assert 1 < most < 500
    assert speed(costs, load, most).tpot_s <= 0.03 < speed(costs, load, most + 1).tpot_s
    assert largest_concurrency(costs, load, 500, None, 1e-6) == 0


def test_the_batch_at_which_decode_turns_compute_bound() -> None:
    costs = RooflineCosts(A100, WORK, FP16)
    batch = batch_of_compute(costs, 64)
    assert batch is not None
    sides = [costs.step(decode_step(n, 64)).bound for n in (batch - 1, batch)]
    assert sides == ["memory", "compute"]
    assert batch_of_compute(costs, 8000) is None  # KV grows with every sequence


def test_tensor_parallelism_shares_bytes_and_pays_for_links() -> None:
    one, two = (RooflineCosts(A100, WORK, FP16, tp=tp).step(decode_step(8, 512)) for tp in (1, 2))
    assert two.memory_s == pytest.approx(one.memory_s / 2)
    size = 8 * LLAMA.hidden_size * 2  # of an all-reduce; half of it goes over the link, twice
    assert two.communication_s == pytest.approx(2 * 32 * (size / 3e11 + 10e-6))
    slow = replace(A100, interconnect_bytes_s=1e9)
    assert RooflineCosts(slow, WORK, FP16, tp=2).step(StepShape((Chunk(1, 2048, 2048),), 1)).communication_s > 0.5


def test_paging_wastes_hardly_anything_and_reservation_nearly_all() -> None:
    one = waste([(100, 100)], 2048, "")
    assert one.static_share == pytest.approx(1 - 150 / 2048, abs=0.001)
    found = waste(usual_lengths(512, 256, 2048), 2048, "")
    assert 0.5 < found.static_share < 0.8
    assert 0 < found.paged_share < 0.04
