"""Facts of steps, of the server and of the machine → Prometheus series.

The series stand in groups, one class each, by who sets them; `table.py` lists them all. Each shows as `pagoda_NAME`
with the model's name; `compat` shows them under the names of another server too.

Not covered: series of what Pagoda does not have (data-parallel ranks, KV transfer).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, choose_encoder, generate_latest

from pagoda.observe.cache_series import CacheSeries
from pagoda.observe.compat import LlamaServer, as_vllm
from pagoda.observe.cost import CostLedger
from pagoda.observe.engine_series import EngineSeries
from pagoda.observe.gateway_series import GatewaySeries
from pagoda.observe.own_series import MachineSeries, OwnSeries, ServerSeries
from pagoda.observe.readings import Gpus, read_into
from pagoda.observe.roofline import Roofline
from pagoda.observe.series import Labels, Series
from pagoda.types import BLOCK_SIZE, SamplingParams, StepResult

Compat = Literal["none", "vllm", "llamacpp"]


class Metrics:
    """All series of one served model, in a registry of their own. `record` is an observer of the engine's steps."""

    def __init__(
        self,
        model_name: str,
        max_context: int,
        *,
        cache_config: Labels | None = None,
        compat: Compat = "none",
        ledger: CostLedger | None = None,
    ) -> None:
        self.engine = EngineSeries(max_context, {"block_size": str(BLOCK_SIZE)} | (cache_config or {}))
        self.own, self.server, self.machine = OwnSeries(), ServerSeries(), MachineSeries()
        self.cache, self.gateway = CacheSeries(), GatewaySeries()
        self.own.kv_blocks_total.value = float((cache_config or {}).get("num_gpu_blocks", 0))  # until a step tells
        self.ledger = ledger or CostLedger()
        self.roofline: Roofline | None = None  # None: what steps cost is not known (yet)
        self.last_step = time.monotonic()
        self._labels = {"model_name": model_name}
        self._compat = compat
        self._llama_server = LlamaServer(self.engine, self.own)
        self._gpus = Gpus()
        self.before_collect: list[Callable[[], None]] = []  # who sets gauges when /metrics is asked for
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def groups(self) -> dict[str, list[Series]]:
        """All series by who sets them."""
        holders = (self.engine, self.own, self.server, self.ledger.series, self.machine, self.cache, self.gateway)
        groups: dict[str, list[Series]] = {}
        for holder in holders:
            groups.setdefault(holder.set_by, []).extend(vars(holder).values())
        return groups

    def record(self, step: StepResult) -> None:
        """Take the facts of one step. Called on the engine thread after every step; a few microseconds."""
        self.last_step = time.monotonic()
        self.engine.record(step)
        self.own.record(step)
        if self.roofline is not None:
            self.machine.bytes_moved.value += self.roofline.bytes_of(step)
            self.machine.operations.value += self.roofline.operations_of(step)

    def set_roofline(self, roofline: Roofline) -> None:
        """What a step costs on this model is known from now on."""
        self.roofline = roofline
        self.machine.bandwidth.value = roofline.bandwidth or 0.0
        self.machine.peak.value = roofline.peak or 0.0

    def update_costs(self) -> None:
        """Bring idle time and savings up to date, before they are shown."""
        self.ledger.set_saved(
            "semantic_cache", int(self.cache.saved_prompt_tokens.value), int(self.cache.saved_tokens.value)
        )
        self.ledger.update()

    def record_params(self, params: SamplingParams) -> None:
        """What a request asked for. Called once a request, by the server."""
        self.engine.request_params_n.observe(params.n)
        if params.max_tokens is not None:
            self.engine.request_params_max_tokens.observe(params.max_tokens)

    def record_answer(self, num_tokens: Sequence[int]) -> None:
        """A request has been answered with choices of these lengths. Called once a request, by the server."""
        self.engine.request_max_num_generation_tokens.observe(max(num_tokens))

    def refresh(self) -> None:
        """Bring the series up to date that are set when somebody looks."""
        for update in self.before_collect:
            update()
        self.update_costs()
        read_into(self.machine, self._gpus)

    def collect(self) -> Iterator[Metric]:
        """For prometheus_client: every series as it stands now."""
        self.refresh()
        for series in [one for group in self.groups().values() for one in group]:
            yield from series.collect(f"pagoda_{series.name}", self._labels)
        if self._compat == "vllm":
            yield from as_vllm(list(vars(self.engine).values()), self._labels)
        elif self._compat == "llamacpp":
            yield from self._llama_server.collect()

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The text for a scraper that sent `accept`, and its content type."""
        if _prefers_plain(accept):
            return generate_latest(self.registry), CONTENT_TYPE_LATEST
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


def _prefers_plain(accept: str) -> bool:
    """Whether plain text has a higher q than OpenMetrics: prometheus_client takes OpenMetrics whatever q says."""
    weights = {"text/plain": 0.0, "application/openmetrics-text": 0.0}
    for part in accept.split(","):
        kind, *parameters = (word.strip() for word in part.split(";"))
        given = next((word[2:] for word in parameters if word.startswith("q=")), "1")
        if kind in weights:
            weights[kind] = float(given) if given.replace(".", "", 1).isdigit() else 1.0
    return weights["text/plain"] > weights["application/openmetrics-text"]
