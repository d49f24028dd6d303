"""When a wish cannot be met: the smallest changes that would meet it, tried out one by one.

What is given up is measured in doublings, so that unlike changes can be compared: half the context is 1, half the bits
of the KV cache 1, twice the devices 1 + 1 (they cost money, too), a device with twice the memory as much.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import log2

from pagoda.errors import ConfigError
from pagoda.hardware.device import THIS, Device
from pagoda.hardware.devices import devices
from pagoda.plan.cost.speed import smallest
from pagoda.plan.target import Target

FORMATS_DOWN = {
    "gpu": ("bf16", "fp8", "awq"),
    "other": ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k"),
}
MOST_UTILIZATION = 0.97
LEAST_CONTEXT = 256
MOST_GPUS = 16
NUM_CHANGES = 3


@dataclass(frozen=True, slots=True)
class Change:
    """One change. `text` says what to do; `size` is what it gives up, in doublings."""

    text: str
    size: float


def smallest_changes(target: Target) -> list[Change]:
    """The three smallest changes that would make `target` fit and meet its bounds."""
    found = sorted(_working(target), key=lambda change: change.size)
    if len(found) < NUM_CHANGES:
        known = {change.text for change in found}
        found += sorted(_with_smallest_format(target, known), key=lambda change: change.size)
    return found[:NUM_CHANGES]


def _with_smallest_format(target: Target, known: Collection[str]) -> Iterator[Change]:
    """A second change on top of the smallest usual format, where neither of them does alone."""
    name = FORMATS_DOWN["gpu" if target.device.kind == "gpu" else "other"][-1]
    smaller = target.on(format=name)
    if smaller.meets or smaller.weights.total >= target.weights.total:
        return
    ratio = log2(target.weights.total / smaller.weights.total)
    for change in _working(smaller):
        if change.text not in known:
            yield Change(f"--format {name} and {change.text}", ratio + change.size)


def _working(target: Target) -> Iterator[Change]:
    """Each kind of change in its smallest amount that works."""
    yield from _utilization(target)
    yield from _fewer_users(target)
    yield from _shorter_context(target)
    yield from _smaller_kv(target)
    yield from _smaller_format(target)
    yield from _more_devices(target)
    yield from _larger_device(target)


def _utilization(target: Target) -> Iterator[Change]:
    now = target.settings.memory_utilization
    if now < MOST_UTILIZATION and target.with_settings(memory_utilization=MOST_UTILIZATION).meets:
        yield Change(f"--memory-utilization {MOST_UTILIZATION} instead of {now:g}", log2(MOST_UTILIZATION / now))


def _fewer_users(target: Target) -> Iterator[Change]:
    wanted = target.settings.concurrency or 1
    room = min(target.memory.max_requests, wanted)
    if 1 <= room < wanted and target.with_settings(concurrency=room).meets:
        yield Change(f"{room} users at once instead of {wanted}", log2(wanted / room))


def _shorter_context(target: Target) -> Iterator[Change]:
    """A shorter context; prompt and output shrink in proportion where they would fill it."""
    now = target.context

    def shrunk(context: int) -> Target:
        share = min(1.0, context / (target.settings.prompt + target.settings.output))
        prompt = max(1, int(target.settings.prompt * share))
        output = max(1, min(target.settings.output, context - prompt))
        return target.with_settings(context=context, prompt=prompt, output=output)

    first = smallest(now, lambda less: now - less < LEAST_CONTEXT or shrunk(now - less).meets)
    if first is not None and now - first >= LEAST_CONTEXT:
        context = (now - first) // 16 * 16
        if shrunk(context).meets:
            yield Change(f"a context of {context:,} tokens instead of {now:,}", log2(now / context))


def _smaller_kv(target: Target) -> Iterator[Change]:
    kv_type = target.kv_type
    if kv_type in ("f16", "bf16", "f32", "int16"):
        smaller = "fp8" if target.device.kind == "gpu" else "int8"
        if target.with_settings(kv_type=smaller).meets:
            yield Change(f"--kv-type {smaller} instead of {kv_type}", 1.0 if kv_type != "f32" else 2.0)


def _smaller_format(target: Target) -> Iterator[Change]:
    formats = FORMATS_DOWN["gpu" if target.device.kind == "gpu" else "other"]
    for name in formats:
        smaller = target.on(format=name)
        ratio = target.weights.total / smaller.weights.total
        if ratio > 1.02 and smaller.meets:
            yield Change(f"--format {name} instead of {target.weights.format}", log2(ratio))
            return


def _more_devices(target: Target) -> Iterator[Change]:
    if target.device.interconnect_bytes_s is None:
        return
    tp = target.tp
    while tp * 2 * target.pp <= MOST_GPUS and all(kind.num_heads % (tp * 2) == 0 for kind in target.shape.attention):
        tp *= 2
        if target.on(tp=tp).meets:
            yield Change(f"--gpus {tp * target.pp} instead of {target.num_devices}", 1 + log2(tp / target.tp))
            return


def _larger_device(target: Target) -> Iterator[Change]:
    """The device of the table with the least memory that works, of the same kind if possible."""
    kinds = {target.device.kind} if target.device.id != THIS else {"gpu", "cpu"}
    others = sorted(
        (d for d in devices() if d.id != target.device.id),
        key=lambda d: (d.kind not in kinds, d.memory_bytes, -d.bandwidth_bytes_s),
    )
    for device in others:
        if _works_on(target, device):
            ratio = device.memory_bytes / max(1, target.device.memory_bytes)
            yield Change(f"--on {device.id} instead of {target.device.id}", 1 + abs(log2(ratio)))
            return


def _works_on(target: Target, device: Device) -> bool:
    try:
        return target.on(device, tp=1 if device.interconnect_bytes_s is None else target.tp).meets
    except ConfigError:  # it computes in none of the format's types
        return False
