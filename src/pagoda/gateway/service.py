"""What the gateway's routes share: the onion around its upstreams, and the phase of the server's life.

The layers are the server's own, in the same order; in the place of the engine are the upstreams.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pagoda.cache.cache import SemanticCache
from pagoda.cache.entry import Answer
from pagoda.config import ServerSettings
from pagoda.errors import UnavailableError
from pagoda.gateway.following import Followers
from pagoda.gateway.health import Health
from pagoda.gateway.local.pool import ModelPool
from pagoda.gateway.local.settings import LocalSettings, room_for
from pagoda.gateway.local.upstream import LocalUpstream
from pagoda.gateway.question import UpstreamAsking, UpstreamIdentity
from pagoda.gateway.settings import GatewaySettings, UpstreamSettings
from pagoda.gateway.streams import Upstreams, UpstreamStream
from pagoda.gateway.upstream import Upstream
from pagoda.observe.cost import CostSettings
from pagoda.observe.metrics import Metrics
from pagoda.observe.token_prices import TokenLedger, parse_prices
from pagoda.routing.prefixes import PROCESS_SECRET
from pagoda.routing.router import Router
from pagoda.server.accounts import Accounts
from pagoda.server.admission import Admission, PromptSpeed
from pagoda.server.budgets import Budgets
from pagoda.server.cache_parts import caching_of
from pagoda.server.caching import Caching
from pagoda.server.call import Call, Layer, Serve, fold
from pagoda.server.counted import Counted
from pagoda.server.key_store import KeyStore
from pagoda.types import FinishedRequest, StepResult, Usage

STARTING_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """What a gateway is made of, in the place of a loaded model."""

    settings: GatewaySettings
    upstreams: tuple[UpstreamSettings, ...] = ()
    models: tuple[LocalSettings, ...] = ()  # of this machine, each in a process of its own

    def changed(self) -> str | None:
        return None

    def close(self) -> None:
        """Nothing is held."""


class Gateway:
    """Upstreams behind everything that answers for them. Lives on the event loop."""

    def __init__(
        self,
        parts: GatewayParts,
        settings: ServerSettings,
        cost: CostSettings,
        key_store: KeyStore | None,
        cache: SemanticCache | None,
    ) -> None:
        self._told = told = parts.settings
        self.created = int(time.time())
        self.ledger = TokenLedger(parse_prices(cost.token_prices))
        self.metrics = Metrics("gateway", 0, compat=settings.metrics_compat, ledger=self.ledger)
        self.accounts = Accounts(None, self.metrics, settings)
        models = [
            LocalUpstream(one, load_timeout=settings.load_timeout, timeout=told.timeout, is_default=not place)
            for place, one in enumerate(parts.models)
        ]
        upstreams = [
            *models,
            *(Upstream(one, connect_timeout=told.connect_timeout, timeout=told.timeout) for one in parts.upstreams),
        ]
        self.router = Router(upstreams, told.routing)
        self.upstreams = Upstreams(self.router, self.metrics.gateway, retries=told.retries, on_end=self._ended)
        followers = Followers() if told.routing == "affinity" else None
        self.health = Health(upstreams, told.health_interval, self.upstreams.move_from, followers)
        shared = told.prefix_secret
        self.prefix_secret = PROCESS_SECRET if shared is None else hashlib.sha256(shared.encode()).digest()
        self.pool: ModelPool | None = None  # None: there are no models of our own
        if models:
            most = room_for(models, settings.models_max)
            self.pool = ModelPool(models, most, idle_unload=settings.idle_unload, on_end=self.upstreams.move_from)
        self.admission = Admission(settings.max_queue_requests, settings.max_queue_tokens, PromptSpeed())
        self.budgets = None if key_store is None else Budgets(key_store, "", self.metrics)
        self.caching: Caching | None = None  # None: there is no semantic cache
        if cache is not None:
            asking = UpstreamAsking(cache.policy, UpstreamIdentity(self._names_of))
            self.caching = caching_of(cache, settings, asking, self.metrics)
            self.caching.on_hit = self._saved
        self.metrics.before_collect.append(self._update_series)
        layers: list[Layer] = [  # outermost first
            *([] if self.budgets is None else [self.budgets]),
            *([] if self.caching is None else [self.caching]),
            Counted(self.metrics),
            self.admission,
        ]
        self.serve: Serve = fold(layers, self.upstreams.open)

    async def set_upstreams(self, rows: Sequence[UpstreamSettings]) -> None:
        """Answer by these from now on, told apart by name: new ones once they have been looked at; those that go finish
        what they have."""
        told = self._told
        here = {one.name: one for one in self.router.replicas}
        for row in rows:
            if row.name not in here:
                upstream = Upstream(row, connect_timeout=told.connect_timeout, timeout=told.timeout)
                await self.health.add(upstream)
                self.router.replicas = (*self.router.replicas, upstream)
        names = {row.name for row in rows}
        for name, upstream in here.items():
            if name not in names:
                self.router.replicas = tuple(one for one in self.router.replicas if one is not upstream)
                self.health.drop(upstream)
                upstream.retire()

    def _names_of(self, model: str | None) -> str:
        """What the upstreams call a model: with another there, kept answers are another model's."""
        return " ".join(sorted({one.settings.models.get(model or "", model or "") for one in self.router.replicas}))

    def _saved(self, call: Call, answer: Answer) -> None:
        """The cache has answered a call."""
        usage = Usage(answer.prompt_tokens, answer.completion_tokens, 0)
        self.ledger.save("semantic_cache", call.adapter or "", usage)

    def _ended(self, stream: UpstreamStream, usage: Usage, *, is_estimate: bool) -> None:
        """An upstream has worked on a call: charge it, and count it as a server with an engine would."""
        call, choice = stream.call, stream.choice
        assert choice is not None
        series, name = self.metrics.gateway, choice.replica.name
        self.ledger.charge(call.requests[0].id, call.tenant, call.model or "", usage)
        series.estimated.value += is_estimate
        series.prompt_tokens.add(name, usage.prompt_tokens)
        series.cached_tokens.add(name, usage.cached_tokens)
        series.completion_tokens.add(name, usage.completion_tokens)
        request, now = call.requests[0], time.monotonic()
        finished = FinishedRequest(
            request.id,
            call.tenant,
            "stop" if stream.is_whole else "abort",
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
            request.arrival,
            stream.sent,
            stream.first_token or (now if stream.is_whole else None),
            now,
        )
        step = StepResult(
            finished=(finished,),
            ttft_s=() if finished.first_token is None else (finished.first_token - request.arrival,),
            num_prompt_tokens=usage.prompt_tokens - usage.cached_tokens,
            num_generation_tokens=usage.completion_tokens,
            prefix_queries=usage.prompt_tokens,
            prefix_hits=usage.cached_tokens,
            num_running=self.upstreams.num_streams,
            num_waiting=self.admission.requests.waiting,
            ended=now,
        )
        if self.accounts.tracing is not None:
            self.accounts.tracing.note(step)
        self.metrics.engine.record(step)

    def _update_series(self) -> None:
        series, upstreams = self.metrics.gateway, self.router.replicas
        series.in_flight.values = {one.name: one.in_flight for one in upstreams}
        series.healthy.values = {one.name: float(one.healthy) for one in upstreams}

    def list_models(self) -> list[dict[str, Any]]:
        """As /v1/models shows them: all that some upstream is known to have."""
        models = [] if self.pool is None else self.pool.models
        states = {name: {"status": {"value": one.state}} for one in models for name in one.settings.models}
        return [
            {"id": name, "object": "model", "created": self.created, "owned_by": "pagoda-gateway"}
            | states.get(name, {})
            for name in self.upstreams.models()
        ]

    async def close(self) -> None:
        """End what was started."""
        self.health.close()
        if self.pool is not None:
            await self.pool.close()
        if self.caching is not None:
            self.caching.close()
        for one in self.router.replicas:
            one.retire()


