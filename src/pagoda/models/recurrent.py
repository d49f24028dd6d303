"""Layers that keep a state of fixed size instead of keys and values: each is a `Recurrent` of `layers.py`."""

from __future__ import annotations

from dataclasses import dataclass

from pagoda.backends.base import Handle, Ops
from pagoda.backends.specs import DeltaSpec, ScanSpec
from pagoda.errors import FormatError
from pagoda.models.family import ModelFile
from pagoda.models.layers import Linear, Norm
from pagoda.types import RawTensor

MAX_HEADS, MAX_SIZE = 1 << 12, 1 << 14


def gguf_heads(file: ModelFile) -> tuple[int, int, int, int]:
    """What a GGUF file says of recurrent heads: (heads, groups, state size, size of a head's values).

    FormatError where heads do not divide the layer's width evenly.
    """
    heads = file.integer("ssm.time_step_rank", high=MAX_HEADS)
    groups = file.integer("ssm.group_count", high=MAX_HEADS)
    state_dim = file.integer("ssm.state_size", high=MAX_SIZE)
    inner = file.integer("ssm.inner_size", high=MAX_HEADS * MAX_SIZE)
    if inner % heads:
        raise FormatError(f"{file.key('ssm.inner_size')} is {inner}, which does not divide into {heads} heads")
    return heads, groups, state_dim, inner // heads


@dataclass(frozen=True, slots=True)
class DeltaNet:
    """Gated delta net (arXiv 2412.06464), in place of attention: a state of fixed size instead of keys and values."""

    qkv: Linear
    gate: Linear  # of what it gives, through SiLU
    alpha: Linear
    beta: Linear
    output: Linear
    conv: RawTensor  # (C, taps) over q, k and v
    decay: RawTensor  # (H,)
    dt_bias: RawTensor  # (H,)
    norm: Norm  # over each head
    spec: DeltaSpec

    def forward(self, ops: Ops, layer: int, x: Handle) -> Handle:
        qkv = ops.short_conv(layer, self.qkv.forward(ops, x), self.conv, silu=True)
        alpha, beta = self.alpha.forward(ops, x), self.beta.forward(ops, x)  # [T, H]
        out = ops.delta_rule(layer, qkv, alpha, beta, self.decay, self.dt_bias, self.spec)  # [T, H * v_dim]
        normed = self.norm.forward_heads(ops, out, self.spec.num_v_heads)
        return self.output.forward(ops, ops.gated(self.gate.forward(ops, x), normed, "silu"))  # [T, E]

    @property
    def state_elements(self) -> int:
        spec, (columns, taps) = self.spec, self.conv.shape
        return spec.num_v_heads * spec.k_dim * spec.v_dim + (taps - 1) * columns

    @property
    def linears(self) -> dict[str, Linear]:
        named = {"qkv": self.qkv, "gate": self.gate, "alpha": self.alpha, "beta": self.beta}
        return {**named, "o": self.output}


@dataclass(frozen=True, slots=True)
class ShortConv:
    """A gated short convolution, in place of attention: output(c * convolved(b * x)), of three linears of the input."""

    b: Linear
    c: Linear
    x: Linear
    output: Linear
    conv: RawTensor  # (C, taps)

    def forward(self, ops: Ops, layer: int, x: Handle) -> Handle:
        gated = ops.multiply(self.b.forward(ops, x), self.x.forward(ops, x))  # [T, C]
        convolved = ops.short_conv(layer, gated, self.conv, silu=False)
        return self.output.forward(ops, ops.multiply(self.c.forward(ops, x), convolved))  # [T, E]

    @property
    def state_elements(self) -> int:
        columns, taps = self.conv.shape
        return (taps - 1) * columns

    @property
    def linears(self) -> dict[str, Linear]:
        return {"b": self.b, "c": self.c, "x": self.x, "o": self.output}


@dataclass(frozen=True, slots=True)
class Mamba:
    """Mamba-2 (arXiv 2405.21060): a convolution over x, b and c together, a selective scan, and a gated norm."""

    gate: Linear  # of what the scan gives, through SiLU
    xbc: Linear
    dt: Linear
    output: Linear
    conv: RawTensor  # (C, taps) over x, b and c
    conv_bias: RawTensor | None  # (C,)
    decay: RawTensor  # (H,)
    dt_bias: RawTensor  # (H,)
    skip: RawTensor  # (H,)
    norm: Norm | None  # over each group, with numbers of its own
    spec: ScanSpec
    norm_first: bool = False  # before the gate, not after it

    def forward(self, ops: Ops, layer: int, x: Handle) -> Handle:
        xbc = ops.short_conv(layer, self.xbc.forward(ops, x), self.conv, self.conv_bias, silu=True)
        dt = self.dt.forward(ops, x)  # [T, H]
        out = ops.selective_scan(layer, xbc, dt, self.decay, self.dt_bias, self.skip, self.spec)
        if self.norm_first:
            out = self._normed(ops, out)
        gated = ops.gated(self.gate.forward(ops, x), out, "silu")  # [T, H * head_dim]
        return self.output.forward(ops, gated if self.norm_first else self._normed(ops, gated))  # [T, E]

    def _normed(self, ops: Ops, x: Handle) -> Handle:
        if self.norm is None:
            return x
        groups = self.spec.num_groups
        return self.norm.forward(ops, x) if groups == 1 else self.norm.forward_heads(ops, x, groups)

    @property
    def state_elements(self) -> int:
        spec, (columns, taps) = self.spec, self.conv.shape
        return spec.inner_size * spec.state_dim + (taps - 1) * columns

    @property
    def linears(self) -> dict[str, Linear]:
        return {"gate": self.gate, "xbc": self.xbc, "dt": self.dt, "o": self.output}
