"""Steps in, Prometheus text out."""

from __future__ import annotations

import timeit

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from pagoda.observe.engine_series import token_bounds
from pagoda.observe.metrics import Metrics
from pagoda.observe.series import Histogram
from pagoda.types import FinishedRequest, SamplingParams, StepResult

# vLLM 0.11 and later, GET /metrics of a dense model without LoRA and speculation
VLLM_NAMES = {
    "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total",
    "prefix_cache_hits_total", "num_preemptions_total", "prompt_tokens_total", "generation_tokens_total",
    "request_success_total", "iteration_tokens_total_bucket", "request_prompt_tokens_bucket",
    "request_generation_tokens_bucket", "request_max_num_generation_tokens_bucket", "request_params_n_bucket",
    "request_params_max_tokens_bucket", "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket",
    "request_time_per_output_token_seconds_bucket", "e2e_request_latency_seconds_bucket",
    "request_queue_time_seconds_bucket", "request_prefill_time_seconds_bucket", "request_decode_time_seconds_bucket",
    "request_inference_time_seconds_bucket", "cache_config_info",
}  # fmt: skip

FINISHED = FinishedRequest(
    "r", "", "stop", prompt_tokens=40, completion_tokens=11, cached_tokens=16,
    arrival=100.0, first_scheduled=100.5, first_token=101.5, finished=103.5,
)  # fmt: skip
STEP = StepResult(
    finished=(FINISHED,), ttft_s=(0.03, 0.3), inter_token_s=(0.02,) * 3, num_running=5, num_waiting=2, num_preempted=1,
    num_prompt_tokens=24, num_generation_tokens=5, prefix_queries=40, prefix_hits=16, kv_blocks_total=50,
    kv_blocks_used=10, kv_slots_wasted=8, step_s=0.02, forward_s=0.015, sample_s=0.001,
)  # fmt: skip


def samples(metrics: Metrics) -> dict[str, float]:
    """Every sample by name; buckets and labels beyond the model's as name{…}."""
    text = metrics.exposition()[0].decode()
    found = {}
    for family in parse_text(text):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in ("model_name", "engine")}
            inner = ",".join(f"{k}={v}" for k, v in sorted(labels.items()))
            found[sample.name + (f"{{{inner}}}" if inner else "")] = sample.value
    return found


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics("m", 4096)
    metrics.record(STEP)
    metrics.record(StepResult(num_running=4, kv_blocks_total=50, kv_blocks_used=5, num_generation_tokens=4))
    return metrics


def test_gauges_show_the_last_step(metrics: Metrics) -> None:
    found = samples(metrics)
    assert found["pagoda_num_requests_running"] == 4
    assert found["pagoda_num_requests_waiting"] == 0
    assert found["pagoda_kv_cache_usage_perc"] == pytest.approx(0.1)
    assert found["pagoda_kv_cache_waste_ratio"] == 0


def test_waste_is_a_share_of_used_slots() -> None:
    metrics = Metrics("m", 4096)
    metrics.record(STEP)
    assert samples(metrics)["pagoda_kv_cache_waste_ratio"] == pytest.approx(8 / 160)


def test_counters_add_up(metrics: Metrics) -> None:
    found = samples(metrics)
    assert found["pagoda_generation_tokens_total"] == 9
    assert found["pagoda_prompt_tokens_total"] == 24
    assert found["pagoda_prefix_cache_queries_total"] == 40
    assert found["pagoda_prefix_cache_hits_total"] == 16
    assert found["pagoda_num_preemptions_total"] == 1
    assert found["pagoda_request_success_total{finished_reason=stop}"] == 1
    assert found["pagoda_request_success_total{finished_reason=length}"] == 0


