"""How long a step takes on a device: the roofline, with the shares of the ceilings that programs really reach.

    seconds = max(bytes / (bandwidth · share), FLOPs / (peak · share)) + communication + overhead

Williams, Waterman, Patterson, "Roofline", 2009. With tensor parallelism each of tp devices has 1/tp of bytes and FLOPs,
and each layer ends its two halves in an all-reduce of tokens × hidden values, 2 (tp − 1)/tp of which go over each link
(ring). With pipeline parallelism a step still walks through all weights, pp parts of the batch at a time, and hands
tokens × hidden values from stage to stage; all stages work at once, on different parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pagoda.errors import ConfigError
from pagoda.hardware.device import Device
from pagoda.plan.cost.work import Chunk, StepCost, StepShape, Workload
from pagoda.plan.model.weights import HALF, ModelWeights

ALL_REDUCE_LATENCY_S = 10e-6  # of a small one over NVLink; vLLM's custom all-reduce and NCCL lie around it
SEND_LATENCY_S = 10e-6
ACTIVATION_BYTES = 2


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one step, and what they are made of. `bound` is the longer of memory and compute."""

    seconds: float
    memory_s: float
    compute_s: float
    communication_s: float
    overhead_s: float
    work: StepCost

    @property
    def bound(self) -> str:
        return "memory" if self.memory_s >= self.compute_s else "compute"


class Costs(Protocol):
    """Predicts how long steps take."""

    source: str
    doubts: tuple[str, ...]  # why it should not be believed, a sentence each

    def step(self, step: StepShape) -> StepTime: ...


def peak_flops(device: Device, computes: tuple[str, ...]) -> tuple[str, float]:
    """The number type that products are computed in, and FLOP/s. ConfigError if the device has none of them."""
    for kind in computes:
        if kind in device.flops:
            return kind, device.flops[kind]
    raise ConfigError(f"{device.name} computes in none of {', '.join(computes)}, only in {', '.join(device.flops)}")


class RooflineCosts:
    """`Costs` of a device by its roofline. `ideal`: without the losses of real programs and without overhead."""

    def __init__(
        self,
        device: Device,
        workload: Workload,
        weights: ModelWeights,
        *,
        tp: int = 1,
        pp: int = 1,
        ideal: bool = False,
    ) -> None:
        if tp * pp > 1 and device.interconnect_bytes_s is None:
            raise ConfigError(f"{device.name}: nothing is known about its links to others, so --tp and --pp must be 1")
        self.device, self.workload, self.tp, self.pp = device, workload, tp, pp
        efficiency = device.efficiency
        self.compute_type, peak = peak_flops(device, weights.computes_on(device.kind))
        _, half = peak_flops(device, HALF)
        self.bandwidth = device.bandwidth_bytes_s * (1 if ideal else efficiency.decode_bandwidth)
        self.flops = peak * (1 if ideal else efficiency.prefill_compute)
        self.attention_flops = half * (1 if ideal else efficiency.prefill_compute)
        self.overhead_s = 0.0 if ideal else efficiency.step_overhead_s
        self.source = "the ceilings" if ideal else efficiency.source
        self.doubts = device.doubts

    def step(self, step: StepShape) -> StepTime:
        step = self._part(step)
        work = self.workload.of(step)
        memory_s = work.bytes / self.bandwidth / self.tp
        compute_s = (work.linear_flops / self.flops + work.attention_flops / self.attention_flops) / self.tp
        communication_s = self._communication(step.tokens)
        seconds = max(memory_s, compute_s) + communication_s + self.overhead_s
        return StepTime(seconds, memory_s, compute_s, communication_s, self.overhead_s, work)

    def _part(self, step: StepShape) -> StepShape:
        """The micro-batch that one pipeline stage works on: 1/pp of a decoding batch, at least one sequence."""
        if self.pp == 1:
            return step
        chunks = tuple(Chunk(max(1.0, c.count / self.pp), c.queries, c.context) for c in step.chunks)
        return StepShape(chunks, max(min(step.rows, 1.0), step.rows / self.pp))

    def _communication(self, tokens: float) -> float:
        link = self.device.interconnect_bytes_s
        if link is None or self.tp * self.pp == 1:
            return 0.0
        shape = self.workload.shape
        size = tokens * shape.hidden_size * ACTIVATION_BYTES
        total = 0.0
        if self.tp > 1:
            ring = 2 * (self.tp - 1) / self.tp * size / link
            total += 2 * shape.num_layers * (ring + ALL_REDUCE_LATENCY_S)
        return total + (self.pp - 1) * (size / link + SEND_LATENCY_S)
