"""Loading and unloading by hand, and the series of all models as one document."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pagoda.errors import EngineError, ModelNotFoundError, UnavailableError
from pagoda.gateway.local.pool import ModelPool
from pagoda.gateway.local.upstream import LocalUpstream
from pagoda.server.bodies import body_of
from pagoda.server.failures import json_response
from pagoda.server.routes import check_admin

METRICS_S = 2.0  # that a model's series may take to come


class ModelBody(BaseModel):
    """Which model is meant."""

    model: str


def pool_of(request: Request) -> ModelPool:
    pool: ModelPool | None = request.app.state.service.gateway_for_work().pool
    if pool is None:
        raise ModelNotFoundError("this gateway has no models of its own: they are its upstreams'")
    return pool


async def _named(request: Request) -> tuple[ModelPool, LocalUpstream]:
    check_admin(request)
    pool, name = pool_of(request), ModelBody.model_validate_json(await body_of(request)).model
    for one in pool.models:
        if one.name == name:
            return pool, one
    known = ", ".join(one.name for one in pool.models)
    raise ModelNotFoundError(f"The model `{name}` does not exist. There are {known}.")


async def load_model(request: Request) -> Response:
    """Bring a model into memory; another makes room for it where there is none. Answers when it is there."""
    pool, model = await _named(request)
    try:
        await pool.load(model)
    except EngineError as error:
        raise UnavailableError(f"{model.name} cannot be loaded: {error}", retry_after=model.again_in or 1.0) from None
    return json_response({"success": True, "model": model.name, "status": {"value": model.state}})


async def unload_model(request: Request) -> Response:
    """Take a model out of memory, when it has answered what it is answering. A request brings it back."""
    pool, model = await _named(request)
    await pool.unload(model)
    return json_response({"success": True, "model": model.name, "status": {"value": model.state}})


async def all_series(own: bytes, models: Iterable[LocalUpstream]) -> bytes:
    """`own` series in the text format, and those of all models that are in memory."""
    asked = (one.ask("GET", "/metrics", seconds=METRICS_S) for one in models if one.state == "loaded")
    texts = [answer[1] for answer in await asyncio.gather(*asked) if answer is not None and answer[0] == 200]
    return merge_series(text.decode() for text in (own, *texts)).encode()


def merge_series(texts: Iterable[str]) -> str:
    """Documents in Prometheus' text format as one: each family once, with the samples of all."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        family, is_new = "", False
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                name = line.split(" ", 3)[2]
                is_new = name not in heads or (is_new and name == family)
                family = name
                if is_new:
                    heads.setdefault(name, []).append(line)
            elif line and not line.startswith("#"):
                samples.setdefault(family, []).append(line)
    lines = [line for name, head in heads.items() for line in (*head, *samples.get(name, ()))]
    return "\n".join(lines) + "\n"


ROUTES = [
    *(Route(path, load_model, methods=["POST"]) for path in ("/v1/models/load", "/models/load")),
    *(Route(path, unload_model, methods=["POST"]) for path in ("/v1/models/unload", "/models/unload")),
]
