"""The series that only Pagoda shows, in groups by who sets them."""

from __future__ import annotations

from pagoda.observe.series import Counter, Gauge, Histogram, LabelledCounter, LabelledGauge
from pagoda.types import BLOCK_SIZE, StepResult

STEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
USD = tuple(scale * 10.0**power for power in range(-7, 1) for scale in (1, 2, 5))
STOP_REASONS = ("stop", "length", "content_filter", "tool_calls", "abort", "error")
HOST_EVENTS = ("written", "read", "evicted")  # of KV blocks in host memory
REJECTIONS = ("queue_full", "draining", "budget", "deadline")


class OwnSeries:
    """Set by the engine's steps, beyond what vLLM shows."""

    set_by = "the engine's steps"

    def __init__(self) -> None:
        self.kv_cache_waste_ratio = Gauge(
            "kv_cache_waste_ratio", "Share of used blocks' slots that hold no token.", "ratio"
        )
        self.kv_blocks_total = Gauge("kv_blocks_total", "KV blocks in the pool.", "blocks")
        self.kv_blocks_used = Gauge("kv_blocks_used", "KV blocks held by sequences.", "blocks")
        self.step = Histogram("step_seconds", "Wall time of an engine step.", STEP_SECONDS, "seconds")
        self.step_forward = Counter("step_forward_seconds", "Time in the backend's forward pass.", "seconds")
        self.step_sample = Counter("step_sample_seconds", "Time spent sampling.", "seconds")
        self.step_mask = Counter("step_mask_seconds", "Time spent waiting for grammars' token masks.", "seconds")
        self.step_verify = Counter("step_verify_seconds", "Time spent sampling after draft tokens.", "seconds")
        self.step_draft = Counter("step_draft_seconds", "Time spent in drafters.", "seconds")
        self.steps_decoding = Counter("steps_decoding", "Steps that computed no prompt token.", "steps")
        self.sequences_in_steps = Counter("sequences_in_steps", "Sequences of all steps together.", "sequences")
        self.recomputed_tokens = Counter("recomputed_tokens", "Tokens computed again after a preemption.", "tokens")
        self.longest_sequence_tokens = Gauge("longest_sequence_tokens", "Longest prompt and answer so far.", "tokens")
        self.draft_tokens = LabelledCounter("draft_tokens", "Draft tokens that were checked.", "drafter", unit="tokens")
        self.draft_tokens_accepted = LabelledCounter(
            "draft_tokens_accepted", "Of them, those kept.", "drafter", unit="tokens"
        )

    def record(self, step: StepResult) -> None:
        """The facts of one step."""
        used = step.kv_blocks_used
        self.kv_cache_waste_ratio.value = step.kv_slots_wasted / (used * BLOCK_SIZE) if used else 0.0
        self.kv_blocks_total.value = step.kv_blocks_total
        self.kv_blocks_used.value = used
        if step.num_prompt_tokens + step.num_generation_tokens:
            self.step.observe(step.step_s)
        self.step_forward.value += step.forward_s
        self.step_sample.value += step.sample_s
        self.step_mask.value += step.mask_s
        self.step_verify.value += step.verify_s
        self.step_draft.value += step.draft_s
        self.steps_decoding.value += bool(step.work) and not step.num_prompt_tokens
        self.sequences_in_steps.value += len(step.work)
        for row in step.work:
            self.recomputed_tokens.value += row.num_recomputed_tokens
            if row.num_kv_tokens > self.longest_sequence_tokens.value:
                self.longest_sequence_tokens.value = row.num_kv_tokens
        for drafter, counts in step.drafts.items():
            self.draft_tokens.add(drafter, counts.num_draft_tokens)
            self.draft_tokens_accepted.add(drafter, counts.num_accepted_tokens)


