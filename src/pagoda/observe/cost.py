"""What requests cost: the time of every step is shared among the requests in it by the work that they caused.

    units of a request in a step = prompt tokens · 1 + decode tokens · 4 + draft tokens · 1 + KV tokens held / 1024
    its cost                     = Σ over steps of (seconds of the step · its units / all units) · price of a second

Decoding a token costs more than reading one, because all weights are read for it; the weights of the sum are settings.
Tokens that are computed again after a preemption are charged to nobody's request: they are a cost of the house, as is
idle time. So what requests pay, what was recomputed and what was idle add up to hours · price. Tokens found in the
prefix cache cause no work, and a request that is cancelled has paid for the steps that it was in.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pagoda.observe.own_series import CostSeries
from pagoda.settings import Setting, Settings
from pagoda.types import SequenceWork, StepResult

HOUR_S = 3600.0
KEPT = 4096  # ended requests whose cost can still be asked for


@dataclass(frozen=True, slots=True)
class CostSettings(Settings):
    """What the machine costs, and how its time is shared among requests."""

    table = "cost"

    price: Annotated[
        float | None, Setting("USD an hour for this machine; without it nothing is priced.", minimum=0)
    ] = None
    price_of: Annotated[
        str | None, Setting("Device of `pagoda plan` whose list price counts, where no --price is given: a100-80gb …")
    ] = None
    decode_weight: Annotated[
        float, Setting("What a token of an answer costs, in tokens of a prompt.", minimum=0.01, maximum=1000)
    ] = 4.0
    kv_weight: Annotated[
        float, Setting("What 1,024 tokens held in the KV cache add to a step, in tokens of a prompt.", minimum=0)
    ] = 1.0
    token_prices: Annotated[
        tuple[str, ...],
        Setting(
            "MODEL=PROMPT/ANSWER or MODEL=PROMPT/ANSWER/CACHED: USD for a million tokens of a model that upstreams of "
            "`pagoda gateway` serve, * for any other; repeat for several. `pagoda serve` prices its machine instead.",
            flag="token-price",
        ),
    ] = ()


@dataclass(frozen=True, slots=True)
class WorkUnits:
    """What a token of each kind counts in the sum."""

    prompt: float = 1.0
    decode: float = 4.0
    draft: float = 1.0
    kv: float = 1 / 1024

    def of(self, row: SequenceWork) -> float:
        """Units that the request pays for; nothing where the step only computed again what was lost."""
        new = row.num_prompt_tokens * self.prompt + row.num_decode_tokens * self.decode
        new += row.num_draft_tokens * self.draft
        return new + row.num_kv_tokens * self.kv if new else 0.0

    def lost(self, row: SequenceWork) -> float:
        """Units of what was computed again."""
        if not row.num_recomputed_tokens:
            return 0.0
        alone = not (row.num_prompt_tokens or row.num_decode_tokens or row.num_draft_tokens)
        return row.num_recomputed_tokens * self.prompt + (row.num_kv_tokens * self.kv if alone else 0.0)


@dataclass(frozen=True, slots=True)
class Account:
    """Where the machine's time up to a moment went, in seconds. Of two accounts, the differences add up."""

    at: float  # time.monotonic() seconds
    charged_s: float
    recomputed_s: float
    idle_s: float


class CostLedger:
    """Keeps the account of one engine. `record` is called on the engine's thread, everything else on any.

    Time between two steps belongs to the second where there was work to go on with, and is idle otherwise.
    """

    counts_time = True  # whether it is a machine's time that is paid for

    def __init__(
        self,
        usd_per_hour: float | None = None,
        units: WorkUnits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.usd_per_hour = usd_per_hour
        self.series = CostSeries()
        self.series.usd_per_hour.value = usd_per_hour or 0.0
        self.charged_s = self.recomputed_s = self.idle_s = 0.0
        self._units = units or WorkUnits()
        self._clock = clock
        self._second = (usd_per_hour or 0.0) / HOUR_S
        self._last = clock()
        self._had_work = False
        self._num_units = 0.0
        self._saved_units: dict[str, float] = {}
        self._requests: dict[str, float] = {}  # seconds
        self._ended: deque[str] = deque()

    @property
    def is_priced(self) -> bool:
        return self.usd_per_hour is not None

    def record(self, step: StepResult) -> None:
        """Share the time since the last step. An observer that comes before the sinks."""
        span = max(0.0, step.ended - self._last)
        self._last = max(self._last, step.ended)
        busy = span if self._had_work else min(span, step.step_s)
        self._had_work = bool(step.num_running or step.num_waiting)
        self.idle_s += span - self._share(step, busy)
        self._note_savings(step)
        for request in step.finished:
            self._forget_later(request.request_id)

    def _share(self, step: StepResult, busy: float) -> float:
        """Charge `busy` seconds to the step's requests. → those of them that were caused by any"""
        units = [self._units.of(row) for row in step.work]
        lost = sum(self._units.lost(row) for row in step.work)
        total = sum(units) + lost
        if not total:
            return 0.0
        for row, share in zip(step.work, units, strict=True):
            if share:
                seconds = busy * share / total
                self._requests[row.request_id] = self._requests.get(row.request_id, 0.0) + seconds
                self.series.charged.add((row.tenant, row.adapter or ""), seconds * self._second)
                self.charged_s += seconds
        if lost:
            self.recomputed_s += busy * lost / total
            self.series.unbilled.add("recomputed", busy * lost / total * self._second)
        self._num_units += total
        return busy

    def _note_savings(self, step: StepResult) -> None:
        """A prompt token that was cached need not be computed. A draft token that was kept needs no step of its own;
        each one that was checked costs its own work."""
        if step.prefix_hits:
            self._save("prefix_cache", step.prefix_hits * self._units.prompt)
        for counts in step.drafts.values():
            gained = counts.num_accepted_tokens * self._units.decode
            self._save("speculation", gained - counts.num_draft_tokens * self._units.draft)

    def _save(self, by: str, units: float) -> None:
        self._saved_units[by] = self._saved_units.get(by, 0.0) + units

    def _forget_later(self, request_id: str) -> None:
        self._ended.append(request_id)
        if len(self._ended) > KEPT:
            self._requests.pop(self._ended.popleft(), None)

    # On any thread

    def usd(self, request_id: str) -> float:
        """What the request has cost so far."""
        return self._requests.get(request_id, 0.0) * self._second

    def seconds(self, request_id: str) -> float:
        """The machine's time that the request has been charged."""
        return self._requests.get(request_id, 0.0)

    def account(self) -> Account:
        """Up to now, or to the last step where another one runs."""
        last = self._last
        at = last if self._had_work else max(last, self._clock())
        return Account(at, self.charged_s, self.recomputed_s, self.idle_s + at - last)

    def set_saved(self, by: str, num_prompt: int, num_decode: int) -> None:
        """Something else than the engine has answered so many tokens in all."""
        if num_prompt or num_decode:
            self._saved_units[by] = num_prompt * self._units.prompt + num_decode * self._units.decode

    @property
    def _unit_s(self) -> float:
        return (self.charged_s + self.recomputed_s) / self._num_units if self._num_units else 0.0

    def update(self) -> None:
        """Bring idle time and savings up to date, before series are read."""
        worth = self._unit_s * self._second
        self.series.saved.values = {by: units * worth for by, units in list(self._saved_units.items())}
        idle = self.account().idle_s * self._second  # the wait before a step that runs now is thought idle
        shown = self.series.unbilled.values
        shown[("idle",)] = max(shown[("idle",)], idle)  # a counter never falls
