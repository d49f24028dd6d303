"""What flows through a forward pass over a sample: values of all its tokens, computed in chunks when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pagoda.quantize.arrays import Array
from pagoda.quantize.calibration.arithmetic import Arithmetic
from pagoda.types import RawTensor


class Chunked(Protocol):
    """A sample, in chunks of whole windows."""

    @property
    def num_chunks(self) -> int: ...

    @property
    def arithmetic(self) -> Arithmetic: ...


@dataclass(frozen=True, slots=True)
class Origin:
    """What a value that linears read comes out of, and so what a scale of its columns can be folded into.

    norm: an RMS norm's weight. linear: the rows of a linear, each of which becomes `repeat` columns, in runs of `run`.
    """

    kind: Literal["norm", "linear"]
    weight: RawTensor
    bias: RawTensor | None = None
    run: int = 1
    repeat: int = 1


class SampleValue:
    """A handle: float32 [T, width] for all tokens, a chunk of windows at a time."""

    def __init__(
        self, of: Chunked, compute: Callable[[int], Array], *, dear: bool, origin: Origin | None = None
    ) -> None:
        self._compute: Callable[[int], Array] | None = compute
        self._kept: list[Array] | None = None
        self._num_chunks = of.num_chunks
        self.arithmetic = of.arithmetic  # whose arrays the chunks are
        self.dear = dear
        self.origin = origin
        self.readers: list[LinearCall] = []  # not computed yet

    def chunk(self, i: int) -> Array:
        """The value of chunk i, [T, width]; must not be written to."""
        if self._kept is not None:
            return self._kept[i]
        assert self._compute is not None
        return self._compute(i)

    def keep(self) -> list[Array]:
        """Compute all chunks now, and forget what they were computed from."""
        if self._kept is None:
            self._kept = list(self.chunks())
            self._compute = None
        return self._kept

    def chunks(self) -> Iterator[Array]:
        return map(self.chunk, range(self._num_chunks))


@dataclass(slots=True)
class LinearCall:
    """One linear of the model and, once it is known, the weight [out, in] to compute with."""

    weight: RawTensor
    bias: RawTensor | None
    values: Array | None = None
    bias_values: Array | None = field(default=None, repr=False)
