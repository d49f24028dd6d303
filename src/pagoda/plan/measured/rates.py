"""What the engine's own kernels were measured to take on this machine, and steps predicted from it.

Measured on a slice of the model (`slices.py`) by `probes.py`, and kept: seconds a layer for so many tokens, of the
output head for so many rows, of attention by batch and context, of the engine around a step. A step of the whole model
is their sum; between measured sizes they are interpolated, beyond them extended in proportion.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pagoda.hardware.machine import measured_when
from pagoda.plan.cost.roofline import StepTime
from pagoda.plan.cost.work import Chunk, StepShape, Workload, pairs
from pagoda.plan.model.shapes import AttentionShape

Curve = Sequence[tuple[float, float]]  # (size, seconds), sizes ascending


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured seconds. Attention's are of one layer."""

    layers: Mapping[str, Curve]  # by signature: a layer without attention's inner loop, by tokens
    counts: Mapping[str, int]  # layers of each signature in the whole model
    head: Curve  # final norm and logits, by rows
    decode_attention: Mapping[int, Curve]  # by batch, then by context
    prefill_pair_s: float  # a (query, key) pair of all heads
    prefill_query_s: float  # a query, besides its pairs
    engine_step_s: float  # around the forward pass, once a step
    engine_row_s: float  # and for each sampled row
    source: str
    date: str  # ISO, of the day they were measured
    doubts: tuple[str, ...] = ()  # why they should not be believed, a sentence each

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Rates:
        decode = {int(batch): curve for batch, curve in data["decode_attention"].items()}
        return cls(**{**data, "decode_attention": decode, "doubts": tuple(data["doubts"])})


def interpolate(curve: Curve, x: float) -> float:
    """Piecewise linear: below the first point its value, beyond the last point the slope of the last piece."""
    if x <= curve[0][0] or len(curve) == 1:
        return curve[0][1] if len(curve) > 1 or x <= curve[0][0] else curve[0][1] * x / curve[0][0]
    i = min(max(1, bisect_left([size for size, _ in curve], x)), len(curve) - 1)
    (x0, y0), (x1, y1) = curve[i - 1], curve[i]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


class MeasuredCosts:
    """`Costs` from measured rates. `bandwidth` (bytes/s) and `peak` (FLOP/s) only decide whether a step is memory or
    compute bound."""

    def __init__(self, rates: Rates, workload: Workload, bandwidth: float, peak: float) -> None:
        self.rates, self.workload = rates, workload
        self.bandwidth, self.peak = bandwidth, peak
        self.source = f"{rates.source}; {measured_when(rates.date, rates.doubts)}"
        self.doubts = rates.doubts

    def step(self, step: StepShape) -> StepTime:
        rates = self.rates
        layers = sum(n * interpolate(rates.layers[name], step.tokens) for name, n in rates.counts.items())
        attention = sum(self._attention(kind, chunk) for kind in self.workload.shape.attention for chunk in step.chunks)
        head = interpolate(rates.head, step.rows) if step.rows else 0.0
        engine = rates.engine_step_s + rates.engine_row_s * step.rows
        work = self.workload.of(step)
        return StepTime(
            seconds=layers + attention + head + engine,
            memory_s=work.bytes / self.bandwidth,
            compute_s=work.flops / self.peak,
            communication_s=0.0,
            overhead_s=engine,
            work=work,
        )

    def _attention(self, kind: AttentionShape, chunk: Chunk) -> float:
        if chunk.queries > 1:
            each = self.rates.prefill_pair_s * pairs(chunk, kind.window) + self.rates.prefill_query_s * chunk.queries
            return kind.num_layers * chunk.count * each
        seen = kind.seen(chunk.context)
        by_batch = [(float(batch), interpolate(curve, seen)) for batch, curve in self.rates.decode_attention.items()]
        return kind.num_layers * interpolate(by_batch, chunk.count)