def test_histograms(metrics: Metrics) -> None:
    found = samples(metrics)
    assert found["pagoda_time_to_first_token_seconds_count"] == 2
    assert found["pagoda_time_to_first_token_seconds_sum"] == pytest.approx(0.33)
    assert found["pagoda_time_to_first_token_seconds_bucket{le=0.02}"] == 0
    assert found["pagoda_time_to_first_token_seconds_bucket{le=0.04}"] == 1
    assert found["pagoda_time_to_first_token_seconds_bucket{le=0.5}"] == 2
    assert found["pagoda_time_to_first_token_seconds_bucket{le=+Inf}"] == 2
    assert found["pagoda_inter_token_latency_seconds_count"] == 3
    assert found["pagoda_iteration_tokens_total_bucket{le=8.0}"] == 1
    assert found["pagoda_iteration_tokens_total_bucket{le=32.0}"] == 2


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("e2e_request_latency", 3.5),
        ("request_queue_time", 0.5),
        ("request_prefill_time", 1.0),
        ("request_decode_time", 2.0),
        ("request_inference_time", 3.0),
        ("request_time_per_output_token", 0.2),
    ],
)
def test_times_of_a_request(metrics: Metrics, name: str, seconds: float) -> None:
    assert samples(metrics)[f"pagoda_{name}_seconds_sum"] == pytest.approx(seconds)


def test_a_request_aborted_while_waiting_has_no_prefill() -> None:
    metrics = Metrics("m", 4096)
    gone = FinishedRequest("r", "", "abort", 40, 0, 0, 100.0, None, None, 101.0)
    metrics.record(StepResult(finished=(gone,)))
    found = samples(metrics)
    assert found["pagoda_request_success_total{finished_reason=abort}"] == 1
    assert found["pagoda_e2e_request_latency_seconds_count"] == 1
    assert found["pagoda_request_queue_time_seconds_count"] == 0
    assert found["pagoda_request_decode_time_seconds_count"] == 0


def test_names_are_those_of_vllm() -> None:
    metrics = Metrics("m", 4096, compat="vllm", cache_config={"num_gpu_blocks": "7"})
    metrics.record_params(SamplingParams(n=2))
    metrics.record(STEP)
    text = metrics.exposition()[0].decode()
    old = {"gpu_cache_usage_perc", "gpu_prefix_cache_hits_total", "time_per_output_token_seconds_bucket"}
    names = {line.split("{")[0] for line in text.splitlines() if not line.startswith("#")}
    assert {f"vllm:{name}" for name in VLLM_NAMES | old} <= names
    assert {f"pagoda_{name}" for name in VLLM_NAMES} <= names
    assert 'vllm:num_requests_running{engine="0",model_name="m"} 5.0' in text
    assert 'vllm:cache_config_info{block_size="16",engine="0",model_name="m",num_gpu_blocks="7"} 1.0' in text


def test_the_pool_is_known_before_the_first_step() -> None:
    assert samples(Metrics("m", 4096, cache_config={"num_gpu_blocks": "7"}))["pagoda_kv_blocks_total"] == 7


def test_without_compat_there_is_no_vllm_name(metrics: Metrics) -> None:
    assert b"vllm:" not in metrics.exposition()[0]


def test_openmetrics_is_well_formed(metrics: Metrics) -> None:
    text, content_type = metrics.exposition("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(text.decode())}
    assert {"pagoda_generation_tokens", "pagoda_num_requests_running"} <= names


def test_bounds_follow_the_context() -> None:
    assert token_bounds(1) == [1]
    assert token_bounds(8192) == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]


def test_a_bound_is_inclusive() -> None:
    histogram = Histogram("h", "", (1, 2))
    histogram.observe_all([1, 1.5, 2, 2.5])
    assert histogram.counts == [1, 2, 1]


def test_a_step_is_cheap() -> None:
    """64 streams, a token each: under 50 µs on any machine that runs this at all in peace."""
    metrics = Metrics("m", 4096)
    step = StepResult(inter_token_s=(0.02,) * 64, num_running=64, num_generation_tokens=64, kv_blocks_total=100)
    best = min(timeit.repeat(lambda: metrics.record(step), number=100, repeat=20)) / 100
    assert best < 50e-6
