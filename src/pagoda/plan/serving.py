"""The flags of `pagoda serve` that give a plan's operating point, what to run before, and what stands against it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from pagoda.models.registry import known_family
from pagoda.plan.cost.speed import Speed
from pagoda.plan.target import Target
from pagoda.quantize.methods import METHODS

SPECULATION = {  # what `--speculation auto` does there
    "cpu": "Speculation is on: tokens are guessed from text that is there, where that pays. The figures are without.",
    "draft": "Speculation is on, with a draft model, as far as it pays. The figures are without.",
    "gpu": "Speculation is off, as it is on GPUs unless --draft-model names a model that guesses.",
}
SERVED_AS_IS = ("fp16", "bf16")  # what a hub's folder holds already
METHOD_NAMES = {"fp32": "f32"}  # where `pagoda quantize` spells a format differently


def serving(target: Target, point: Speed) -> dict[str, Any]:
    """The commands to run: `command` starts the server, `first` makes its model if it is not there yet (else None);
    `note` is a caution, or None; `speculation` says whether tokens are guessed ahead."""
    model, first = _model(target)
    flags = _flags(target, point)
    words = ["pagoda", "serve", model, *(word for pair in flags.items() for word in pair)]
    return {
        "flags": flags,
        "command": shlex.join(words),
        "first": first,
        "note": " ".join(_notes(target)) or None,
        "speculation": SPECULATION[_speculation(target)],
    }


def _speculation(target: Target) -> str:
    if target.draft is not None:
        return "draft"
    return "gpu" if target.device.kind == "gpu" else "cpu"


def _flags(target: Target, point: Speed) -> dict[str, str]:
    settings = target.settings
    device = "cuda" if target.device.kind == "gpu" else "cpu"
    return {
        "--device": device,
        **({"--tensor-parallel": str(target.tp)} if target.tp > 1 else {}),
        "--max-num-seqs": str(point.concurrency),
        "--max-context": str(target.context),
        "--max-batch-tokens": str(target.chunk),
        "--kv-type": target.kv_type,
        **({"--activation-type": settings.activation_type} if device == "cpu" else {}),
        "--kv-memory": f"{-(-point.concurrency * target.memory.kv_context_bytes // 2**20)}MiB",
        **({"--draft-model": _name(target.draft)} if target.draft else {}),
        "--memory-utilization": f"{settings.memory_utilization:g}",
    }


def model_name(target: Target) -> str:
    """What `pagoda serve` is given."""
    return _model(target)[0]


def _name(target: Target) -> str:
    return f"hf:{target.shape.hub}" if target.shape.hub else target.settings.model


def _model(target: Target) -> tuple[str, str | None]:
    """The model name for `pagoda serve`, and the command that makes its file, or None if nothing has to be made."""
    shape, format = target.shape, target.weights.format
    model = _name(target)
    if target.weights.is_stored or (shape.path is None and format in SERVED_AS_IS):
        return model, None
    method = METHOD_NAMES.get(format, format)
    if method not in METHODS:
        return model, None
    made = f"{shape.name.rsplit('/')[-1].removesuffix('.gguf')}-{format}{METHODS[method].suffix}"
    return made, shlex.join(["pagoda", "quantize", model, "--to", method, "-o", made])


def _notes(target: Target) -> Iterator[str]:
    """Sentences about what this version of the server does differently from the plan."""
    device, shape, format = target.device, target.shape, target.weights.format
    family = known_family(shape.architecture)
    if family is None or family.build is None:
        yield f"pagoda serve does not run {shape.architecture} models yet: the figures are those of another engine."
    elif not target.weights.is_stored and METHOD_NAMES.get(format, format) not in (*METHODS, *SERVED_AS_IS):
        yield f"pagoda quantize makes no {format}: the figures are those of a server that reads such weights."
    if device.kind == "apple":
        yield "The speeds are those of the Mac's GPU under llama.cpp; pagoda serve computes on its CPU cores."
    if device.kind == "gpu" and "NVIDIA" not in device.name:
        yield "pagoda serve runs on NVIDIA GPUs: on this one, the figures are those of a server that knows it."
    if target.pp > 1:
        yield (
            "pagoda serve has tensor parallelism (--tensor-parallel), not pipeline parallelism: the stages are for a "
            "server that has it (vLLM: --pipeline-parallel-size)."
        )
