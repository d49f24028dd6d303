"""activation(gate) * up, or either alone. What leaves float16's range stays at its end: infinities would spread."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pagoda.backends.arithmetic import SWIGLU_ALPHA, SWIGLU_LIMIT
from pagoda.backends.cuda.kernels.common import load_parts
from pagoda.backends.specs import Activation

BLOCK = 1024
KINDS: dict[Activation | None, int] = {
    "silu": 0, "gelu_tanh": 1, "gelu": 2, "relu2": 3, "sigmoid": 4, "clamped_swiglu": 5, None: 6,
}  # fmt: skip


@triton.jit
def _gated(
    gate_ptr, up_ptr, out_ptr, columns, gate_part, gate_row, up_part, up_row,
    KIND: tl.constexpr, GATE_PARTS: tl.constexpr, UP_PARTS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    ALPHA: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    gate = load_parts(gate_ptr + row * gate_row + column, inside, gate_part, GATE_PARTS)
    if KIND == 0:
        value = gate * tl.sigmoid(gate)
    elif KIND == 1:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        value = gate * tl.sigmoid(2.0 * inner)  # (1 + tanh(u)) / 2
    elif KIND == 3:
        value = tl.maximum(gate, 0.0) * tl.maximum(gate, 0.0)
    elif KIND == 4:
        value = tl.sigmoid(gate)
    elif KIND == 5:
        gate = tl.minimum(gate, LIMIT)
        value = gate * tl.sigmoid(ALPHA * gate)
    elif KIND == 6:
        value = gate
    else:
        value = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    if UP_PARTS > 0:
        up = load_parts(up_ptr + row * up_row + column, inside, up_part, UP_PARTS)
        if KIND == 5:
            up = tl.minimum(tl.maximum(up, -LIMIT), LIMIT) + 1.0
        value = value * up
    if HALF:
        value = tl.minimum(tl.maximum(value, -65504.0), 65504.0)
    tl.store(out_ptr + row * columns + column, value.to(out_ptr.dtype.element_ty), mask=inside)


def gated(
    gate: torch.Tensor, up: torch.Tensor | None, activation: Activation | None, dtype: torch.dtype
) -> torch.Tensor:
    """gate, up [S, T, F]; without an activation their product. → [1, T, F]"""
    tokens, columns = gate.shape[1:]
    out = torch.empty((1, tokens, columns), dtype=dtype, device=gate.device)
    _gated[(tokens, triton.cdiv(columns, BLOCK))](
        gate, gate if up is None else up, out, columns, gate.stride(0), gate.stride(1),
        0 if up is None else up.stride(0), 0 if up is None else up.stride(1),
        KIND=KINDS[activation], GATE_PARTS=gate.shape[0], UP_PARTS=0 if up is None else up.shape[0],
        HALF=dtype == torch.float16, BLOCK=BLOCK, ALPHA=SWIGLU_ALPHA, LIMIT=SWIGLU_LIMIT, num_warps=4,
    )  # fmt: skip
    return out
