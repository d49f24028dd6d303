"""How the CUDA backend is to run, decided once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OpsKind = Literal["fast", "eager"]


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """`device` is torch's name for it; `ops`: kernels, or plain torch; `graphs`: capture decoding steps."""

    device: str = "cuda"
    ops: OpsKind = "fast"
    batch_invariant: bool = False
    graphs: bool = True
