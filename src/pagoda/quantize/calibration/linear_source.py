"""Where a forward pass over a sample gets the weights of its linears from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pagoda.formats.quantized import as_floats
from pagoda.quantize.calibration.values import LinearCall, SampleValue
from pagoda.types import FloatArray


class LinearSource(Protocol):
    """Asked once for all linears that read the same value, before any of them is computed."""

    def weights(self, x: SampleValue, calls: Sequence[LinearCall]) -> list[FloatArray]:
        """The weights, [out, in] float32, of all linears that read x."""


class PlainWeights:
    """A `LinearSource`: the model as it is."""

    def weights(self, x: SampleValue, calls: Sequence[LinearCall]) -> list[FloatArray]:
        return [as_floats(call.weight) for call in calls]
