"""`pagoda serve`: the model is read on one thread while the server is imported and answers /health on another."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from pagoda.backends.cores import usable_cores
from pagoda.cli.fetching import fetch
from pagoda.cli.options import with_settings
from pagoda.config import EngineSettings, ServerSettings
from pagoda.gateway.local.settings import LocalSettings, models_of, room_for, shared
from pagoda.gateway.run import run_gateway
from pagoda.gateway.settings import GatewaySettings
from pagoda.observe.cost import CostSettings
from pagoda.server.listen import allow_connections, bind, url
from pagoda.server.logs import set_up_logging
from pagoda.sources import check_name

if TYPE_CHECKING:
    from pagoda.engine.encoder_engine import LoadedEncoder
    from pagoda.engine.load import LoadedEngine
    from pagoda.server.service import Model

T = TypeVar("T")

logger = logging.getLogger("pagoda.server")

# Between threads that want the interpreter. The engine's comes back from a native step many times a second, and by
# default would wait 5 ms for the event loop's turn to end: as long as a step.
SWITCH_S = 0.0005
SHOW_CURSOR = b"\x1b[?25h\n"


@with_settings
def serve(
    engine: EngineSettings,
    server: ServerSettings,
    cost: CostSettings,
    more: Annotated[
        list[str] | None,
        typer.Argument(help="Further models: each in a process of its own, in memory when it is asked for.",
                       metavar="MODEL", show_default=False),
    ] = None,
    config: Path | None = None,
) -> None:  # fmt: skip
    """Answer OpenAI API requests over HTTP: chat, completions, models, tokens, health and metrics.

    SIGTERM or Ctrl-C finishes what runs, within --shutdown-timeout; a second one stops at once.

    pagoda serve A B C --models-max 2: three models, two in memory at once. A request names its model and waits until it
    is there; the one used longest ago makes room. See docs/models-host.md.
    """
    if models := models_of(engine, [engine.model, *more] if more else [], config):
        return serve_models(models, server, cost)
    set_up_logging(server.log_format, server.log_level)
    allow_connections(server.max_connections)
    sock = bind(server.host, server.port)
    address = url(sock)
    # One import after the other: side by side they would share one interpreter. The engine's first, so that the weights
    # are packed, which is native work, during the server's; the packing asks for the interpreter once a tensor.
    sys.setswitchinterval(SWITCH_S)
    from pagoda.engine.load import load_served

    def load() -> LoadedEngine | LoadedEncoder:
        return load_served(engine, source=fetch(engine.model, bars=server.log_format == "text"))

    loading = in_thread(load)
    from pagoda.server.run import run

    try:
        run(sock, server, loading, lambda model: _greet(model, address, server), cost)
    finally:
        logging.shutdown()
        if not loading.done():  # stopped while loading: do not wait for the thread
            if sys.stderr.isatty():
                os.write(2, SHOW_CURSOR)  # which the bars of a download hide
            os._exit(0)


def serve_models(models: tuple[LocalSettings, ...], server: ServerSettings, cost: CostSettings) -> None:
    """Several models, each in a process of its own."""
    most = room_for(models, server.models_max)
    for one in models:
        check_name(one.engine.model)

    def greet(url: str) -> None:
        names = ", ".join(one.name for one in models)
        logger.info("listening", extra={"facts": {"url": f"{url}/v1", "models": names, "in memory": most, "page": url}})

    run_gateway(GatewaySettings(), server, cost, greet, models=shared(models, most, usable_cores(), cost, server))


def in_thread(work: Callable[[], T]) -> Future[T]:
    """Run `work` on a thread that does not keep the process alive."""
    future: Future[T] = Future()

    def main() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=main, name="pagoda-load", daemon=True).start()
    return future


def _greet(model: Model, address: str, settings: ServerSettings) -> None:
    # What is here now stays: collections of garbage need not look through it, which would stop every thread for 50 ms.
    gc.collect()
    gc.freeze()
    pages = {"docs": f"{address}/docs", "page": address}
    logger.info("listening", extra={"facts": {"url": f"{address}/v1", "model": model.name} | pages})
    if settings.log_format == "text":
        key = " -H 'Authorization: Bearer YOUR_KEY'" if settings.api_keys else ""
        path, asks = "chat/completions", '"messages": [{"role": "user", "content": "Hello!"}]'
        if model.traits.is_encoder:
            path, asks = "embeddings", '"input": "Hello!"'
        body = f'{{"model": "{model.name}", {asks}}}'
        sys.stderr.write(f"\nTry it:\n\n  curl {address}/v1/{path}{key} \\\n")
        sys.stderr.write(f"    -H 'Content-Type: application/json' \\\n    -d '{body}'\n\n")
