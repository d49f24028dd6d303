"""What the live page shows, gathered at most once in half a second however many look on."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from pagoda.engine.snapshot import EngineSnapshot, SequenceState, take_snapshot
from pagoda.errors import EngineError
from pagoda.observe.explain import Facts, explain
from pagoda.observe.readings import Gpus, read_into
from pagoda.server.service import Model
from pagoda.types import BLOCK_SIZE

FRESH_S = 0.5
SNAPSHOT_S = 2.0  # that a step may take before the state goes without its sequences and blocks
MAX_ROWS = 100


class LiveView:
    """What the page shows of one model. Lives on the event loop."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.num_viewers = 0
        self._gpus = Gpus()
        self._lock = asyncio.Lock()
        self._state: dict[str, Any] = {}
        self._made = 0.0
        self._snapshot = EngineSnapshot((), ())

    async def state(self) -> dict[str, Any]:
        """As JSON has it."""
        async with self._lock:
            if time.monotonic() - self._made > FRESH_S:
                await self._look()
                self._state, self._made = self._gather(), time.monotonic()
            return self._state

    async def _look(self) -> None:
        """Ask the engine's thread, which answers between two steps."""
        with suppress(EngineError, asyncio.TimeoutError, TimeoutError):
            asked = asyncio.wrap_future(self.model.engine.ask(take_snapshot))
            self._snapshot = await asyncio.wait_for(asked, SNAPSHOT_S)

    def _gather(self) -> dict[str, Any]:
        model = self.model
        bridge = model.bridge
        away = model.caching is not None and model.caching.is_away
        facts = model.history.facts(
            num_streams=bridge.num_streams,
            slow_streams=bridge.num_slow_streams,
            cache_error="its store fails, or is slow" if away else "",
        )
        said = explain(facts)
        read_into(model.metrics.machine, self._gpus)
        return {
            "model": model.name,
            "time": time.time(),
            "situation": said.situation,
            "sentence": said.sentence,
            "facts": asdict(facts),
            "alerts": [alert.line for alert in model.alerts.now()],
            "memory_share": self._memory_share(),
            "requests": self._requests(),
            "num_requests": len(self._snapshot.sequences),
            "blocks": [[run.holder, run.count, int(run.is_shared)] for run in self._snapshot.blocks],
            "block_size": BLOCK_SIZE,
            "roofline": self._roofline(facts),
            "lines": model.history.lines(),
            "money": self._money(),
        }

    def _memory_share(self) -> float:
        machine = self.model.metrics.machine
        return machine.memory_used.value / machine.memory_limit.value if machine.memory_limit.value else 0.0

    def _requests(self) -> list[dict[str, Any]]:
        now, ledger = time.monotonic(), self.model.metrics.ledger
        return [
            {
                "id": seq.request_id,
                "index": seq.index,
                "tenant": seq.tenant,
                "adapter": seq.adapter,
                "phase": seq.phase,
                "prompt_tokens": seq.prompt_tokens,
                "computed_tokens": min(seq.computed_tokens, seq.prompt_tokens),
                "cached_tokens": seq.cached_tokens,
                "output_tokens": seq.output_tokens,
                "blocks": seq.num_blocks,
                "constrained": seq.is_constrained,
                "age_s": now - seq.arrival,
                "ttft_s": None if seq.first_token is None else seq.first_token - seq.arrival,
                "tpot_s": _tpot(seq),
                "cost_usd": ledger.usd(seq.request_id) if ledger.is_priced else None,
            }
            for seq in self._snapshot.sequences[:MAX_ROWS]
        ]

    def _roofline(self, facts: Facts) -> dict[str, Any] | None:
        """The ceilings, and where the steps of the last seconds stand below them."""
        line = self.model.history.roofline
        if line is None:
            return None
        point = None
        if facts.bandwidth_share and facts.arithmetic_share and line.bandwidth and line.peak:
            rate = facts.arithmetic_share * line.peak
            point = {"intensity": rate / (facts.bandwidth_share * line.bandwidth), "operations_s": rate}
        return {"bandwidth": line.bandwidth, "peak": line.peak, "source": line.source, "point": point}

    def _money(self) -> dict[str, Any] | None:
        ledger = self.model.metrics.ledger
        if ledger.usd_per_hour is None:
            return None
        self.model.metrics.update_costs()
        series, second = ledger.series, ledger.usd_per_hour / 3600
        return {
            "usd_per_hour": ledger.usd_per_hour,
            "usd_per_day": ledger.usd_per_hour * 24,
            "requests_usd": ledger.charged_s * second,
            "recomputed_usd": ledger.recomputed_s * second,
            "idle_usd": series.unbilled.values[("idle",)],
            "saved_usd": dict(series.saved.values),
        }


def _tpot(seq: SequenceState) -> float | None:
    if seq.first_token is None or seq.last_token is None or seq.output_tokens < 2:
        return None
    return (seq.last_token - seq.first_token) / (seq.output_tokens - 1)
