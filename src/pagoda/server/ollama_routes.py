"""Ollama's API: its models are those that are served here, under their names or with `:latest` behind them."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import pagoda
from pagoda.errors import RequestError
from pagoda.server.dialects.ollama import LATEST, OllamaAnswer, OllamaGenerateAnswer
from pagoda.server.dialects.ollama_schema import OllamaShowRequest
from pagoda.server.failures import json_response
from pagoda.server.generation import answer_reading, read_body, service_of
from pagoda.server.infill import find_fim_tokens
from pagoda.server.json_body import parse_json
from pagoda.server.service import Model
from pagoda.text import reasoning


async def chat(request: Request) -> Response:
    """Answer a conversation."""
    model = service_of(request).model_for_work()
    reading = await read_body(request, model, "ollama_chat")
    return await answer_reading(request, model, OllamaAnswer, "ollama", reading)


async def generate(request: Request) -> Response:
    """Answer a prompt."""
    model = service_of(request).model_for_work()
    reading = await read_body(request, model, "ollama_generate")
    return await answer_reading(request, model, OllamaGenerateAnswer, "ollama", reading)


async def tags(request: Request) -> Response:
    """The models served here."""
    model = service_of(request).model()
    return json_response({"models": [_described(model, name) for name in (model.name, *model.store.names)]})


async def running(request: Request) -> Response:
    """The models that are loaded: all that there are."""
    model = service_of(request).model()
    loaded = {"expires_at": "9999-12-31T23:59:59Z", "size_vram": 0, "context_length": model.max_context}
    return json_response({"models": [_described(model, model.name) | loaded]})


async def version(request: Request) -> Response:
    """Pagoda's version."""
    return json_response({"version": pagoda.__version__})


async def show(request: Request) -> Response:
    """One model."""
    service = service_of(request)
    body = OllamaShowRequest.model_validate(parse_json(await request.body()))
    name = (body.model or body.name or "").removesuffix(LATEST)
    if not name:
        raise RequestError("model is missing", param="model")
    model = service.model(name)
    template = model.loaded.chat_template
    source = "" if template is None else template.source
    capabilities = ["completion"]
    capabilities += ["tools"] if template is not None else []
    capabilities += ["thinking"] if reasoning.reasoning_of(source) else []
    capabilities += ["insert"] if find_fim_tokens(model.tokenizer) else []
    about = _described(model, name)
    return json_response(
        {
            "modified_at": about["modified_at"],
            "details": about["details"],
            "template": source,
            "model_info": {"general.architecture": "pagoda", "pagoda.context_length": model.max_context},
            "capabilities": capabilities,
        }
    )


def _described(model: Model, name: str) -> dict[str, Any]:
    """A model as Ollama lists it. What Pagoda does not know of it is empty."""
    modified = datetime.fromtimestamp(model.created, timezone.utc).isoformat().replace("+00:00", "Z")
    details = {
        "parent_model": "" if name == model.name else model.name,
        "format": "",
        "family": "",
        "families": [],
        "parameter_size": "",
        "quantization_level": "",
    }
    digest = hashlib.sha256(name.encode()).hexdigest()  # tells models apart
    return {"name": name, "model": name, "modified_at": modified, "size": 0, "digest": digest, "details": details}


ROUTES = [
    Route("/api/chat", chat, methods=["POST"]),
    Route("/api/generate", generate, methods=["POST"]),
    Route("/api/tags", tags),
    Route("/api/ps", running),
    Route("/api/show", show, methods=["POST"]),
    Route("/api/version", version),
]
