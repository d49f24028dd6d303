"""Why a plan's figures are what they are: a sentence each, with the numbers that go into it."""

from __future__ import annotations

from pagoda.plan.cost.work import decode_step
from pagoda.plan.model.shapes import AttentionShape
from pagoda.plan.settings import USUAL_TPOT_MS, USUAL_TTFT_MS, PlanSettings
from pagoda.plan.target import MOST_USERS, Target
from pagoda.types import BLOCK_SIZE


def reasons(target: Target) -> dict[str, str]:
    """The sentence for each figure, by its name in the plan."""
    return {**_memory(target), **_roofline(target), **_speed(target), "concurrency": _concurrency(target)}


def _memory(target: Target) -> dict[str, str]:
    shape, memory, settings = target.shape, target.memory, target.settings
    tokens = settings.prompt + settings.output
    each = " + ".join(
        f"{kind.num_keeping} layers × {_per_layer(kind)}" + (f" within {kind.window} tokens" if kind.window else "")
        for kind in shape.attention
    )
    split = f", shared out to {target.kv_shards} devices" if target.kv_shards > 1 else ""
    here = "as the engine packs them, with the embedding table of the file" if target.is_here else "tensor by tensor"
    return {
        "weights_bytes": f"{shape.parameters:,} parameters in {target.weights.format} ({target.weights.about}), {here}"
        + (f", on each of {target.num_devices} devices" if target.num_devices > 1 else "")
        + (f"; with {target.draft.shape.name}, which drafts, its KV counted as well" if target.draft else ""),
        "kv_bytes_per_token": f"{each} in {target.kv_type}{split}",
        "kv_bytes_per_request": f"{tokens:,} tokens in blocks of {BLOCK_SIZE}"
        + (f", and a state of {shape.state_elements:,} numbers in 32 bits" if shape.state_elements else ""),
        "buffers_bytes": f"values of {target.chunk} tokens of one step, and logits in 32 bits",
        "runtime_bytes": "CUDA context, kernels, workspaces and graphs"
        if target.device.kind == "gpu"
        else "the process with its modules, and the tokenizer's tables",
        "max_concurrent_requests": f"({memory.usable_bytes / 1e9:.2f} GB usable − {memory.fixed_bytes / 1e9:.2f} GB "
        f"for weights, buffers and runtime) / {memory.kv_request_bytes / 1e6:,.1f} MB of KV a request",
    }


def _per_layer(kind: AttentionShape) -> str:
    if kind.latent_dim:
        return f"{kind.latent_dim} numbers of a latent"
    return f"{kind.num_kv_heads} KV heads × ({kind.key_dim} + {kind.value_dim})"


def _roofline(target: Target) -> dict[str, str]:
    peak, bandwidth = target.ridge * target.device.bandwidth_bytes_s, target.device.bandwidth_bytes_s
    side = "below" if target.decode_intensity < target.ridge else "above"
    batch = target.compute_bound_batch
    gain = "a larger batch is nearly free, more FLOP/s are no help" if side == "below" else "arithmetic runs out"
    decode, prefill, ridge = target.decode_intensity, target.prefill_intensity, target.ridge
    return {
        "ridge_flops_per_byte": f"{peak / 1e12:,.3g} T{target.compute_type} operations/s over "
        f"{bandwidth / 1e9:,.1f} GB/s",
        "prefill_bound": f"{prefill:,.0f} FLOPs for each byte read, the ridge is at {ridge:,.0f}",
        "decode_bound": f"{decode:.2f} FLOPs for each byte read at batch 1, {side} the ridge at {ridge:,.0f}: {gain}",
        "decode_compute_bound_from_batch": f"from {batch} sequences on, arithmetic takes longer than reading"
        if batch
        else "no batch: every sequence brings KV to read as fast as it brings arithmetic",
    }


def _speed(target: Target) -> dict[str, str]:
    settings = target.settings
    step = target.costs.step(decode_step(1, settings.prompt + settings.output / 2))
    parts = f"{step.work.bytes / 1e9:.2f} GB to read"
    if step.communication_s:
        parts += f", {1e6 * step.communication_s:.0f} µs of communication"
    return {
        "ttft_ms": f"{settings.prompt:,} tokens, {target.chunk} a step, alone: "
        f"{target.prefill_flops / 1e12:,.2f} TFLOP",
        "tpot_ms": f"{parts}, {1000 * step.overhead_s:.2f} ms around the step; the {step.bound} side binds",
        "output_tokens_per_s": "users × output over the time of one answer, while others' prompts pass through the "
        "same steps",
        "usd_per_million_output_tokens": "the price of the time that decode takes, over the tokens it makes",
    }


def _concurrency(target: Target) -> str:
    """Why the plan runs this many users at once."""
    settings, users = target.settings, target.users
    if settings.concurrency:
        return "as asked for"
    if users < 1:
        return "not even one"
    given = " and ".join(f"--{name} {ms:g}" for name, ms in _bounds(settings).items())
    if users == target.memory.max_requests:
        return "as many as memory holds" + (f"; {given} would allow more" if given else "")
    if users == MOST_USERS:
        return f"{MOST_USERS}, the most that is planned into one server; memory holds {target.memory.max_requests:,}"
    if late := _late(target, users):
        return f"one alone, with {late}; more would wait longer"
    if _late(target, users + 1) or given:
        usual = _usual(settings)
        flags = " and ".join(f"--{name}" for name in usual)
        others = f" ({flags} set{'' if len(usual) > 1 else 's'} another)" if usual else ""
        return f"the most that keep {' and '.join((*filter(None, [given]), *usual.values()))}{others}"
    return "from there on decode is bound by arithmetic: more users would only wait longer"


def _usual(settings: PlanSettings) -> dict[str, str]:
    """The bounds that are not given, in words."""
    words = {"ttft": f"{USUAL_TTFT_MS / 1000:g} s to the first token", "tpot": f"{USUAL_TPOT_MS:g} ms between tokens"}
    return {name: text for name, text in words.items() if name not in _bounds(settings)}


def _late(target: Target, users: int) -> str:
    """Which of the usual bounds so many users miss; empty: none."""
    found = target.at(users)
    misses = {
        "ttft": f"{found.ttft_s:,.1f} s to the first token" if 1000 * found.ttft_s > USUAL_TTFT_MS else "",
        "tpot": f"{1000 * found.tpot_s:,.0f} ms between tokens" if 1000 * found.tpot_s > USUAL_TPOT_MS else "",
    }
    return " and ".join(text for name, text in misses.items() if text and name not in _bounds(target.settings))


def _bounds(settings: PlanSettings) -> dict[str, float]:
    return {name: ms for name, ms in (("ttft", settings.ttft), ("tpot", settings.tpot)) if ms is not None}
