"""`pagoda deploy ray`: engines and gateways on a Ray cluster."""

from __future__ import annotations

import signal
from importlib.util import find_spec

import typer

from pagoda.cli.options import with_settings
from pagoda.config import EngineSettings, ServerSettings
from pagoda.deploy.settings import RaySettings
from pagoda.errors import ConfigError
from pagoda.gateway.settings import GatewaySettings
from pagoda.observe.cost import CostSettings


@with_settings
def deploy_ray(
    engine: EngineSettings, ray: RaySettings, server: ServerSettings, gateway: GatewaySettings, cost: CostSettings
) -> None:
    """Run engines as replicas on a Ray cluster, with gateways before them that know where prefixes live.

    pagoda deploy ray smollm2-135m --replicas 2: on this machine, until Ctrl-C.

    pagoda deploy ray --config cluster.toml --address auto: on the cluster that this machine is part of. Said again with
    another configuration, replicas are replaced one after the other. See docs/deployment.md.
    """
    ray.scaling(engine.num_seqs)  # says what contradicts
    if find_spec("ray") is None:
        raise ConfigError("Ray is not installed: pip install 'pagoda-llm[ray]', in an environment of its own")
    from pagoda.deploy.ray import Cluster, run

    run(Cluster(engine, server, gateway, cost, ray))
    number = f"{ray.replicas}" if ray.max_replicas is None else f"{ray.replicas} to {ray.max_replicas}"
    typer.echo(f"http://{server.host}:{server.port}/v1 answers, with {number} engines")
    if ray.address is None:
        signal.pause()
