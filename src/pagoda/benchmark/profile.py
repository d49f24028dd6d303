"""Where the time of a step goes: each op of the backend's forward pass, and what comes between two of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from pagoda.benchmark.engine import Bench, Ceilings, share

Stage = tuple[str, str, float, float, float]  # kind, label for people, seconds, bytes, operations


class Program(Protocol):
    """A forward pass that can say how long each of its stages took."""

    profiling: bool

    def take_profile(self) -> list[Stage]:
        """The stages since the last call."""


@dataclass(slots=True)
class Op:
    """The stages of one label, added up."""

    op: str
    stages: int = 0
    seconds: float = 0.0
    bytes: float = 0.0
    ops: float = 0.0

    def add(self, seconds: float, num_bytes: float, operations: float) -> None:
        self.stages += 1
        self.seconds += seconds
        self.bytes += num_bytes
        self.ops += operations


def profile(bench: Bench, program: Program, batch: int, ceilings: Ceilings) -> dict[str, Any]:
    """Profile one prefill and one decode of `batch` sequences."""
    program.profiling = True
    program.take_profile()
    try:
        seconds, _ = bench.prefill(batch)
        prefill = program.take_profile()
        results, decode_seconds = bench.decode(batch, begin=program.take_profile)
        decode = program.take_profile()
    finally:
        program.profiling = False
    sample = sum(result.sample_s for result in results)
    rest = decode_seconds - sample - sum(stage[2] for stage in decode)
    return {
        "batch": batch,
        "prefill": rows(prefill, {"all else": max(0.0, seconds - sum(stage[2] for stage in prefill))}, ceilings),
        "decode": rows(decode, {"sampling": sample, "scheduling and text": max(0.0, rest)}, ceilings),
        "decode_steps": len(results),
    }


def rows(stages: Iterable[Stage], outside: dict[str, float], ceilings: Ceilings) -> list[dict[str, Any]]:
    """One row for each op, slowest first, and one for the time `outside` of the forward pass (seconds)."""
    ops: dict[str, Op] = {}
    for _, label, *figures in stages:
        ops.setdefault(label, Op(label)).add(*figures)
    listed = sorted(ops.values(), key=lambda op: -op.seconds) + [Op(name, 0, spent) for name, spent in outside.items()]
    total = sum(op.seconds for op in listed) or 1.0
    return [_row(op, total, ceilings) for op in listed]


def _row(op: Op, total: float, ceilings: Ceilings) -> dict[str, Any]:
    seconds = op.seconds or float("inf")
    return {
        "op": op.op,
        "stages": op.stages,
        "seconds": round(op.seconds, 6),
        "time_share": round(op.seconds / total, 4),
        "bytes": op.bytes,
        "operations": op.ops,
        "bandwidth_share": share(op.bytes / seconds, ceilings.read_bandwidth) if op.bytes else None,
        "compute_share": share(op.ops / seconds, ceilings.int8_peak) if op.ops else None,
    }
