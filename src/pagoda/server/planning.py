"""GET /plan: the plan of `pagoda plan --json` for the model served here, on this machine, beside what the engine took.

Query parameters are the flags of `pagoda plan`: /plan?prompt=512&output=128&tpot=50. Nothing is measured while requests
are served: of the kernels, what an earlier `pagoda plan` measured is used, else the machine's efficiency as `pagoda
doctor` measured it. A machine that neither has ever measured has no plan.
"""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from pagoda.errors import ConfigError, RequestError
from pagoda.server.ceilings import FromFiles
from pagoda.server.failures import json_response
from pagoda.server.routes import service_of
from pagoda.settings import fields

ASKED = ("prompt", "output", "context", "concurrency", "ttft", "tpot", "price", "batch")


async def plan(request: Request) -> Response:
    """What this machine can do with the model. 400 for a parameter that is none, or makes no sense, and as long as the
    machine has not been measured."""
    loaded = service_of(request).model().loaded
    if not isinstance(loaded, FromFiles):
        raise RequestError("this model has no files to plan from", code="no_plan")
    options = dict(request.query_params)
    try:
        return json_response(await run_in_threadpool(_report, loaded, options))
    except ConfigError as error:
        raise RequestError(str(error), code="invalid_plan") from None


def _report(loaded: FromFiles, options: dict[str, str]) -> dict[str, Any]:
    from pagoda.hardware.host import read_hardware
    from pagoda.hardware.machine import remembered_measurement, this_device
    from pagoda.plan.model.models import shape_of_file
    from pagoda.plan.model.weights import default_format
    from pagoda.plan.planner import Plan
    from pagoda.plan.settings import PlanSettings, check
    from pagoda.plan.target import make_target

    known = {field.name: field for field in fields(PlanSettings) if field.name in ASKED}
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown parameter {name!r}; known are {', '.join(known)}")
    engine = loaded.settings
    assert engine.kv_type != "auto"
    values = {name: known[name].parse(value, name) for name, value in options.items()}
    settings = PlanSettings(
        model=str(loaded.source.path),
        kv_type=engine.kv_type,
        activation_type=engine.activation_type,
        max_batch_tokens=engine.max_batch_tokens,
        memory_utilization=engine.memory_utilization,
        **values,
    )
    check(settings)
    shape = shape_of_file(loaded.source.path).named(loaded.source.name)
    hardware = read_hardware()
    measured = remembered_measurement(hardware)
    if measured is None:
        raise RequestError(
            "this machine has not been measured, and is not while requests are served: run pagoda doctor once",
            code="not_measured",
        )
    here = this_device(measured, hardware)
    target = make_target(shape, here, default_format(shape, here.kind), settings, probe=False)
    return {**Plan(shape, settings, (target,)).to_json(), "engine": _engine(loaded)}


def _engine(loaded: FromFiles) -> dict[str, Any]:
    """What the running engine has really taken."""
    found = loaded.kv_plan
    return {
        "weights_bytes": found.footprint.weight_bytes,
        "buffers_bytes": found.footprint.buffer_bytes,
        "kv_bytes": found.kv_bytes,
        "kv_blocks": list(found.num_blocks),
        "max_context_tokens": found.max_context,
        "max_concurrent_full_contexts": round(found.num_seqs, 2),
        "max_num_seqs": loaded.settings.max_num_seqs,
    }
