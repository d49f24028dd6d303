"""Facts of a step → Prometheus series: vLLM's names with `pagoda_` in place of `vllm:`, and a few of our own.

Names, meanings and buckets follow vLLM's V1 engine (vllm/v1/metrics/loggers.py), so that its dashboards can be
pointed here; with `compat="vllm"` its own names stand in the output too.

Not covered: series of what Pagoda does not have (LoRA, data-parallel ranks, KV transfer).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Literal

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder

from pagoda.observe.series import Counter, Gauge, Histogram, Info, LabelledCounter, Labels, Series
from pagoda.types import BLOCK_SIZE, DraftCounts, FinishedRequest, SamplingParams, StepResult

TTFT_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
                40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
                 40.0, 80.0)  # fmt: skip
REQUEST_SECONDS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
                   480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
STEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
# what dashboards for vLLM before 0.11 ask for
OLD_NAMES = {
    "gpu_cache_usage_perc": "kv_cache_usage_perc",
    "gpu_prefix_cache_hits": "prefix_cache_hits",
    "gpu_prefix_cache_queries": "prefix_cache_queries",
    "time_per_output_token_seconds": "inter_token_latency_seconds",
}
FINISH_REASONS = ("stop", "length", "abort", "error")


def token_bounds(max_context: int) -> list[int]:
    """1, 2, 5, 10, 20, 50 … up to the context length."""
    bounds: list[int] = []
    scale = 1
    while True:
        for step in (1, 2, 5):
            if step * scale > max_context:
                return bounds
            bounds.append(step * scale)
        scale *= 10


class EngineSeries:
    """The series that vLLM has too; attribute names are theirs."""

    def __init__(self, max_context: int, cache_config: Labels) -> None:
        tokens = token_bounds(max_context)
        self.num_requests_running = Gauge("num_requests_running", "Sequences in the running batch.")
        self.num_requests_waiting = Gauge("num_requests_waiting", "Requests waiting to be scheduled.")
        self.kv_cache_usage_perc = Gauge("kv_cache_usage_perc", "Share of KV blocks held by sequences, 0 to 1.")
        self.prefix_cache_queries = Counter("prefix_cache_queries", "Tokens looked up in the prefix cache.")
        self.prefix_cache_hits = Counter("prefix_cache_hits", "Tokens found in the prefix cache.")
        self.num_preemptions = Counter("num_preemptions", "Sequences preempted for want of KV blocks.")
        self.prompt_tokens = Counter("prompt_tokens", "Prompt tokens computed.")
        self.prompt_tokens_cached = Counter("prompt_tokens_cached", "Prompt tokens taken from the prefix cache.")
        self.generation_tokens = Counter("generation_tokens", "Tokens generated.")
        self.request_success = LabelledCounter("request_success", "Ended choices.", "finished_reason", FINISH_REASONS)
        self.iteration_tokens = Histogram("iteration_tokens_total", "Tokens of a step.", STEP_TOKENS)
        self.request_prompt_tokens = Histogram("request_prompt_tokens", "Prompt tokens of a request.", tokens)
        self.request_generation_tokens = Histogram("request_generation_tokens", "Tokens generated for it.", tokens)
        self.request_max_num_generation_tokens = Histogram(
            "request_max_num_generation_tokens", "Tokens of a request's longest choice.", tokens
        )
        self.request_params_n = Histogram("request_params_n", "The n that requests ask for.", (1, 2, 5, 10, 20))
        self.request_params_max_tokens = Histogram(
            "request_params_max_tokens", "The max_tokens that requests ask for.", tokens
        )
        self.time_to_first_token = _seconds("time_to_first_token", "From arrival to the first token.", TTFT_SECONDS)
        self.inter_token_latency = _seconds("inter_token_latency", "Between two tokens of a choice.", TOKEN_SECONDS)
        self.time_per_output_token = _seconds(
            "request_time_per_output_token", "Mean time of a request's tokens after the first.", TOKEN_SECONDS
        )
        self.e2e_request_latency = _seconds("e2e_request_latency", "From arrival to the last token.")
        self.request_queue_time = _seconds("request_queue_time", "From arrival to first being scheduled.")
        self.request_prefill_time = _seconds("request_prefill_time", "From first scheduled to first token.")
        self.request_decode_time = _seconds("request_decode_time", "From first token to last.")
        self.request_inference_time = _seconds("request_inference_time", "From first scheduled to last token.")
        self.spec_decode_num_drafts = Counter("spec_decode_num_drafts", "Drafts that were checked.")
        self.spec_decode_num_draft_tokens = Counter("spec_decode_num_draft_tokens", "Tokens of those drafts.")
        self.spec_decode_num_accepted_tokens = Counter("spec_decode_num_accepted_tokens", "Of them, those kept.")
        self.spec_decode_num_accepted_tokens_per_pos = LabelledCounter(
            "spec_decode_num_accepted_tokens_per_pos", "Kept tokens by their place in the draft.", "position"
        )
        self.cache_config = Info("cache_config_info", "How the KV cache is laid out.", cache_config)

    def record_draft(self, counts: DraftCounts) -> None:
        """What one drafter proposed in a step."""
        self.spec_decode_num_drafts.value += counts.num_drafts
        self.spec_decode_num_draft_tokens.value += counts.num_draft_tokens
        self.spec_decode_num_accepted_tokens.value += counts.num_accepted_tokens
        for position, kept in enumerate(counts.accepted_per_position):
            self.spec_decode_num_accepted_tokens_per_pos.add(str(position), kept)

    def record_finished(self, request: FinishedRequest) -> None:
        """One ended choice. Times that never came (it was aborted while waiting) are left out."""
        self.request_success.add(request.finish_reason)
        self.e2e_request_latency.observe(request.finished - request.arrival)
        self.request_prompt_tokens.observe(request.prompt_tokens)
        self.request_generation_tokens.observe(request.completion_tokens)
        if request.first_scheduled is not None:
            self.request_queue_time.observe(request.first_scheduled - request.arrival)
            self.request_inference_time.observe(request.finished - request.first_scheduled)
            if request.first_token is not None:
                self.request_prefill_time.observe(request.first_token - request.first_scheduled)
        if request.first_token is not None:
            decode = request.finished - request.first_token
            self.request_decode_time.observe(decode)
            if request.completion_tokens > 1:
                self.time_per_output_token.observe(decode / (request.completion_tokens - 1))


class OwnSeries:
    """What only Pagoda shows."""

    def __init__(self) -> None:
        self.kv_cache_waste_ratio = Gauge("kv_cache_waste_ratio", "Share of used blocks' slots that hold no token.")
        self.kv_blocks_total = Gauge("kv_blocks_total", "KV blocks in the pool.")
        self.kv_blocks_used = Gauge("kv_blocks_used", "KV blocks held by sequences.")
        self.step = _seconds("step", "Wall time of an engine step.", STEP_SECONDS)
        self.step_forward = Counter("step_forward_seconds", "Time in the backend's forward pass.")
        self.step_sample = Counter("step_sample_seconds", "Time spent sampling.")
        self.draft_tokens = LabelledCounter("draft_tokens", "Draft tokens that were checked.", "drafter")
        self.draft_tokens_accepted = LabelledCounter("draft_tokens_accepted", "Of them, those kept.", "drafter")
        self.http_requests = LabelledCounter("http_requests", "HTTP responses by status.", "status")
        self.http_rejected = LabelledCounter(
            "http_requests_rejected", "Requests refused for load.", "reason", ("queue_full", "draining")
        )
        self.disconnects = Counter("http_disconnects", "Requests whose client went away before the answer's end.")


class Metrics:
    """All series of one served model, in a registry of their own. `record` is an observer of the engine's steps."""

    def __init__(
        self,
        model_name: str,
        max_context: int,
        *,
        cache_config: Labels | None = None,
        compat: Literal["none", "vllm"] = "none",
    ) -> None:
        self.engine = EngineSeries(max_context, {"block_size": str(BLOCK_SIZE)} | (cache_config or {}))
        self.own = OwnSeries()
        self.own.kv_blocks_total.value = float((cache_config or {}).get("num_gpu_blocks", 0))  # until a step tells
        self.last_step = time.monotonic()
        self._labels = {"model_name": model_name}
        self._compat = compat
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def record(self, step: StepResult) -> None:
        """Take the facts of one step. Called on the engine thread after every step; a few microseconds."""
        engine, own = self.engine, self.own
        self.last_step = time.monotonic()
        engine.num_requests_running.value = step.num_running
        engine.num_requests_waiting.value = step.num_waiting
        engine.prefix_cache_queries.value += step.prefix_queries
        engine.prefix_cache_hits.value += step.prefix_hits
        engine.num_preemptions.value += step.num_preempted
        engine.prompt_tokens.value += step.num_prompt_tokens
        engine.prompt_tokens_cached.value += step.prefix_hits
        engine.generation_tokens.value += step.num_generation_tokens
        if num_tokens := step.num_prompt_tokens + step.num_generation_tokens:
            engine.iteration_tokens.observe(num_tokens)
            own.step.observe(step.step_s)
        engine.time_to_first_token.observe_all(step.ttft_s)
        engine.inter_token_latency.observe_all(step.inter_token_s)
        for request in step.finished:
            engine.record_finished(request)
        for drafter, counts in step.drafts.items():
            engine.record_draft(counts)
            own.draft_tokens.add(drafter, counts.num_draft_tokens)
            own.draft_tokens_accepted.add(drafter, counts.num_accepted_tokens)
        self._record_memory(step)
        own.step_forward.value += step.forward_s
        own.step_sample.value += step.sample_s

    def _record_memory(self, step: StepResult) -> None:
        used = step.kv_blocks_used
        self.engine.kv_cache_usage_perc.value = used / step.kv_blocks_total if step.kv_blocks_total else 0.0
        self.own.kv_cache_waste_ratio.value = step.kv_slots_wasted / (used * BLOCK_SIZE) if used else 0.0
        self.own.kv_blocks_total.value = step.kv_blocks_total
        self.own.kv_blocks_used.value = used

    def record_params(self, params: SamplingParams) -> None:
        """What a request asked for. Called once a request, by the server."""
        self.engine.request_params_n.observe(params.n)
        if params.max_tokens is not None:
            self.engine.request_params_max_tokens.observe(params.max_tokens)

    def record_answer(self, num_tokens: Sequence[int]) -> None:
        """A request has been answered with choices of these lengths. Called once a request, by the server."""
        self.engine.request_max_num_generation_tokens.observe(max(num_tokens))

    def collect(self) -> Iterator[Metric]:
        """For prometheus_client: every series as it stands now."""
        for series in [*_series(self.engine), *_series(self.own)]:
            yield from series.collect(f"pagoda_{series.name}", self._labels)
        if self._compat == "vllm":
            named = {series.name: series for series in _series(self.engine)}
            for name, series in (named | {old: named[new] for old, new in OLD_NAMES.items()}).items():
                yield from series.collect(f"vllm:{name}", self._labels | {"engine": "0"})

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The text for a scraper that sent `accept`, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


def _series(holder: EngineSeries | OwnSeries) -> list[Series]:
    return list(vars(holder).values())


def _seconds(name: str, help: str, bounds: tuple[float, ...] = REQUEST_SECONDS) -> Histogram:
    return Histogram(f"{name}_seconds", help, bounds)
