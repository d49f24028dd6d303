"""The series that vLLM has too, set by the engine's steps. Attribute names are theirs, and so are meanings and buckets
(vLLM's V1 engine, vllm/v1/metrics/loggers.py), so that its dashboards can be pointed here."""

from __future__ import annotations

from pagoda.observe.series import Counter, Gauge, Histogram, Info, LabelledCounter, Labels
from pagoda.types import DraftCounts, FinishedRequest, StepResult

TTFT_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
                40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
                 40.0, 80.0)  # fmt: skip
REQUEST_SECONDS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
                   480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
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
    """The series of one model's engine."""

    set_by = "the engine's steps"

    def __init__(self, max_context: int, cache_config: Labels) -> None:
        tokens = token_bounds(max_context)
        self.num_requests_running = Gauge("num_requests_running", "Sequences in the running batch.", "sequences")
        self.num_requests_waiting = Gauge("num_requests_waiting", "Requests waiting to be scheduled.", "requests")
        self.kv_cache_usage_perc = Gauge("kv_cache_usage_perc", "Share of KV blocks held by sequences.", "ratio")
        self.prefix_cache_queries = Counter("prefix_cache_queries", "Tokens looked up in the prefix cache.", "tokens")
        self.prefix_cache_hits = Counter("prefix_cache_hits", "Tokens found in the prefix cache.", "tokens")
        self.num_preemptions = Counter("num_preemptions", "Sequences preempted for want of KV blocks.", "sequences")
        self.prompt_tokens = Counter("prompt_tokens", "Prompt tokens computed.", "tokens")
        self.prompt_tokens_cached = Counter(
            "prompt_tokens_cached", "Prompt tokens taken from the prefix cache.", "tokens"
        )
        self.generation_tokens = Counter("generation_tokens", "Tokens generated.", "tokens")
        self.request_success = LabelledCounter(
            "request_success", "Ended choices.", "finished_reason", FINISH_REASONS, unit="choices"
        )
        self.iteration_tokens = Histogram("iteration_tokens_total", "Tokens of a step.", STEP_TOKENS, "tokens")
        self.request_prompt_tokens = Histogram("request_prompt_tokens", "Prompt tokens of a request.", tokens, "tokens")
        self.request_generation_tokens = Histogram(
            "request_generation_tokens", "Tokens generated for it.", tokens, "tokens"
        )
        self.request_max_num_generation_tokens = Histogram(
            "request_max_num_generation_tokens", "Tokens of a request's longest choice.", tokens, "tokens"
        )
        self.request_params_n = Histogram("request_params_n", "The n that requests ask for.", (1, 2, 5, 10, 20))
        self.request_params_max_tokens = Histogram(
            "request_params_max_tokens", "The max_tokens that requests ask for.", tokens, "tokens"
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
        self.spec_decode_num_drafts = Counter("spec_decode_num_drafts", "Drafts that were checked.", "drafts")
        self.spec_decode_num_draft_tokens = Counter("spec_decode_num_draft_tokens", "Tokens of those drafts.", "tokens")
        self.spec_decode_num_accepted_tokens = Counter(
            "spec_decode_num_accepted_tokens", "Of them, those kept.", "tokens"
        )
        self.spec_decode_num_accepted_tokens_per_pos = LabelledCounter(
            "spec_decode_num_accepted_tokens_per_pos", "Kept tokens by their place in the draft.", "position",
            unit="tokens",
        )  # fmt: skip
        self.cache_config = Info("cache_config_info", "How the KV cache is laid out.", cache_config)

    def record(self, step: StepResult) -> None:
        """The facts of one step."""
        self.num_requests_running.value = step.num_running
        self.num_requests_waiting.value = step.num_waiting
        used, total = step.kv_blocks_used, step.kv_blocks_total
        self.kv_cache_usage_perc.value = used / total if total else 0.0
        self.prefix_cache_queries.value += step.prefix_queries
        self.prefix_cache_hits.value += step.prefix_hits
        self.num_preemptions.value += step.num_preempted
        self.prompt_tokens.value += step.num_prompt_tokens
        self.prompt_tokens_cached.value += step.prefix_hits
        self.generation_tokens.value += step.num_generation_tokens
        if num_tokens := step.num_prompt_tokens + step.num_generation_tokens:
            self.iteration_tokens.observe(num_tokens)
        self.time_to_first_token.observe_all(step.ttft_s)
        self.inter_token_latency.observe_all(step.inter_token_s)
        for request in step.finished:
            self.record_finished(request)
        for counts in step.drafts.values():
            self.record_draft(counts)

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


def _seconds(name: str, help: str, bounds: tuple[float, ...] = REQUEST_SECONDS) -> Histogram:
    return Histogram(f"{name}_seconds", help, bounds, "seconds")
