"""A model's forward pass over all calibration windows at once, one op after the other.

`WindowOps` are `Ops` whose handles stand for a value of every token of the sample. A handle is computed a chunk of
windows at a time, when it is asked for; only what is dear to compute again is kept: the residual stream and the inputs
of linears that follow attention or activation. So each linear can be changed by what it reads before anything is
computed with it, every linear is computed once, and one layer's weights are in memory.

Linears that read the same handle wait for each other: a `LinearSource` is asked for the weights of all of them when the
first is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from pagoda.backends.arithmetic import (
    ACTIVATIONS,
    delta_rule,
    expert_weights,
    fast_linear,
    gaussian_topk,
    head_linear,
    head_norm,
    mix_streams,
    selective_scan,
    short_conv,
)
from pagoda.backends.specs import (
    Activation,
    AttentionSpec,
    DeltaSpec,
    EmbedBy,
    ExpertBiases,
    ExpertsSpec,
    RopeSpec,
    ScanSpec,
)
from pagoda.errors import CapacityError, UnsupportedError
from pagoda.formats.blocks import dequantize
from pagoda.formats.quantized import QuantizedTensor
from pagoda.formats.quantized import as_floats as decoded
from pagoda.models.layers import Decoder
from pagoda.quantize.arrays import Array
from pagoda.quantize.calibration.arithmetic import Arithmetic, NumpyArithmetic, make_arithmetic
from pagoda.quantize.calibration.linear_source import LinearSource
from pagoda.quantize.calibration.values import LinearCall, Origin, SampleValue
from pagoda.types import FloatArray, Int32Array, RawTensor

CHUNK_TOKENS = 4096
NO_ENCODERS = "encoders are not calibrated, only models that go on with a text are"

ExpertMatrices = tuple[RawTensor, RawTensor, RawTensor]  # gate, up, down
Scored = Callable[[int, FloatArray], None]  # told of chunk i's logits [T, V]


def table_rows(table: RawTensor, ids: Int32Array) -> FloatArray:
    """Rows `ids` of a matrix of any type; of block types without decoding the rest. → [len(ids), E]"""
    if isinstance(table, QuantizedTensor):
        return decoded(table)[ids]
    return dequantize(table.rows()[ids], table.type, (len(ids), table.shape[1]))


class WindowOps:
    """`Ops` over windows [N, T] of tokens. `on_logits` makes the head compute; without it the pass ends before."""

    def __init__(
        self,
        windows: Int32Array,
        source: LinearSource,
        *,
        on_logits: Scored | None = None,
        chunk_tokens: int = CHUNK_TOKENS,
        arithmetic: Arithmetic | None = None,
    ) -> None:
        self.source = source
        self.on_logits = on_logits
        self.arithmetic: Arithmetic = arithmetic or NumpyArithmetic()
        self.length = windows.shape[1]
        per_chunk = max(chunk_tokens // self.length, 1)
        self.token_chunks = [windows[i : i + per_chunk] for i in range(0, len(windows), per_chunk)]
        self.num_chunks = len(self.token_chunks)

    def embed(self, table: RawTensor, scale: float = 1.0, by: EmbedBy = "tokens", offset: int = 0) -> SampleValue:
        if by == "positions" or offset:
            raise UnsupportedError(NO_ENCODERS)

        def compute(i: int) -> Array:
            ids = np.zeros_like(self.token_chunks[i]) if by == "types" else self.token_chunks[i]
            if by == "known_tokens":
                ids = np.where(ids < table.shape[0], ids, 0)
            used, place = np.unique(ids, return_inverse=True)
            return self.arithmetic.place(table_rows(table, used)[place.reshape(-1)] * np.float32(scale))

        return SampleValue(self, compute, dear=False)

    def given(self, columns: int) -> SampleValue:
        raise UnsupportedError("what a model reads besides tokens has no part in calibration")

    def rms_norm(self, x: SampleValue, weight: RawTensor, eps: float) -> SampleValue:
        w = self._placed(weight)
        origin = Origin("norm", weight)
        return SampleValue(self, lambda i: self.arithmetic.rms_norm(x.chunk(i), w, eps), dear=x.dear, origin=origin)

    def layer_norm(self, x: SampleValue, weight: RawTensor, bias: RawTensor, eps: float) -> SampleValue:
        w, b = self._placed(weight), self._placed(bias)
        return SampleValue(self, lambda i: self.arithmetic.layer_norm(x.chunk(i), w, b, eps), dear=x.dear)

    def head_norm(
        self, x: SampleValue, weight: RawTensor, eps: float, num_heads: int, *, centered: bool = False
    ) -> SampleValue:
        if centered:
            compute = partial(head_norm, weight=decoded(weight), eps=eps, num_heads=num_heads, centered=True)
            return self._in_numpy(compute, x)
        w = self._placed(weight)
        return SampleValue(self, lambda i: self.arithmetic.rms_norm(x.chunk(i), w, eps, num_heads), dear=x.dear)

    def linear(self, x: SampleValue, weight: RawTensor, bias: RawTensor | None = None) -> SampleValue:
        call = LinearCall(weight, bias)
        x.readers.append(call)

        def compute(i: int) -> Array:
            if call.values is None:
                self._settle(x)
            return self.arithmetic.product(x.chunk(i), call.values, call.bias_values)

        return SampleValue(self, compute, dear=True, origin=Origin("linear", weight, bias))

    def _settle(self, x: SampleValue) -> None:
        """Ask the source for the weights of all linears that read x."""
        if x.dear:
            x.keep()
        calls, x.readers = x.readers, []
        for call, values in zip(calls, self.source.weights(x, calls), strict=True):
            call.values = self.arithmetic.place(values)
            call.bias_values = None if call.bias is None else self._placed(call.bias)

    def _placed(self, raw: RawTensor) -> Array:
        return self.arithmetic.place(decoded(raw))

    def rope(self, x: SampleValue, num_heads: int, spec: RopeSpec) -> SampleValue:
        return SampleValue(self, lambda i: self.arithmetic.rope(x.chunk(i), self.length, num_heads, spec), dear=x.dear)

    def head_linear(self, x: SampleValue, weight: RawTensor, *, kept: int = 0) -> SampleValue:
        return self._in_numpy(partial(head_linear, weight=decoded(weight), kept=kept, product=fast_linear), x)

    def columns(self, x: SampleValue, start: int, count: int, scale: float = 1.0, *, heads: int = 1) -> SampleValue:
        def part(i: int) -> Array:
            whole = x.chunk(i)
            return whole.reshape(len(whole), heads, -1)[:, :, start : start + count].reshape(len(whole), -1) * scale

        return SampleValue(self, part, dear=x.dear)

    def attention(
        self,
        layer: int,
        q: SampleValue,
        k: SampleValue | None,
        v: SampleValue | None,
        spec: AttentionSpec,
        sinks: RawTensor | None = None,
    ) -> SampleValue:
        if k is None or v is None:
            raise UnsupportedError("layers that share keys and values, or keep latents, are not calibrated")
        if spec.growth is not None and self.length > spec.growth.length:
            raise UnsupportedError(f"this model is calibrated on windows of at most {spec.growth.length} tokens")
        if sinks is not None:
            raise UnsupportedError("models with attention sinks are not calibrated; take a method without a sample")

        def compute(i: int) -> Array:
            return self.arithmetic.attend(q.chunk(i), k.chunk(i), v.chunk(i), self.length, spec)

        origin, group = None, spec.num_heads // spec.num_kv_heads
        if v.origin is not None:
            origin = Origin("linear", v.origin.weight, v.origin.bias, run=spec.head_dim, repeat=group)
        return SampleValue(self, compute, dear=True, origin=origin)

    def gated(self, gate: SampleValue, up: SampleValue | None, activation: Activation) -> SampleValue:
        def compute(i: int) -> Array:
            return self.arithmetic.gated(gate.chunk(i), None if up is None else up.chunk(i), activation)

        return SampleValue(self, compute, dear=True, origin=None if up is None else up.origin)

    def experts(
        self,
        x: SampleValue,
        router: SampleValue,
        gate: Sequence[RawTensor],
        up: Sequence[RawTensor],
        down: Sequence[RawTensor],
        spec: ExpertsSpec,
        scales: RawTensor | None = None,
        biases: ExpertBiases | None = None,
        corrections: RawTensor | None = None,
    ) -> SampleValue:
        if biases is not None:
            raise UnsupportedError("experts with biases are not calibrated; take a method without a sample")
        made: list[Array] = []

        def compute(i: int) -> Array:
            if not made:
                experts = list(zip(gate, up, down, strict=True))
                made.extend(_mixture(self, x, router, experts, spec, (scales, corrections)))
            return made[i]

        return SampleValue(self, compute, dear=True)

    def scale_rows(self, x: SampleValue, gate: SampleValue, activation: Activation) -> SampleValue:
        return self._in_numpy(lambda x, gate: x * ACTIVATIONS[activation](gate), x, gate)

    def multiply(self, x: SampleValue, y: SampleValue) -> SampleValue:
        return SampleValue(self, lambda i: x.chunk(i) * y.chunk(i), dear=True)

    def gaussian_topk(self, x: SampleValue, deviations: float) -> SampleValue:
        return self._in_numpy(partial(gaussian_topk, deviations=deviations), x)

    def mix_streams(self, x: SampleValue, coefficients: SampleValue, streams: int) -> SampleValue:
        return self._in_numpy(partial(mix_streams, streams=streams), x, coefficients)

    def short_conv(
        self, layer: int, x: SampleValue, weight: RawTensor, bias: RawTensor | None = None, *, silu: bool
    ) -> SampleValue:
        taps, added = decoded(weight), None if bias is None else decoded(bias)

        def convolved(x: FloatArray) -> FloatArray:
            return short_conv(x, np.zeros((taps.shape[1] - 1, x.shape[1]), np.float32), taps, added, with_silu=silu)

        return self._in_numpy(self._each_window(convolved), x)

    def delta_rule(
        self,
        layer: int,
        qkv: SampleValue,
        alpha: SampleValue,
        beta: SampleValue,
        decay: RawTensor,
        dt_bias: RawTensor,
        spec: DeltaSpec,
    ) -> SampleValue:
        numbers = decoded(decay), decoded(dt_bias)
        return self._in_numpy(self._each_window(partial(delta_rule, numbers=numbers, spec=spec)), qkv, alpha, beta)

    def selective_scan(
        self,
        layer: int,
        xbc: SampleValue,
        dt: SampleValue,
        decay: RawTensor,
        dt_bias: RawTensor,
        skip: RawTensor,
        spec: ScanSpec,
    ) -> SampleValue:
        numbers = decoded(decay), decoded(dt_bias), decoded(skip)
        return self._in_numpy(self._each_window(partial(selective_scan, numbers=numbers, spec=spec)), xbc, dt)

    def _each_window(self, compute: Callable[..., FloatArray]) -> Callable[..., FloatArray]:
        """`compute` over the tokens of one window after the other."""

        def windows(*values: FloatArray) -> FloatArray:
            starts = range(0, len(values[0]), self.length)
            return np.concatenate([compute(*(value[i : i + self.length] for value in values)) for i in starts])

        return windows

    def _in_numpy(self, compute: Callable[..., FloatArray], *values: SampleValue) -> SampleValue:
        def chunk(i: int) -> Array:
            return self.arithmetic.place(compute(*(self.arithmetic.fetch(value.chunk(i)) for value in values)))

        return SampleValue(self, chunk, dear=True)

    def add(self, x: SampleValue, y: SampleValue) -> SampleValue:
        for i, chunk in enumerate(x.keep()):
            chunk += y.chunk(i)
        x.dear = False  # it is kept, so what is made of it is cheap
        return x

    def logits(self, x: SampleValue, weight: RawTensor, scale: float = 1.0, softcap: float | None = None) -> None:
        if self.on_logits is None:
            return
        compute, w = self.arithmetic, self._placed(weight)
        for i in range(self.num_chunks):
            logits = compute.product(x.chunk(i), w, None) * scale
            self.on_logits(i, compute.fetch(compute.softcapped(logits, softcap)))

    def hidden_states(self, x: SampleValue) -> None:
        """Nobody wants those of a sample."""


def _mixture(
    ops: WindowOps,
    x: SampleValue,
    router: SampleValue,
    experts: Sequence[ExpertMatrices],
    spec: ExpertsSpec,
    vectors: tuple[RawTensor | None, RawTensor | None],
) -> list[Array]:
    """A mixture's value of each chunk, [T, E]; `vectors` are its scales and corrections. One expert after the other,
    each on the tokens that its router sends there, so that what its linears read is what they are calibrated on, and
    one expert's weights are in memory.

    An expert that no token is sent to is calibrated on all of them, and adds nothing.
    """
    factors, added = (None if vector is None else decoded(vector) for vector in vectors)
    routers = (ops.arithmetic.fetch(chunk) for chunk in router.chunks())  # of [T, N]
    weights = [expert_weights(chunk, spec, factors, added) for chunk in routers]
    inputs = x.keep()
    outputs = [0 * chunk for chunk in inputs]
    for e, matrices in enumerate(experts):
        _add_expert(ops, inputs, outputs, [chunk[:, e] for chunk in weights], matrices, spec)
    return outputs


def _add_expert(
    ops: WindowOps,
    inputs: Sequence[Array],
    outputs: Sequence[Array],
    weights: Sequence[FloatArray],
    matrices: ExpertMatrices,
    spec: ExpertsSpec,
) -> None:
    tokens = [np.flatnonzero(chunk) for chunk in weights]
    sees_some = any(map(len, tokens))
    seen = tokens if sees_some else [np.arange(len(chunk)) for chunk in inputs]
    gate, up, down = matrices
    x = SampleValue(ops, partial(_rows, inputs, seen), dear=False)
    result = ops.linear(ops.gated(ops.linear(x, gate), ops.linear(x, up), spec.activation), down)
    for i, (output, rows, each) in enumerate(zip(outputs, tokens, weights, strict=True)):
        values = result.chunk(i)
        if sees_some and len(rows):
            output[rows] += values * ops.arithmetic.place(each[rows, None])


def _rows(chunks: Sequence[Array], rows: Sequence[npt.NDArray[np.intp]], i: int) -> Array:
    return chunks[i][rows[i]]


def run_sample(
    decoder: Decoder, windows: Int32Array, source: LinearSource, device: str, say: Callable[[str], None]
) -> None:
    """One forward pass over a calibration sample [N, T], on what `--device` names.

    Raises what `make_arithmetic` raises, and CapacityError if the sample does not fit into memory.
    """
    arithmetic = make_arithmetic(device, say)
    try:
        decoder.forward(WindowOps(windows, source, arithmetic=arithmetic))
    except arithmetic.out_of_memory as error:
        memory, other = "memory", ""
        if not isinstance(arithmetic, NumpyArithmetic):
            memory, other = "the GPU's memory", ", or go on where this stopped with --device cpu"
        count, length = windows.shape
        raise CapacityError(
            f"{memory} ran out on {count} windows of {length} tokens; take fewer --calibration-samples{other}"
        ) from error
