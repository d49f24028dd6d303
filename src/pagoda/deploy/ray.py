"""Pagoda on Ray Serve: engines as replicas, each with a port of its own, and gateways before them.

    pagoda deploy ray --config cluster.toml
    serve run pagoda.deploy.ray:app model=smollm2-135m replicas=2      # the same, for Ray's own tools

Ray places engines, starts them again when they die, and replaces them one after the other when the configuration
changes. Requests do not wait in its queues: the gateway, which is the application's ingress, sends them to the engines
over HTTP. So what routes, retries, refuses (with the engine's own Retry-After) and notices that a client is gone is the
same as in `pagoda gateway`.

Engines tell a `Registry` every second that they are there; gateways ask it which there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from starlette.applications import Starlette

from pagoda.config import EngineSettings, ServerSettings, load_settings
from pagoda.deploy.settings import RaySettings
from pagoda.engine.load import load_served
from pagoda.errors import ConfigError, PagodaError
from pagoda.gateway.app import create_gateway
from pagoda.gateway.service import Gateway, GatewayParts, GatewayService
from pagoda.gateway.settings import GatewaySettings, UpstreamSettings
from pagoda.observe.cost import CostSettings
from pagoda.server.cache_parts import load_cache
from pagoda.server.listen import bind
from pagoda.server.run import make_server
from pagoda.settings import fields

NAMESPACE = "pagoda"
BEAT_S = 1.0  # between two signs of life of an engine
GONE_S = 4.0  # without one
POLL_S = 0.5
START_S = 600.0  # that a model may take to load


@dataclass(frozen=True)
class Cluster:
    """All settings of an application."""

    engine: EngineSettings
    server: ServerSettings
    gateway: GatewaySettings
    cost: CostSettings
    ray: RaySettings


class Registry:
    """Which engines there are, by id: their addresses. A Ray actor."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, float]] = {}

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
        host = ray.util.get_node_ip_address()
        sock = bind("0.0.0.0", 0)
        self._url = f"http://{host}:{sock.getsockname()[1]}"
        self._id = serve.get_replica_context().replica_id.unique_id
        loading: Future[Any] = Future()
        # keys, the cache and the request log are the gateway's
        settings = replace(cluster.server, api_keys=(), keys_file=None, cache_store=None, request_log=None)
        ready = threading.Event()
        self._server = make_server(settings, loading, lambda _: ready.set())
        self._thread = threading.Thread(target=self._run, args=(sock,), daemon=True)
        self._thread.start()
        loading.set_result(load_served(cluster.engine))
        self._wait_for(ready)
        self._registry = registry(cluster.ray.name)
        self._stopped = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    def _run(self, sock: socket.socket) -> None:
        self._server.run(sockets=[sock])

    def _wait_for(self, ready: threading.Event) -> None:
        deadline = time.monotonic() + START_S
        while not ready.wait(0.1):
            self.check_health()
            if time.monotonic() > deadline:
                raise PagodaError(f"the engine was not ready after {START_S:.0f} s")

    def _beat(self) -> None:
        while True:
            self._registry.here.remote(self._id, self._url)
            if self._stopped.wait(BEAT_S):
                return

    def check_health(self) -> None:
        """Ray asks this every few seconds, and replaces a replica that raises."""
        if not self._thread.is_alive():
            raise PagodaError(f"the server has ended: {self._server.failure}")

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
        following = asyncio.create_task(follow(gateway, registry(cluster.ray.name)))
        try:
            yield
        finally:
            following.cancel()
            service.drain()
            await service.close()
            service.end()

    application.router.lifespan_context = lifespan
    return application


async def follow(gateway: Gateway, engines: Any) -> None:
    """Keep the gateway's upstreams those that are registered."""
    while True:
        with contextlib.suppress(ray.exceptions.RayError):
            urls: Mapping[str, str] = await engines.urls.remote()
            await gateway.set_upstreams([UpstreamSettings(url, id) for id, url in urls.items()])
        await asyncio.sleep(POLL_S)


def application(cluster: Cluster) -> Application:
    """What `serve.run` takes."""
    told, drain = cluster.ray, cluster.server.shutdown_timeout
    engines = serve.deployment(
        Engine,
        name="engine",
        num_replicas=told.replicas,
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
    ray.init(address=cluster.ray.address, namespace=NAMESPACE, ignore_reinit_error=True)
    serve.start(http_options={"host": cluster.server.host, "port": cluster.server.port})
    serve.run(application(cluster), name=cluster.ray.name, route_prefix="/")


def stop(name: str) -> None:
    """Take the application away again."""
    serve.delete(name)
    ray.kill(registry(name))
