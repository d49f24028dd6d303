"""`pagoda gateway`: the server's cache, keys, budgets, metrics and costs before other servers."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pagoda.cli.options import with_settings
from pagoda.config import ServerSettings
from pagoda.gateway.run import run_gateway
from pagoda.gateway.settings import GatewaySettings, upstreams_of
from pagoda.observe.cost import CostSettings

logger = logging.getLogger("pagoda.gateway")


# What `pagoda serve` reads: a gateway loads no model, and prices tokens instead of its machine.
OF_SERVERS = (
    "served_model_name", "tool_call_format", "reasoning_format", "models_max", "idle_unload", "load_timeout",
    "price", "price_of", "decode_weight", "kv_weight",
)  # fmt: skip


@partial(with_settings, without=OF_SERVERS)
def gateway(
    gateway: GatewaySettings,
    server: ServerSettings,
    cost: CostSettings,
    urls: Annotated[
        list[str] | None, typer.Argument(metavar="URL", help="Servers to stand before, as --upstream names them.")
    ] = None,
    config: Path | None = None,
) -> None:
    """Stand before OpenAI-compatible servers: semantic cache, keys and budgets, routing, retries, metrics and costs.

    Any server or provider with an OpenAI API will do: llama-server, vLLM, pagoda serve, a paid API. Bodies and answers
    pass through as they are, streams as they come; a client that goes away ends the upstream's work, too.

    pagoda gateway http://127.0.0.1:8001 --cache sqlite: one server, and repeated questions answered from a cache.

    pagoda gateway http://gpu1:8000=2 http://gpu2:8000: two replicas, the first with twice the share; conversations stay
    where their beginning is in memory, and one that fails is replaced by the other.

    Keys for providers, other names for models and fallbacks are [[upstreams]] in pagoda.toml; see docs/gateway.md.
    """
    upstreams = upstreams_of(replace(gateway, upstream=(*gateway.upstream, *(urls or ()))), config)
    names = ", ".join(one.name for one in upstreams)

    def greet(url: str) -> None:
        logger.info("listening", extra={"facts": {"url": f"{url}/v1", "upstreams": names, "page": url}})
        if server.log_format == "text":
            sys.stderr.write(f"\nPoint OpenAI clients at {url}/v1; {url}/health says how upstreams are.\n\n")

    run_gateway(gateway, server, cost, greet, upstreams=upstreams)
