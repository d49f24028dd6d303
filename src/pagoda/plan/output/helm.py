"""A plan as values of the Helm chart: which model, what a replica takes, and the settings of the operating point."""

from __future__ import annotations

import json
import math
from typing import Any

from pagoda.backends.cores import usable_cores
from pagoda.errors import CapacityError
from pagoda.plan.serving import model_name, serving
from pagoda.plan.target import Target

MIB = 1 << 20
STEP_MIB = 256  # memory is asked for in multiples of this
MARGIN = 1.1  # beside what is planned: threads' stacks, and what the allocator holds back
GPU_HOST_BYTES = 4 << 30  # of the process beside the file that is placed on the GPU
GPU_CPUS = 4
AS_TEXT = ("device", "kv-type", "activation-type", "kv-memory")


def helm_values(target: Target) -> dict[str, Any]:
    """Values for the plan's users. CapacityError where it does not fit."""
    if not target.meets:
        raise CapacityError(
            f"{target.shape.name} does not fit {target.device.name} as planned; `pagoda plan` without --helm-values "
            "says what would"
        )
    found = serving(target, target.at(target.users))
    settings = {flag.removeprefix("--"): _value(flag.removeprefix("--"), text) for flag, text in found["flags"].items()}
    on_gpu = target.device.kind == "gpu"
    memory = _mebibytes(target.weights.total + GPU_HOST_BYTES if on_gpu else _bytes_here(target))
    cpus = str(GPU_CPUS if on_gpu else usable_cores())
    return {
        "model": {"name": model_name(target)},
        "resources": {"requests": {"cpu": cpus, "memory": f"{memory}Mi"}, "limits": {"memory": f"{memory}Mi"}},
        "gpu": {"count": target.num_devices if on_gpu else 0},
        "settings": settings,
    }


def as_yaml(values: dict[str, Any], comment: str) -> str:
    """The values as YAML, after a comment of one line."""
    lines = [f"# {comment}"]
    for key, value in values.items():
        lines += [f"{key}:", *(f"  {name}: {json.dumps(inner)}" for name, inner in value.items())]
    return "\n".join(lines)


def _bytes_here(target: Target) -> float:
    return MARGIN * (target.memory.fixed_bytes + target.users * target.memory.kv_context_bytes)


def _mebibytes(num_bytes: float) -> int:
    return math.ceil(num_bytes / MIB / STEP_MIB) * STEP_MIB


def _value(name: str, text: str) -> str | int | float:
    if name in AS_TEXT:
        return text
    return float(text) if "." in text else int(text)
