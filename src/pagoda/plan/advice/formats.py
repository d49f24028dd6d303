"""Which weight format for a device and a goal, with memory, speed and quality of the alternatives.

Production GPU: FP16 where it leaves room for many requests, else AWQ. Consumer GPU: AWQ or GPTQ. CPU: GGUF Q4_K_M.
Edge: Q2_K. A base for LoRA: BF16, unquantized.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pagoda.hardware.device import Device
from pagoda.plan.advice.quality import QUALITY, FormatQuality
from pagoda.plan.cost.work import Workload, decode_step
from pagoda.plan.model.shapes import ModelShape
from pagoda.plan.model.weights import weights_in

Goal = Literal["serve", "edge", "lora"]
Place = Literal["production GPU", "consumer GPU", "CPU", "edge", "LoRA base"]

ROOMY = 0.5  # of the memory: 16-bit weights within it leave as much again for KV and buffers
FITS = 0.9
CANDIDATES: dict[Place, tuple[str, ...]] = {
    "production GPU": ("fp16", "fp8", "awq", "gptq"),
    "consumer GPU": ("awq", "gptq", "fp16", "q4_k_m"),
    "CPU": ("q4_k_m", "q5_k_m", "q8_0", "q4_0", "q2_k", "bf16"),
    "edge": ("q2_k", "q3_k_m", "q4_k_m", "q8_0"),
    "LoRA base": ("bf16", "nf4-dq"),
}


@dataclass(frozen=True, slots=True)
class FormatOption:
    """One format on the device. `step_s`: seconds to read all weights once, the least that a decode step of one
    sequence takes."""

    format: str
    num_bytes: int
    share: float  # of the device's memory
    fits: bool
    step_s: float
    quality: FormatQuality


@dataclass(frozen=True, slots=True)
class FormatAdvice:
    """`pick` is None when nothing fits; `options` begin with the usual one."""

    device: str
    place: Place
    pick: str | None
    reasons: tuple[str, ...]
    options: tuple[FormatOption, ...]


def place_of(device: Device, goal: Goal) -> Place:
    """What kind of place a device is for a goal."""
    if goal == "lora":
        return "LoRA base"
    if goal == "edge" or device.kind == "board":
        return "edge"
    if device.kind != "gpu":
        return "CPU"
    return "consumer GPU" if "RTX" in device.name else "production GPU"


def advise_format(shape: ModelShape, device: Device, goal: Goal = "serve") -> FormatAdvice:
    """The format to take, why, and what the others would cost."""
    place = place_of(device, goal)
    wanted = [name for name in CANDIDATES[place] if name != "fp8" or "fp8" in device.flops]
    options = tuple(_option(shape, device, name) for name in wanted)
    pick = _pick(place, options)
    return FormatAdvice(device.name, place, pick, tuple(_reasons(place, pick, options, device)), options)


def _option(shape: ModelShape, device: Device, name: str) -> FormatOption:
    weights = weights_in(shape, name)
    share = weights.total / device.memory_bytes
    read = Workload(shape, weights, "f16").of(decode_step(1, 1)).weight_bytes
    step_s = read / (device.bandwidth_bytes_s * device.efficiency.decode_bandwidth) + device.efficiency.step_overhead_s
    return FormatOption(name, weights.total, share, share <= FITS, step_s, QUALITY[name])


def _pick(place: Place, options: tuple[FormatOption, ...]) -> str | None:
    """The usual format of the place if it fits, else the best one that fits; None if none does."""
    by_name = {option.format: option for option in options}
    if place == "production GPU" and by_name["fp16"].share > ROOMY and by_name["awq"].fits:
        return "awq"
    if options[0].fits:
        return options[0].format
    fitting = [option for option in options if option.fits]
    return min(fitting, key=lambda option: option.num_bytes).format if fitting else None


def _reasons(place: Place, pick: str | None, options: tuple[FormatOption, ...], device: Device) -> Iterator[str]:
    by_name = {option.format: option for option in options}
    if pick is None:
        least = min(options, key=lambda option: option.num_bytes)
        size, room = least.num_bytes / 1e9, device.memory_bytes / 1e9
        yield f"Nothing fits: even {least.format} takes {size:.1f} GB, and there are {room:.1f}."
        yield "Take a smaller model, a larger device, or several."
        return
    yield from _WHY[place](pick, by_name)
    usual = options[0].format
    if pick != usual and place != "production GPU":
        yield f"{usual}, the usual choice, takes {by_name[usual].share:.0%} of the memory: {pick} is what fits."
    if place != "LoRA base":
        yield from _speed(pick, options)


def _production(pick: str, options: dict[str, FormatOption]) -> Iterator[str]:
    half = options["fp16"]
    if pick == "fp16":
        yield f"16 bits take {half.share:.0%} of the memory and leave the rest to KV: no loss, and large batches fit."
        yield "At large batches arithmetic binds, and 4-bit weights are widened for it: they save memory, not time."
    else:
        four = options["awq"]
        yield f"16 bits would take {half.share:.0%} of the memory, AWQ takes {four.share:.0%}: the rest holds KV."
        yield "Its kernels keep nearly the whole gain of 4 bits up to batches of 16 to 32 (Marlin, arXiv:2408.11743)."
    if "fp8" in options and options["fp8"].fits:
        yield "FP8 lies between: half the bytes, twice the arithmetic, no loss to be measured."


def _consumer(pick: str, options: dict[str, FormatOption]) -> Iterator[str]:
    yield "Memory is what a consumer card lacks: 4 bits leave room for context, and a token reads fewer bytes."
    yield "AWQ and GPTQ are what GPU kernels are written for: AWQ loses a little less, GPTQ is found more often."


def _cpu(pick: str, options: dict[str, FormatOption]) -> Iterator[str]:
    yield "Decode on a CPU waits for memory: bytes a weight are time a token."
    yield "Q4_K_M is where the curve bends: fewer bits lose much more, more bits gain little (see quality)."


def _edge(pick: str, options: dict[str, FormatOption]) -> Iterator[str]:
    yield "At the edge memory and its bandwidth are scarcest, so the fewest bits: Q2_K, made with an importance matrix."
    four = options["q4_k_m"]
    if pick == "q2_k" and four.fits:
        yield (
            f"Q4_K_M fits too, at {four.num_bytes / 1e9:.1f} GB: take it if answers matter more than speed, "
            "or a model of half the size in Q4_K_M, which is often better than this one in Q2_K."
        )


def _lora(pick: str, options: dict[str, FormatOption]) -> Iterator[str]:
    yield "Train adapters on the unquantized BF16 base: gradients meet the weights that were trained."
    yield "Quantize after merging, with calibration: merging into quantized weights rounds the adapter away."
    if pick == "nf4-dq":
        yield "QLoRA: the base in NF4 is frozen, the adapter in 16 or 32 bits; slower a step, and it fits."


_WHY = {"production GPU": _production, "consumer GPU": _consumer, "CPU": _cpu, "edge": _edge, "LoRA base": _lora}


def _speed(pick: str, options: tuple[FormatOption, ...]) -> Iterator[str]:
    mine = next(option for option in options if option.format == pick)
    widest = max(options, key=lambda option: option.num_bytes)
    if widest.format != pick:
        yield (
            f"One sequence decodes in {mine.step_s * 1e3:.1f} ms a token at best ({1 / mine.step_s:.0f} tok/s), "
            f"in {widest.format} in {widest.step_s * 1e3:.1f} ms."
        )
