"""Pagoda on Ray Serve: engines as replicas, each with a port of its own, and gateways before them.

    pagoda deploy ray --config cluster.toml
    serve run pagoda.deploy.ray:app model=smollm2-135m replicas=2      # the same, for Ray's own tools

Ray places engines, starts them again when they die, and replaces them one after the other when the configuration
changes. Requests do not wait in its queues: the gateway, which is the application's ingress, sends them to the engines
over HTTP. So what routes, retries, refuses (with the engine's own Retry-After) and notices that a client is gone is the
same as in `pagoda gateway`.

Engines tell a `Registry` every second that they are there; gateways ask it which there are. Engines tell Ray's
controller how much they have to do, and `ScaleByLoad` tells it how many there should be (`scaling.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
import threading
import time
import warnings
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from starlette.applications import Starlette

from pagoda.client import HttpClient, HttpError
from pagoda.config import EngineSettings, ServerSettings, load_settings
from pagoda.deploy.scaling import EngineLoad, Targets, engines_for
from pagoda.deploy.settings import RaySettings, Scaling
from pagoda.engine.load import load_served
from pagoda.errors import ConfigError, PagodaError
from pagoda.gateway.app import create_gateway
from pagoda.gateway.service import Gateway, GatewayParts, GatewayService
from pagoda.gateway.settings import GatewaySettings, UpstreamSettings
from pagoda.observe.cost import CostSettings
from pagoda.server.cache_parts import load_cache
from pagoda.server.listen import bind
from pagoda.server.run import make_server
from pagoda.server.service import Model
from pagoda.settings import fields

NAMESPACE = "pagoda"
BEAT_S = 1.0  # between two signs of life of an engine
GONE_S = 4.0  # without one
POLL_S = 0.5
START_S = 600.0  # that a model may take to load
READY_S = 60.0  # that a gateway may take to find engines that run
REPORT_S = 1.0  # between two reports of an engine's load
MEAN_S = 5.0  # over which loads are averaged


@dataclass(frozen=True)
class Cluster:
    """All settings of an application."""

    engine: EngineSettings
    server: ServerSettings
    gateway: GatewaySettings
    cost: CostSettings
    ray: RaySettings


class Registry:
    """Which engines there are, by id: their addresses. And a secret that all gateways share. A Ray actor."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, float]] = {}
        self._secret = os.urandom(32)

    def secret(self) -> bytes:
        """Of gateways' hashes of how prompts begin, so that each knows what the others' requests left in an engine."""
        return self._secret

    def here(self, id: str, url: str) -> None:
        """An engine's sign of life."""
        self._seen[id] = (url, time.monotonic())

    def gone(self, id: str) -> None:
        """It takes no more requests."""
        self._seen.pop(id, None)

    def urls(self) -> dict[str, str]:
        """Those that have been heard of lately."""
        now = time.monotonic()
        return {id: url for id, (url, when) in self._seen.items() if now - when < GONE_S}


def registry(name: str) -> Any:
    """The registry of an application, made by who asks first."""
    actor = ray.remote(num_cpus=0)(Registry)
    return actor.options(
        name=f"{name}-registry", namespace=NAMESPACE, get_if_exists=True, lifetime="detached", max_restarts=-1
    ).remote()