class GatewayService:
    """State of the server. Changed on the event loop only."""

    def __init__(self, settings: ServerSettings, cost: CostSettings) -> None:
        self.settings = settings
        self.key_store = None if settings.keys_file is None else KeyStore(settings.keys_file)
        self.phase: Literal["starting", "ready", "draining"] = "starting"
        self.num_active = 0  # HTTP requests in the works that a shutdown waits for
        self._cost = cost
        self._gateway: Gateway | None = None
        self._starting: asyncio.Task[None] | None = None

    def attach(self, parts: GatewayParts, cache: SemanticCache | None) -> Gateway:
        """Answer requests, as soon as every upstream has been looked at once."""
        self._gateway = Gateway(parts, self.settings, self._cost, self.key_store, cache)
        self._starting = asyncio.get_running_loop().create_task(self._start(self._gateway))
        return self._gateway

    async def _start(self, gateway: Gateway) -> None:
        await gateway.health.start()
        if gateway.pool is not None:
            await gateway.pool.start()
        if self.phase == "starting":
            self.phase = "ready"

    def drain(self) -> None:
        """Take no new requests, finish what runs."""
        self.phase = "draining"

    def cut_off(self, reason: str) -> None:
        """End what is being answered."""
        if self._gateway is not None:
            self._gateway.upstreams.close_all(UnavailableError(reason, retry_after=STARTING_RETRY_S))

    def give_up(self, reason: str) -> None:
        self.cut_off(reason)

    async def close(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
        if self._gateway is not None:
            await self._gateway.close()

    def end(self) -> None:
        """The last answer is over: close the files that are written to."""
        if self._gateway is not None:
            self._gateway.accounts.end()
        if self.key_store is not None:
            self.key_store.close()

    @property
    def ready(self) -> bool:
        return self.phase == "ready"

    @property
    def loaded(self) -> Gateway | None:
        return self._gateway

    def model(self) -> Gateway:
        """The gateway. Raises UnavailableError while it starts."""
        if self._gateway is None or self.phase == "starting":
            raise UnavailableError("the gateway is starting", retry_after=STARTING_RETRY_S)
        return self._gateway

    def gateway_for_work(self) -> Gateway:
        """The gateway, to answer with. Raises UnavailableError when it is shutting down, too."""
        if self.phase == "draining":
            raise UnavailableError("the gateway is shutting down", retry_after=max(1.0, self.settings.shutdown_timeout))
        return self.model()


def upstream_states(upstreams: Sequence[Upstream]) -> list[dict[str, Any]]:
    """What /health tells of each."""
    return [
        {
            "name": one.name,
            "healthy": one.healthy,
            "in_flight": one.in_flight,
            "says_prefixes": one.says_prefixes,
            **({"why": one.why} if one.why else {}),
        }
        for one in upstreams
    ]
