"""What the speed of the engine's kernels depends on besides the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast, get_args

from pagoda.backends.cores import usable_cores
from pagoda.backends.cpu import CpuBackend
from pagoda.backends.specs import KVType
from pagoda.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class Setup:
    """Threads, instruction set (None: the best there is), and the types of KV and activations."""

    threads: int
    isa: str | None
    kv_type: KVType
    activation_bits: int = 16

    def backend(self) -> CpuBackend:
        return CpuBackend(threads=self.threads, isa=self.isa, activation_bits=self.activation_bits)


def setup_here(kv_type: str, activation_type: str = "int16") -> Setup:
    """What the engine uses by default. UnsupportedError for a KV type that it does not have."""
    if kv_type not in get_args(KVType):
        raise UnsupportedError(f"the engine here has no {kv_type} KV cache")
    return Setup(usable_cores(), None, cast(KVType, kv_type), int(activation_type.removeprefix("int")))
