"""The routes that change which adapters are served; they need the admin key.

Bodies and answers of `/v1/load_lora_adapter` and `/v1/unload_lora_adapter` are vLLM's. `/v1/alias_lora_adapter` is
Pagoda's own: it moves a name to another adapter that is loaded; what is being answered goes on with the old one.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pagoda.errors import CapacityError, FormatError, RequestError
from pagoda.server.bodies import body_of
from pagoda.server.failures import json_response
from pagoda.server.json_body import parse_json
from pagoda.server.routes import check_admin, service_of

logger = logging.getLogger("pagoda.server")

B = TypeVar("B", bound=BaseModel)
LONGEST_NAME = 256


class LoadBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    lora_name: str = Field(min_length=1, max_length=LONGEST_NAME)
    lora_path: str = Field(min_length=1, max_length=4096)
    load_inplace: bool = False  # an adapter of this name is replaced
    base_model_name: str | None = None


class UnloadBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    lora_name: str = Field(min_length=1, max_length=LONGEST_NAME)
    lora_int_id: int | None = None  # vLLM's own number


class AliasBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    lora_name: str = Field(min_length=1, max_length=LONGEST_NAME)
    target: str = Field(min_length=1, max_length=LONGEST_NAME)


async def _body(request: Request, shape: type[B]) -> B:
    check_admin(request)
    return shape.model_validate(parse_json(await body_of(request)))


def _log(what: Literal["loaded", "unloaded", "moved"], name: str, **facts: Any) -> None:
    logger.info("adapter %s", what, extra={"facts": {"adapter": name, **facts}})


async def load_adapter(request: Request) -> Response:
    """Read an adapter from a path of the server's machine, and serve it by its name."""
    body = await _body(request, LoadBody)
    model = service_of(request).model_for_work()
    if body.lora_name == model.name:
        raise RequestError(f"{body.lora_name!r} is the model's own name", param="lora_name")
    path = Path(body.lora_path).expanduser()
    if not path.exists():
        raise HTTPException(404, f"no adapter at {body.lora_path}")
    try:
        version = await asyncio.to_thread(model.store.add, body.lora_name, path, replace=body.load_inplace)
    except (FormatError, CapacityError) as error:
        raise RequestError(str(error), param="lora_path") from error
    _log("loaded", body.lora_name, path=str(path), digest=version.digest)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


async def unload_adapter(request: Request) -> Response:
    """Forget an adapter's name. What is being answered with it goes on."""
    body = await _body(request, UnloadBody)
    service_of(request).model().store.remove(body.lora_name)
    _log("unloaded", body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


async def alias_adapter(request: Request) -> Response:
    """From the next request on, a name means the adapter that another name means."""
    body = await _body(request, AliasBody)
    model = service_of(request).model()
    if body.lora_name == model.name:
        raise RequestError(f"{body.lora_name!r} is the model's own name", param="lora_name")
    version = model.store.point(body.lora_name, body.target)
    _log("moved", body.lora_name, digest=version.digest)
    return json_response({"lora_name": body.lora_name, "digest": version.digest, "path": str(version.path)})


ROUTES = [
    Route("/v1/load_lora_adapter", load_adapter, methods=["POST"]),
    Route("/v1/unload_lora_adapter", unload_adapter, methods=["POST"]),
    Route("/v1/alias_lora_adapter", alias_adapter, methods=["POST"]),
]
