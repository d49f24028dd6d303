"""A plan as data: every figure with its unit in the name, every derived one with its reason."""

from __future__ import annotations

from typing import Any

from pagoda.plan.changes import smallest_changes
from pagoda.plan.cost.memory import Waste, usual_lengths, waste
from pagoda.plan.cost.speed import Speed
from pagoda.plan.model.shapes import ModelShape
from pagoda.plan.output.reasons import reasons
from pagoda.plan.serving import serving
from pagoda.plan.settings import PlanSettings, read_lengths
from pagoda.plan.target import Target

PROMPTS = (128, 512, 1024, 2048, 4096, 8192)
MILLION = 1_000_000


def model_json(shape: ModelShape) -> dict[str, Any]:
    return {
        "name": shape.name,
        "architecture": shape.architecture,
        "parameters": shape.parameters,
        "active_parameters": shape.active_parameters,
        "layers": shape.num_layers,
        "max_context_tokens": shape.max_context,
        "kv_numbers_per_token": shape.kv_elements,
        "state_numbers": shape.state_elements,
        "file_bytes": shape.file_bytes,
        "assumptions": list(shape.assumptions),
    }


def request_json(settings: PlanSettings) -> dict[str, Any]:
    return {
        "prompt_tokens": settings.prompt,
        "output_tokens": settings.output,
        "context_tokens": settings.context or settings.prompt + settings.output,
        "kv_type": settings.kv_type,
        "activation_type": settings.activation_type,
        "concurrency": settings.concurrency,
        "ttft_bound_ms": settings.ttft,
        "tpot_bound_ms": settings.tpot,
    }


def plan_json(target: Target) -> dict[str, Any]:
    """One plan. What makes no sense where the model does not fit is null."""
    runs = target.fits and target.users >= 1
    point = target.at(target.users) if runs else None
    return {
        "device": _device(target),
        "format": {
            "name": target.weights.format,
            "about": target.weights.about,
            "weights_bytes": target.weights.total,
            "bits_per_parameter": round(8 * target.weights.total / target.shape.parameters, 3),
        },
        "memory": _memory(target),
        "kv_waste": _waste(target),
        "roofline": _roofline(target),
        "latency": _latency(target),
        "throughput": [_speed(target, target.at(batch)) for batch in target.settings.batch],
        "fits": target.fits,
        "meets_bounds": target.meets,
        "does_not_fit": None if target.meets else _refusal(target),
        "operating_point": None if point is None else _speed(target, point),
        "cost": None if point is None else _cost(target, point),
        "serve": None if point is None else serving(target, point),
        "speeds_from": target.costs.source,
        "doubts": list(dict.fromkeys(target.device.doubts + target.costs.doubts)),
        "reasons": reasons(target),
    }


def _device(target: Target) -> dict[str, Any]:
    device = target.device
    return {
        "id": device.id,
        "name": device.name,
        "kind": device.kind,
        "count": target.num_devices,
        "tensor_parallel": target.tp,
        "pipeline_parallel": target.pp,
        "memory_bytes": device.memory_bytes,
        "bandwidth_bytes_per_s": device.bandwidth_bytes_s,
        "compute_type": target.compute_type,
        "peak_flops_per_s": target.ridge * device.bandwidth_bytes_s,
        "price_usd_per_h": target.price_usd_h,
    }


def _memory(target: Target) -> dict[str, Any]:
    memory = target.memory
    return {
        "kv_type": target.kv_type,
        "weights_bytes": memory.weight_bytes,
        "kv_bytes_per_token": round(memory.kv_token_bytes, 1),
        "kv_bytes_per_request": memory.kv_request_bytes,
        "kv_bytes_per_full_context": memory.kv_context_bytes,
        "buffers_bytes": memory.buffer_bytes,
        "runtime_bytes": memory.runtime_bytes,
        "usable_bytes": memory.usable_bytes,
        "kv_room_bytes": memory.kv_room_bytes,
        "max_concurrent_requests": memory.max_requests,
        "max_concurrent_full_contexts": memory.max_full_requests,
        "total_bytes_for_one_request": memory.total_bytes(1),
        "missing_bytes": target.missing_bytes,
    }


def kv_waste(target: Target) -> Waste:
    """What static reservation of the whole context would waste against paging, for the user's lengths or usual ones."""
    settings = target.settings
    context = target.settings.context or target.shape.max_context
    if settings.lengths is not None:
        return waste(read_lengths(settings.lengths), context, str(settings.lengths))
    source = "lengths spread exponentially around --prompt and --output"
    return waste(usual_lengths(settings.prompt, settings.output, context), context, source)


