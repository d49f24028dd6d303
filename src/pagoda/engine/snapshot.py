"""What the engine holds between two steps: its sequences, and who holds which KV block. For people who look on.

Nothing is kept up to date for it: `take_snapshot` walks over the engine when somebody asks (`EngineThread.ask`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pagoda.engine.engine import Engine
from pagoda.engine.sequence import Sequence, Status

Phase = Literal["waiting", "preempted", "prefill", "decode"]
BLANK, KEPT = -1, -2  # in place of the place of a block's holder


@dataclass(frozen=True, slots=True)
class SequenceState:
    """One choice. Times in time.monotonic() seconds."""

    request_id: str
    index: int
    tenant: str
    adapter: str | None
    phase: Phase
    prompt_tokens: int
    computed_tokens: int
    cached_tokens: int
    output_tokens: int
    num_blocks: int
    is_constrained: bool
    arrival: float
    first_token: float | None
    last_token: float | None


@dataclass(frozen=True, slots=True)
class BlockRun:
    """`count` blocks in a row that `holder` holds: a place in the snapshot's sequences, BLANK or KEPT."""

    holder: int
    count: int
    is_shared: bool


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """All sequences, and the blocks of all KV groups one group after the other."""

    sequences: tuple[SequenceState, ...]
    blocks: tuple[BlockRun, ...]


def take_snapshot(engine: Engine) -> EngineSnapshot:
    """On the engine's thread, between two steps."""
    sequences = [*engine.scheduler.running, *engine.scheduler.waiting]
    return EngineSnapshot(tuple(_state(seq) for seq in sequences), tuple(_runs(engine, sequences)))


def _state(seq: Sequence) -> SequenceState:
    return SequenceState(
        request_id=seq.request.id,
        index=seq.index,
        tenant=seq.request.tenant,
        adapter=seq.request.adapter_name,
        phase=_phase(seq),
        prompt_tokens=seq.prompt_len,
        computed_tokens=seq.num_computed,
        cached_tokens=seq.num_cached,
        output_tokens=seq.num_outputs,
        num_blocks=0 if seq.table is None else seq.table.num_blocks,
        is_constrained=seq.constraint is not None,
        arrival=seq.request.arrival,
        first_token=seq.first_token,
        last_token=seq.last_token,
    )


def _phase(seq: Sequence) -> Phase:
    if seq.status is not Status.RUNNING:
        return "waiting" if seq.first_scheduled is None else "preempted"
    return "prefill" if seq.num_computed < seq.prompt_len else "decode"


def _runs(engine: Engine, sequences: list[Sequence]) -> list[BlockRun]:
    kv = engine.scheduler.kv
    places = {seq.table.row: place for place, seq in enumerate(sequences) if seq.table is not None}
    runs: list[BlockRun] = []
    for held, kept, num_blocks in zip(kv.block_holders(), kv.kept_blocks(), kv.num_blocks, strict=True):
        states = [(BLANK, False)] * num_blocks
        for block in kept:
            states[block] = (KEPT, False)
        for block, rows in held.items():
            states[block] = (min(places.get(row, BLANK) for row in rows), len(rows) > 1)
        runs += _run_lengths(states)
    return runs


def _run_lengths(states: list[tuple[int, bool]]) -> list[BlockRun]:
    runs: list[BlockRun] = []
    start = 0
    for end in range(1, len(states) + 1):
        if end == len(states) or states[end] != states[start]:
            runs.append(BlockRun(states[start][0], end - start, states[start][1]))
            start = end
    return runs
