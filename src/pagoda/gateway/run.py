"""The gateway's process: it listens at once, and what is heavy to import comes after that."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from pagoda.config import ServerSettings
from pagoda.gateway.local.settings import LocalSettings
from pagoda.gateway.settings import GatewaySettings, UpstreamSettings
from pagoda.observe.cost import CostSettings
from pagoda.server.listen import allow_connections, bind, url
from pagoda.server.logs import set_up_logging

if TYPE_CHECKING:
    from pagoda.gateway.service import GatewayParts


def run_gateway(
    gateway: GatewaySettings,
    server: ServerSettings,
    cost: CostSettings,
    greet: Callable[[str], None],
    *,
    upstreams: tuple[UpstreamSettings, ...] = (),
    models: tuple[LocalSettings, ...] = (),
) -> None:
    """Serve until a signal comes, and what runs is finished. `greet` is called with the address that it listens on.

    `upstreams` are other servers, `models` are of this machine, each in a process of its own. Raises what starting them
    raises.
    """
    set_up_logging(server.log_format, server.log_level)
    allow_connections(2 * server.max_connections)  # each has another one behind it
    sock = bind(server.host, server.port)
    from pagoda.gateway.app import create_gateway
    from pagoda.gateway.service import GatewayParts
    from pagoda.server.run import run_server, server_of

    loading: Future[GatewayParts] = Future()
    loading.set_result(GatewayParts(gateway, upstreams, models))
    app = create_gateway(server, cost)
    try:
        run_server(server_of(app, server, loading, lambda _: greet(url(sock))), sock, loading)
    finally:
        logging.shutdown()
