"""The same facts under the names of other servers, for dashboards that were made for them.

vLLM's series are ours with `vllm:` for `pagoda_` (`engine_series.py`); its older names are here. llama-server's fifteen
are made of ours; its throughput gauges are means since the last time that somebody asked, as there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pagoda.observe.engine_series import EngineSeries
from pagoda.observe.own_series import OwnSeries
from pagoda.observe.series import Labels, Series

# what dashboards for vLLM before 0.11 ask for
OLD_NAMES = {
    "gpu_cache_usage_perc": "kv_cache_usage_perc",
    "gpu_prefix_cache_hits": "prefix_cache_hits",
    "gpu_prefix_cache_queries": "prefix_cache_queries",
    "time_per_output_token_seconds": "inter_token_latency_seconds",
}


def as_vllm(series: list[Series], labels: Labels) -> Iterator[Metric]:
    """vLLM's names, those of its versions before 0.11 too."""
    named = {one.name: one for one in series}
    for name, one in (named | {old: named[new] for old, new in OLD_NAMES.items()}).items():
        yield from one.collect(f"vllm:{name}", labels | {"engine": "0"})


class LlamaServer:
    """llama-server's series; names and meanings are those of its source (tools/server/server-task.cpp)."""

    def __init__(self, engine: EngineSeries, own: OwnSeries, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine, self._own, self._clock = engine, own, clock
        self._before = (clock(), 0.0, 0.0)

    def collect(self) -> Iterator[Metric]:
        for name, help, total in self._counters():
            family = CounterMetricFamily(f"llamacpp:{name}", help)
            family.add_metric([], total)
            yield family
        for name, help, value in self._gauges():
            gauge = GaugeMetricFamily(f"llamacpp:{name}", help)
            gauge.add_metric([], value)
            yield gauge

    def _counters(self) -> Iterator[tuple[str, str, float]]:
        engine, own = self._engine, self._own
        yield "prompt_tokens", "Prompt tokens computed.", engine.prompt_tokens.value
        yield "prompt_tokens_cached", "Prompt tokens taken from the cache.", engine.prompt_tokens_cached.value
        yield "prompt_seconds", "Time in which prompts were computed.", engine.request_prefill_time.sum
        yield "tokens_predicted", "Tokens generated.", engine.generation_tokens.value
        yield "tokens_predicted_seconds", "Time in which answers were generated.", engine.request_decode_time.sum
        yield "n_decode", "Steps of the engine.", float(sum(own.step.counts))
        drafts = engine.spec_decode_num_drafts.value
        yield "spec_decode_num_draft_tokens", "Draft tokens.", engine.spec_decode_num_draft_tokens.value
        yield "spec_decode_num_accepted_tokens", "Of them, those kept.", engine.spec_decode_num_accepted_tokens.value
        yield "spec_decode_num_drafts", "Drafts that were checked.", drafts

    def _gauges(self) -> Iterator[tuple[str, str, float]]:
        engine, own = self._engine, self._own
        now, prompt, predicted = self._clock(), engine.prompt_tokens.value, engine.generation_tokens.value
        then, old_prompt, old_predicted = self._before
        self._before = (now, prompt, predicted)
        seconds = max(now - then, 1e-9)
        yield "prompt_tokens_seconds", "Prompt tokens a second since the last scrape.", (prompt - old_prompt) / seconds
        yield (
            "predicted_tokens_seconds",
            "Generated tokens a second since the last scrape.",
            (predicted - old_predicted) / seconds,
        )
        yield "requests_processing", "Sequences in the running batch.", engine.num_requests_running.value
        yield "requests_deferred", "Requests waiting to be scheduled.", engine.num_requests_waiting.value
        yield "n_tokens_max", "Longest prompt and answer so far.", own.longest_sequence_tokens.value
        busy = own.sequences_in_steps.value / max(sum(own.step.counts), 1)
        yield "n_busy_slots_per_decode", "Mean number of sequences in a step.", busy
