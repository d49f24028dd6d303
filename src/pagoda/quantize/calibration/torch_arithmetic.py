"""The `Arithmetic` of calibration in torch, on a GPU or, for tests, on its CPU. Products are in full float32."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from pagoda.backends.arithmetic import rope_angles
from pagoda.backends.cuda.arithmetic import activated, rms_norm
from pagoda.backends.cuda.paged import attention, rotate
from pagoda.backends.specs import Activation, AttentionSpec, RopeSpec
from pagoda.quantize.arrays import Doubles
from pagoda.types import FloatArray


class TorchArithmetic:
    """An `Arithmetic` on `device`, as torch calls it."""

    out_of_memory: type[Exception] = torch.OutOfMemoryError

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def place(self, values: FloatArray) -> torch.Tensor:
        return torch.tensor(values, device=self.device)

    def fetch(self, x: torch.Tensor) -> FloatArray:
        return np.asarray(x.cpu().numpy(), dtype=np.float32)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, num_heads: int = 1) -> torch.Tensor:
        heads = x.view(len(x), num_heads, -1)
        return rms_norm(heads, weight.view(-1, heads.shape[-1]), eps).view(x.shape)

    def layer_norm(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, (x.shape[-1],), weight, bias, eps)

    def product(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.nn.functional.linear(x, weight, bias)

    def rope(self, x: torch.Tensor, length: int, num_heads: int, spec: RopeSpec) -> torch.Tensor:
        cos, sin = map(self.place, rope_angles(np.arange(length, dtype=np.int32), spec))
        heads = x.view(-1, length, num_heads, x.shape[1] // num_heads)
        interleaved = spec.style == "interleaved"
        return rotate(heads, cos[:, None], sin[:, None], spec.rotary_dim, interleaved=interleaved).view(x.shape)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, length: int, spec: AttentionSpec
    ) -> torch.Tensor:
        out = torch.empty_like(q)
        for start in range(0, len(q), length):  # one window's scores at a time: they are what takes memory
            rows = slice(start, start + length)
            keys, values = (x[rows].view(length, -1, spec.head_dim) for x in (k, v))
            out[rows] = attention(q[rows], keys, values, 0, 0, spec)
        return out

    def gated(self, gate: torch.Tensor, up: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        return activated(gate, activation) if up is None else activated(gate, activation) * up

    def softcapped(self, x: torch.Tensor, cap: float | None) -> torch.Tensor:
        return x if cap is None else cap * torch.tanh(x / cap)

    def gram(self, chunks: Iterator[torch.Tensor]) -> torch.Tensor:
        first = next(chunks)
        total = (first.t() @ first).double()
        for x in chunks:
            total += x.t() @ x
        return total

    def column_sums(self, x: torch.Tensor, power: int) -> Doubles:
        return np.asarray(x.abs().pow_(power).sum(0, dtype=torch.float64).cpu().numpy())
