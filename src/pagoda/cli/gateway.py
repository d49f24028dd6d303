"""`pagoda gateway`: the server's cache, keys, budgets, metrics and costs before other servers."""

from __future__ import annotations

import logging
import sys
from concurrent.futures import Future
from pathlib import Path

from pagoda.cli.options import with_settings
from pagoda.config import ServerSettings
from pagoda.gateway.settings import GatewaySettings, upstreams_of
from pagoda.observe.cost import CostSettings
from pagoda.server.listen import allow_connections, bind, url
from pagoda.server.logs import set_up_logging

logger = logging.getLogger("pagoda.gateway")


@with_settings
def gateway(gateway: GatewaySettings, server: ServerSettings, cost: CostSettings, config: Path | None = None) -> None:
    """Stand before OpenAI-compatible servers: semantic cache, keys and budgets, routing, retries, metrics and costs.

    Any server or provider with an OpenAI API will do: llama-server, vLLM, pagoda serve, a paid API. Bodies and answers
    pass through as they are, streams as they come; a client that goes away ends the upstream's work, too.

    pagoda gateway --upstream http://127.0.0.1:8001 --cache sqlite: one server, and repeated questions answered from a
    cache.

    pagoda gateway --upstream http://gpu1:8000=2 --upstream http://gpu2:8000: two replicas, the first with twice the
    share; conversations stay where their beginning is in memory, and one that fails is replaced by the other.

    Keys for providers, other names for models and fallbacks are [[upstreams]] in pagoda.toml; see docs/gateway.md.
    """
    upstreams = upstreams_of(gateway, config)
    set_up_logging(server.log_format, server.log_level)
    allow_connections(2 * server.max_connections)
    sock = bind(server.host, server.port)
    from pagoda.gateway.app import create_gateway
    from pagoda.gateway.service import GatewayParts
    from pagoda.server.run import run_server, server_of

    loading: Future[GatewayParts] = Future()
    loading.set_result(GatewayParts(gateway, upstreams))
    names = ", ".join(one.name for one in upstreams)

    def greet(_: object) -> None:
        logger.info("listening", extra={"facts": {"url": f"{url(sock)}/v1", "upstreams": names}})
        if server.log_format == "text":
            sys.stderr.write(
                f"\nPoint OpenAI clients at {url(sock)}/v1; {url(sock)}/health says how upstreams are.\n\n"
            )

    try:
        run_server(server_of(create_gateway(server, cost), server, loading, greet), sock, loading)
    finally:
        logging.shutdown()
