"""llama-server's own routes: /completion, /infill, /apply-template, /props, /slots."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import pagoda
from pagoda.engine.snapshot import EngineSnapshot, SequenceState, take_snapshot
from pagoda.errors import EngineError
from pagoda.server.dialects.llama import LlamaAnswer
from pagoda.server.failures import json_response
from pagoda.server.generation import generate, json_read, service_of
from pagoda.server.service import Model
from pagoda.types import SamplingParams

SNAPSHOT_S = 2.0  # that a step may take before the answer goes without its sequences
DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "presence_penalty", "frequency_penalty")


async def completion(request: Request) -> Response:
    """Continue a prompt, or several."""
    return await generate(request, LlamaAnswer, "cmpl", "llama_completion")


async def infill(request: Request) -> Response:
    """What stands between two texts."""
    return await generate(request, LlamaAnswer, "cmpl", "infill")


async def apply_template(request: Request) -> Response:
    """A conversation as the model's template renders it."""
    return await json_read(request, "template")


async def props(request: Request) -> Response:
    """What is served, and how."""
    model = service_of(request).model()
    template = model.loaded.chat_template
    params = SamplingParams(max_tokens=None)
    settings = {name: getattr(params, name) for name in DEFAULTS}
    settings |= {"repeat_penalty": params.repetition_penalty, "n_predict": -1, "seed": -1}
    return json_response(
        {
            "default_generation_settings": {"params": settings, "n_ctx": model.max_context},
            "total_slots": _num_slots(model),
            "model_alias": model.name,
            "model_path": model.name,  # where it lies is nobody's business
            "modalities": {"vision": False, "audio": False},
            "chat_template": "" if template is None else template.source,
            "build_info": f"pagoda {pagoda.__version__}",
        }
    )


async def slots(request: Request) -> Response:
    """The places for sequences, and how far those are that are taken."""
    model = service_of(request).model()
    snapshot = EngineSnapshot((), ())
    with suppress(EngineError, asyncio.TimeoutError, TimeoutError):
        asked = asyncio.wrap_future(model.engine.ask(take_snapshot))
        snapshot = await asyncio.wait_for(asked, SNAPSHOT_S)
    running = [sequence for sequence in snapshot.sequences if sequence.phase != "waiting"]
    places = max(_num_slots(model), len(running))
    return json_response([_slot(i, model, running[i] if i < len(running) else None) for i in range(places)])


def _slot(number: int, model: Model, sequence: SequenceState | None) -> dict[str, Any]:
    slot: dict[str, Any] = {"id": number, "n_ctx": model.max_context, "is_processing": sequence is not None}
    if sequence is None:
        return slot
    computed = min(sequence.computed_tokens, sequence.prompt_tokens)
    return slot | {
        "n_prompt_tokens": sequence.prompt_tokens,
        "n_prompt_tokens_processed": computed,
        "n_prompt_tokens_cache": sequence.cached_tokens,
        "next_token": [{"n_decoded": sequence.output_tokens}],
    }


def _num_slots(model: Model) -> int:
    facts = model.history.facts(num_streams=model.bridge.num_streams, slow_streams=model.bridge.num_slow_streams)
    return facts.max_num_seqs


ROUTES = [
    Route("/completion", completion, methods=["POST"]),
    Route("/completions", completion, methods=["POST"]),
    Route("/infill", infill, methods=["POST"]),
    Route("/apply-template", apply_template, methods=["POST"]),
    Route("/props", props),
    Route("/slots", slots),
]