class ServerSeries:
    """Set by the HTTP server."""

    set_by = "the server"

    def __init__(self) -> None:
        self.http_requests = LabelledCounter("http_requests", "HTTP responses by status.", "status", unit="requests")
        self.http_rejected = LabelledCounter(
            "http_requests_rejected", "Requests refused for load, budget or deadline.", "reason", REJECTIONS,
            unit="requests",
        )  # fmt: skip
        self.disconnects = Counter(
            "http_disconnects", "Requests whose client went away before the answer's end.", "requests"
        )
        self.answers = LabelledCounter(
            "answers", "Choices as clients saw them end.", "stop_reason", STOP_REASONS, unit="choices"
        )
        self.tenant_tokens = LabelledCounter(
            "tenant_tokens", "Tokens by tenant: prompt (computed or cached) and completion.", ("tenant", "type"),
            unit="tokens",
        )  # fmt: skip
        self.adapter_requests = LabelledCounter(
            "adapter_requests", "Requests answered, by adapter.", "adapter", unit="requests"
        )
        self.adapter_tokens = LabelledCounter(
            "adapter_tokens", "Tokens by adapter: prompt (computed or cached) and completion.", ("adapter", "type"),
            unit="tokens",
        )  # fmt: skip
        self.adapters_in_memory = Gauge("adapters_in_memory", "Adapters in memory.", "adapters")
        self.adapters_bytes = Gauge("adapters_bytes", "Memory that they take.", "bytes")
        self.kv_offload_blocks = LabelledCounter(
            "kv_offload_blocks", "KV blocks in --kv-offload: written, read, rejected as spoiled, removed for room.",
            "event", ("written", "read", "rejected", "evicted"), unit="blocks",
        )  # fmt: skip
        self.kv_offload_bytes = Gauge("kv_offload_bytes", "Size of the files in --kv-offload.", "bytes")
        self.kv_host_blocks = LabelledCounter(
            "kv_host_blocks", "KV blocks in --kv-host-memory: written, read, removed for room.",
            "event", HOST_EVENTS, unit="blocks",
        )  # fmt: skip
        self.kv_host_bytes = Gauge("kv_host_bytes", "Host memory that they take.", "bytes")
        self.header_requests = LabelledCounter(
            "header_requests", "Requests by the value of a header that --metrics-header allows.", ("header", "value"),
            unit="requests",
        )  # fmt: skip
        self.slow_streams = Gauge("slow_streams", "Streams whose client reads slower than tokens come.", "streams")


class CostSeries:
    """Set by the cost ledger; without a price all of them are 0."""

    set_by = "the cost ledger"

    def __init__(self) -> None:
        self.usd_per_hour = Gauge("cost_usd_per_hour", "Price of this machine's hour.", "USD")
        self.charged = LabelledCounter(
            "cost_usd", "What requests cost: their share of the steps that they were in.", ("tenant", "adapter"),
            unit="USD", limit=200,
        )  # fmt: skip
        self.unbilled = LabelledCounter(
            "cost_unbilled_usd", "What no request pays: idle time, and what was computed again after preemptions.",
            "reason", ("idle", "recomputed"), unit="USD",
        )  # fmt: skip
        self.saved = LabelledGauge(
            "cost_saved_usd", "Estimate of what a cache or speculation saved; negative where it lost.", "by", "USD"
        )
        self.per_request = Histogram("request_cost_usd", "Cost of a request.", USD, "USD")


class MachineSeries:
    """Set when /metrics is asked for, bytes and operations by the engine's steps."""

    set_by = "the machine's counters"

    def __init__(self) -> None:
        self.memory_used = Gauge("memory_used_bytes", "Memory in use on the machine, or in its container.", "bytes")
        self.memory_limit = Gauge(
            "memory_limit_bytes", "Memory of the machine, or what its container may use.", "bytes"
        )
        self.cpus = Gauge("cpus", "CPUs that the process may use.", "CPUs")
        self.bytes_moved = Counter("memory_moved_bytes", "Weights and KV that the engine's steps had to read.", "bytes")
        self.operations = Counter("operations", "Multiplications and additions of the engine's steps.", "operations")
        self.bandwidth = Gauge(
            "memory_bandwidth_bytes_per_second", "Measured ceiling of memory reads; 0: not measured.", "bytes/s"
        )
        self.peak = Gauge("operations_per_second", "Measured ceiling of arithmetic; 0: not measured.", "operations/s")
        self.bandwidth_share = Gauge(
            "memory_bandwidth_utilization", "Bytes moved over the ceiling, in the forward passes of the last second.",
            "ratio",
        )  # fmt: skip
        self.gpu_memory_used = LabelledGauge("gpu_memory_used_bytes", "Memory in use on the GPU.", "gpu", "bytes")
        self.gpu_memory = LabelledGauge("gpu_memory_total_bytes", "Memory of the GPU.", "gpu", "bytes")
        self.gpu_utilization = LabelledGauge(
            "gpu_utilization_ratio", "Share of the last second in which a kernel ran.", "gpu", "ratio"
        )
        self.gpu_power = LabelledGauge("gpu_power_watts", "Power that the GPU draws.", "gpu", "watts")
