"""The series of `pagoda gateway`; all zero in a server with an engine."""

from __future__ import annotations

from pagoda.observe.series import Counter, LabelledCounter, LabelledGauge


class GatewaySeries:
    """Set by the gateway, on the event loop."""

    set_by = "the gateway"

    def __init__(self) -> None:
        self.requests = LabelledCounter(
            "upstream_requests", "Requests sent to an upstream, and why to that one.", ("upstream", "routed_by"),
            unit="requests",
        )  # fmt: skip
        self.failures = LabelledCounter(
            "upstream_failures", "Failed answers: early ones are asked for elsewhere, late ones end with an error.",
            ("upstream", "when"), unit="requests",
        )  # fmt: skip
        self.prompt_tokens = LabelledCounter(
            "upstream_prompt_tokens", "Prompt tokens that an upstream counted.", "upstream", unit="tokens"
        )
        self.cached_tokens = LabelledCounter(
            "upstream_cached_tokens", "Of them, those that it found in its prefix cache.", "upstream", unit="tokens"
        )
        self.completion_tokens = LabelledCounter(
            "upstream_completion_tokens", "Tokens of its answers.", "upstream", unit="tokens"
        )
        self.in_flight = LabelledGauge("upstream_in_flight", "Requests under way there.", "upstream", "requests")
        self.healthy = LabelledGauge("upstream_healthy", "1: it answers; 0: it does not.", "upstream", "ratio")
        self.estimated = Counter("upstream_estimated_usage", "Answers whose tokens had to be estimated.", "requests")

    def count_request(self, upstream: str, routed_by: str) -> None:
        """One request more."""
        self.requests.add((upstream, routed_by))