def _waste(target: Target) -> dict[str, Any]:
    found = kv_waste(target)
    return {
        "reserved_context_tokens": target.settings.context or target.shape.max_context,
        "mean_tokens_held": round(found.mean_tokens, 1),
        "static_reservation_share": round(found.static_share, 4),
        "paged_share": round(found.paged_share, 4),
        "lengths_from": found.source,
    }


def _roofline(target: Target) -> dict[str, Any]:
    return {
        "ridge_flops_per_byte": round(target.ridge, 2),
        "prefill_flops_per_byte": round(target.prefill_intensity, 2),
        "prefill_bound": _side(target.prefill_intensity, target.ridge),
        "decode_flops_per_byte": round(target.decode_intensity, 3),
        "decode_bound": _side(target.decode_intensity, target.ridge),
        "decode_compute_bound_from_batch": target.compute_bound_batch,
    }


def _side(intensity: float, ridge: float) -> str:
    return "compute" if intensity > ridge else "memory"


def _latency(target: Target) -> dict[str, Any]:
    prompts = sorted({p for p in PROMPTS if p < target.shape.max_context} | {target.settings.prompt})
    each = [target.with_settings(prompt=prompt) for prompt in prompts]
    ideal = Target(target.shape, target.device, target.weights, target.settings, target.tp, target.pp, target.ceilings)
    return {
        "ttft_ms": _ms(target.ttft_s),
        "ttft_ceiling_ms": _ms(ideal.ttft_s),
        "tpot_ms": _ms(target.tpot_s),
        "tpot_ceiling_ms": _ms(ideal.tpot_s),
        "ttft_by_prompt": [
            {"prompt_tokens": prompt, "ttft_ms": _ms(one.ttft_s)} for prompt, one in zip(prompts, each, strict=True)
        ],
    }


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


def _speed(target: Target, found: Speed) -> dict[str, Any]:
    return {
        "concurrency": found.concurrency,
        "fits": found.concurrency <= target.memory.max_requests,
        "ttft_ms": _ms(found.ttft_s),
        "tpot_ms": _ms(found.tpot_s),
        "decode_step_ms": _ms(found.decode_step_s),
        "output_tokens_per_s": round(found.output_tok_s, 2),
        "input_tokens_per_s": round(found.input_tok_s, 2),
        "bound": found.bound,
    }


def _cost(target: Target, point: Speed) -> dict[str, Any] | None:
    """USD a million tokens. Prefill and decode are charged the time that they take."""
    price = target.price_usd_h
    if price is None:
        return None
    alone = target.ttft_s * point.concurrency
    share = alone / (alone + target.settings.output * point.decode_step_s)
    return {
        "price_usd_per_h": round(price, 4),
        "usd_per_million_output_tokens": round(price * (1 - share) / (3600 * point.output_tok_s) * MILLION, 4),
        "usd_per_million_input_tokens": round(price * share / (3600 * point.input_tok_s) * MILLION, 4),
        "usd_per_million_tokens": round(price / (3600 * (point.output_tok_s + point.input_tok_s)) * MILLION, 4),
        "prefill_share_of_time": round(share, 4),
    }


def _refusal(target: Target) -> dict[str, Any]:
    """Why it is impossible, by how much, and the smallest changes that would make it possible."""
    changes = smallest_changes(target)
    return {
        "problem": problem(target),
        "missing_bytes": target.missing_bytes,
        "changes": [change.text for change in changes],
        "otherwise": None if changes else _otherwise(target),
    }


def _otherwise(target: Target) -> str:
    """What to do where no change that was tried is enough."""
    if target.fits:
        return (
            "no smaller format, second device or other device of the table keeps these bounds: raise them, shorten "
            "--prompt, or take a smaller model"
        )
    return "no single change does; combine a smaller format with more devices"


def problem(target: Target) -> str:
    """What does not fit or which bound is not met, in one sentence."""
    if not target.fits:
        wanted = target.settings.concurrency or 1
        users = f"{wanted} requests" if wanted > 1 else "one request"
        return (
            f"{target.shape.name} in {target.weights.format} with {users} does not fit on "
            f"{_count(target)}{target.device.name}: {_gb(target.missing_bytes)} too much"
        )
    alone = target.at(1)
    misses = []
    if target.settings.ttft is not None and 1000 * alone.ttft_s > target.settings.ttft:
        misses.append(f"TTFT is {1000 * alone.ttft_s:,.0f} ms, {target.settings.ttft:g} were asked for")
    if target.settings.tpot is not None and 1000 * alone.tpot_s > target.settings.tpot:
        misses.append(f"TPOT is {1000 * alone.tpot_s:,.1f} ms, {target.settings.tpot:g} were asked for")
    return f"even one user alone misses the bounds on {target.device.name}: {'; '.join(misses)}"


def _count(target: Target) -> str:
    return f"{target.num_devices} × " if target.num_devices > 1 else ""


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f} GB"
