"""Why a device is idle while its users wait: a decode step reads every weight to do two operations with it.

Utilization is what is done over what could be. Below the ridge (peak / bandwidth) a step takes as long as its bytes
take, so that more FLOP/s change nothing, more bandwidth helps in proportion, and more sequences are nearly free.
Williams, Waterman, Patterson, "Roofline", 2009.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

WORTH = 1.5  # how much longer a step may take for batching to be called cheap


@dataclass(frozen=True, slots=True)
class StepWork:
    """A decode step of a batch: operations, and bytes that are read."""

    flops: float
    num_bytes: float


@dataclass(frozen=True, slots=True)
class Utilization:
    """Utilization of a decode step at one batch size; shares are of the ceilings."""

    batch: int
    step_s: float
    compute_share: float
    bandwidth_share: float
    intensity: float  # FLOP a byte
    ridge: float
    bound: str  # "memory" or "compute"
    reasons: tuple[str, ...]


def explain_utilization(
    work: Callable[[int], StepWork],
    batch: int,
    *,
    peak_flops: float,
    bandwidth_bytes_s: float,
    overhead_s: float = 0.0,
    limit: int = 1 << 12,
) -> Utilization:
    """work(batch) is what a step does. Peak and bandwidth are what programs reach, not what the sheet says; `limit` is
    the largest batch that memory holds."""

    def seconds(size: int, flops: float = 1.0, bandwidth: float = 1.0) -> float:
        one = work(size)
        return max(one.flops / (peak_flops * flops), one.num_bytes / (bandwidth_bytes_s * bandwidth)) + overhead_s

    now, step = work(batch), seconds(batch)
    intensity, ridge = now.flops / now.num_bytes, peak_flops / bandwidth_bytes_s
    bound = "memory" if intensity < ridge else "compute"
    found = Utilization(
        batch=batch,
        step_s=step,
        compute_share=now.flops / step / peak_flops,
        bandwidth_share=now.num_bytes / step / bandwidth_bytes_s,
        intensity=intensity,
        ridge=ridge,
        bound=bound,
        reasons=(),
    )
    reasons = [
        f"A decode step of batch {batch} does {intensity:.1f} FLOP a byte, and the device could do {ridge:.0f}: "
        f"it is bound by {bound}, and its arithmetic is {found.compute_share:.1%} busy."
    ]
    if bound == "memory":
        faster, wider = step / seconds(batch, flops=2), step / seconds(batch, bandwidth=2)
        reasons.append(
            f"Twice the FLOP/s would make a step {faster:.2f} times as fast, twice the bandwidth {wider:.2f} times: "
            "do not buy FLOPs."
        )
        more = _cheap(seconds, batch, limit)
        if more > batch:
            gain, slower = more / batch * step / seconds(more), seconds(more) / step - 1
            reasons.append(
                f"Batch instead: {more} sequences give {gain:.1f} times the tokens a second, each {slower:.0%} slower."
            )
    else:
        reasons.append("More sequences only wait longer here: add devices, or fewer bits where arithmetic has them.")
    return replace(found, reasons=tuple(reasons))


def _cheap(seconds: Callable[[int], float], batch: int, limit: int) -> int:
    """`batch`, doubled while the step takes at most WORTH times as long, up to `limit`."""
    size = batch
    while size * 2 <= limit and seconds(size * 2) <= WORTH * seconds(batch):
        size *= 2
    return size