class Engine:
    """A replica: the server of `pagoda serve` on a free port, in a thread of its own."""

    def __init__(self, cluster: Cluster) -> None:
        self._registry = registry(cluster.ray.name)  # its process starts while the model is loaded
        host = ray.util.get_node_ip_address()
        sock = bind("0.0.0.0", 0)
        self._url = f"http://{host}:{sock.getsockname()[1]}"
        self._id = serve.get_replica_context().replica_id.unique_id
        loading: Future[Any] = Future()
        # keys, the cache and the request log are the gateway's
        settings = replace(cluster.server, api_keys=(), keys_file=None, cache_store=None, request_log=None)
        ready = threading.Event()
        self._model: Model | None = None
        self._server = make_server(settings, loading, lambda model: self._is_ready(model, ready))
        self._thread = threading.Thread(target=self._run, args=(sock,), daemon=True)
        self._thread.start()
        loading.set_result(load_served(cluster.engine))
        self._wait_for(ready)
        ray.get(self._registry.here.remote(self._id, self._url), timeout=START_S)
        self._stopped = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    def _is_ready(self, model: Model, ready: threading.Event) -> None:
        self._model = model
        ready.set()

    def _run(self, sock: socket.socket) -> None:
        self._server.run(sockets=[sock])

    def _wait_for(self, ready: threading.Event) -> None:
        deadline = time.monotonic() + START_S
        while not ready.wait(0.1):
            self.check_health()
            if time.monotonic() > deadline:
                raise PagodaError(f"the engine was not ready after {START_S:.0f} s")

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT_S):
            self._registry.here.remote(self._id, self._url)

    def check_health(self) -> None:
        """Ray asks this every few seconds, and replaces a replica that raises."""
        if not self._thread.is_alive():
            raise PagodaError(f"the server has ended: {self._server.failure}")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Ray asks for this every second where the number of engines follows the load; `ScaleByLoad` gets averages."""
        assert self._model is not None
        series = self._model.metrics.engine
        load = EngineLoad(
            series.num_requests_running.value, series.num_requests_waiting.value, series.kv_cache_usage_perc.value
        )
        return asdict(load)

    def __del__(self) -> None:
        """Ray is replacing or removing this replica: take no more requests, and finish those that run."""
        if hasattr(self, "_stopped"):
            self._stopped.set()
            self._registry.gone.remote(self._id)
            time.sleep(2 * POLL_S)  # until gateways have heard of it
        self._server.stop()
        self._thread.join()


def front(cluster: Cluster) -> Starlette:
    """The application of the ingress: a gateway whose upstreams are the engines that there are."""
    application = create_gateway(cluster.server, cluster.cost)
    service: GatewayService = application.state.service

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        cache = await asyncio.to_thread(load_cache, cluster.server)
        gateway = service.attach(GatewayParts(cluster.gateway), cache)
        following = asyncio.create_task(follow(gateway, registry(cluster.ray.name), cluster.server.admin_key))
        try:
            yield
        finally:
            following.cancel()
            service.drain()
            await service.close()
            service.end()

    application.router.lifespan_context = lifespan
    return application


async def follow(gateway: Gateway, engines: Any, key: str | None) -> None:
    """Keep the gateway's upstreams those that are registered. `key`: the engines' admin key, where they have one."""
    secret: bytes | None = None
    while True:
        with contextlib.suppress(ray.exceptions.RayError):
            if secret is None:
                gateway.prefix_secret = secret = await engines.secret.remote()
            urls: Mapping[str, str] = await engines.urls.remote()
            await gateway.set_upstreams([UpstreamSettings(url, id, key=key) for id, url in urls.items()])
        await asyncio.sleep(POLL_S)


class ScaleByLoad:
    """The autoscaling policy of engines. Ray's controller makes one, and asks it several times a second.

    How long more or fewer engines must have been asked for, and how many there may be, is the controller's affair.
    """

    def __init__(self, requests: float, kv_usage: float) -> None:
        """What an engine is to have, see `Targets`."""
        self._targets = Targets(requests, kv_usage)

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """How many engines there should be, and what is to be remembered: nothing."""
        metrics: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics or {}
        names = [field.name for field in dataclasses.fields(EngineLoad)]
        told = [one for one in context.running_replicas if all(one in metrics.get(name, ()) for name in names)]
        loads = [EngineLoad(*(metrics[name][one] for name in names)) for one in told]
        return engines_for(loads, context.target_num_replicas, self._targets), {}


def autoscaling(scaling: Scaling) -> AutoscalingConfig:
    """The same for Ray."""
    policy = AutoscalingPolicy(policy_function=ScaleByLoad, policy_kwargs=asdict(scaling.targets))
    with warnings.catch_warnings():
        # the variables that are to take the place of metrics_interval_s are not read by Ray 2.60's replicas
        warnings.simplefilter("ignore", DeprecationWarning)
        return AutoscalingConfig(
            min_replicas=scaling.fewest,
            max_replicas=scaling.most,
            upscale_delay_s=scaling.upscale_delay,
            downscale_delay_s=scaling.downscale_delay,
            metrics_interval_s=REPORT_S,
            look_back_period_s=MEAN_S,
            policy=policy,
        )


def application(cluster: Cluster) -> Application:
    """What `serve.run` takes. Raises ConfigError for settings that contradict each other."""
    told, drain = cluster.ray, cluster.server.shutdown_timeout
    settings = cluster.engine.for_device(gpu=told.gpus > 0, kv_type="f16")
    scaling = told.scaling(settings.num_seqs)
    number = {"num_replicas": told.replicas} if scaling is None else {"autoscaling_config": autoscaling(scaling)}
    engines = serve.deployment(
        Engine,
        name="engine",
        **number,
        ray_actor_options={"num_cpus": told.cpus, "num_gpus": told.gpus},
        graceful_shutdown_timeout_s=drain + 5,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=1.0,
        health_check_timeout_s=10.0,
    )
    gateways = serve.deployment(
        serve.ingress(lambda: front(cluster))(),
        name="gateway",
        num_replicas=told.fronts,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=cluster.server.max_connections,
        graceful_shutdown_timeout_s=drain + 5,
    )
    return gateways.bind(engines.bind(cluster))


def app(arguments: Mapping[str, Any]) -> Application:
    """The builder for `serve run pagoda.deploy.ray:app NAME=VALUE …`: names are those of settings, with _ or -.

    Raises ConfigError for one that is no setting.
    """
    given = {name.replace("-", "_"): value for name, value in arguments.items()}
    kinds: tuple[type[Any], ...] = (EngineSettings, ServerSettings, GatewaySettings, CostSettings, RaySettings)
    known = {field.name for kind in kinds for field in fields(kind)}
    for name in given:
        if name not in known:
            raise ConfigError(f"{name!r} is no setting; `pagoda deploy ray --help` lists them")
    parts = [load_settings(kind, {f.name: given.get(f.name) for f in fields(kind)}) for kind in kinds]
    return application(Cluster(*parts))


def run(cluster: Cluster) -> None:
    """Deploy, and return when the application answers."""
    deployed = application(cluster)
    ray.init(address=cluster.ray.address, namespace=NAMESPACE, ignore_reinit_error=True)
    serve.start(http_options={"host": cluster.server.host, "port": cluster.server.port})
    serve.run(deployed, name=cluster.ray.name, route_prefix="/")
    asyncio.run(until_ready(cluster.server))


async def until_ready(settings: ServerSettings) -> None:
    """Wait until the gateway there has found an engine that answers, for READY_S at most. Raises PagodaError."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    client = HttpClient(f"http://{host}:{settings.port}")
    try:
        for _ in range(round(READY_S / POLL_S)):
            with contextlib.suppress(OSError, HttpError):
                await client.get("/ready")
                return
            await asyncio.sleep(POLL_S)
    finally:
        client.close()
    raise PagodaError(f"the gateway has found no engine within {READY_S:.0f} s; its log in Ray's session says more")


def stop(name: str) -> None:
    """Take the application away again."""
    serve.delete(name)
    ray.kill(registry(name))
