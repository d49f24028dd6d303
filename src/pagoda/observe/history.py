"""The last ten minutes of an engine, a slot for each second: for the live page and for the sentence that explains."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pagoda.observe.explain import Facts
from pagoda.observe.readings import CpuTimes, read_cpu_times
from pagoda.observe.roofline import Roofline, num_tokens
from pagoda.types import StepResult

SECONDS = 600
WINDOW_S = 10  # that the sentence speaks of


@dataclass(slots=True)
class Second:
    """Sums over the steps that ended in one second, and gauges as they stood at its end."""

    at: int  # time.monotonic() seconds
    cpu: CpuTimes  # when it began
    num_steps: int = 0
    step_s: float = 0.0
    forward_s: float = 0.0
    mask_s: float = 0.0
    num_sequences: int = 0
    prompt_tokens: int = 0
    decode_tokens: int = 0
    output_tokens: int = 0
    kv_tokens: int = 0  # that the steps' sequences saw
    bytes: float = 0.0
    operations: float = 0.0
    num_preempted: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    ttft_s: float = 0.0
    num_first: int = 0
    gap_s: float = 0.0
    num_gaps: int = 0
    queue_s: float = 0.0
    num_scheduled: int = 0
    num_running: int = 0
    num_waiting: int = 0
    kv_share: float = 0.0

    def add(self, step: StepResult, roofline: Roofline | None) -> None:
        prompt, decode, again = num_tokens(step)
        self.num_steps += bool(step.work)
        self.step_s += step.step_s if step.work else 0.0
        self.forward_s += step.forward_s
        self.mask_s += step.mask_s
        self.num_sequences += len(step.work)
        self.prompt_tokens += prompt + again
        self.decode_tokens += decode
        self.output_tokens += step.num_generation_tokens
        self.kv_tokens += sum(row.num_kv_tokens for row in step.work)
        if roofline is not None:
            self.bytes += roofline.bytes_of(step)
            self.operations += roofline.operations_of(step)
        self.num_preempted += step.num_preempted
        for counts in step.drafts.values():
            self.draft_tokens += counts.num_draft_tokens
            self.accepted_tokens += counts.num_accepted_tokens
        self.prefix_queries += step.prefix_queries
        self.prefix_hits += step.prefix_hits
        self.ttft_s, self.num_first = self.ttft_s + sum(step.ttft_s), self.num_first + len(step.ttft_s)
        self.gap_s, self.num_gaps = self.gap_s + sum(step.inter_token_s), self.num_gaps + len(step.inter_token_s)
        self.queue_s, self.num_scheduled = self.queue_s + sum(step.queue_s), self.num_scheduled + len(step.queue_s)
        self.num_running, self.num_waiting = step.num_running, step.num_waiting
        self.kv_share = step.kv_blocks_used / step.kv_blocks_total if step.kv_blocks_total else 0.0


class History:
    """`record` is an observer of steps, on the engine's thread; the rest may be called from any."""

    def __init__(
        self,
        *,
        num_threads: int = 1,
        max_num_seqs: int = 64,
        clock: Callable[[], float] = time.monotonic,
        read_cpu: Callable[[], CpuTimes] = read_cpu_times,
    ) -> None:
        self.roofline: Roofline | None = None
        self._num_threads, self._max_num_seqs = num_threads, max_num_seqs
        self._clock, self._read_cpu = clock, read_cpu
        self._lock = threading.Lock()
        self._slots: deque[Second] = deque([Second(int(clock()), read_cpu())], maxlen=SECONDS)

    def record(self, step: StepResult) -> None:
        """Add a step to its second."""
        slot = self._slots[-1]
        now = int(self._clock())
        if now != slot.at:
            slot = self._next(now)
        slot.add(step, self.roofline)

    def _next(self, now: int) -> Second:
        before = self._slots[-1]
        slot = Second(now, self._read_cpu())
        slot.num_running, slot.num_waiting, slot.kv_share = before.num_running, before.num_waiting, before.kv_share
        with self._lock:
            self._slots.append(slot)
        return slot

    def _last(self, seconds: float) -> list[Second]:
        since = self._clock() - seconds
        with self._lock:
            return [slot for slot in self._slots if slot.at >= since - 1]

    def facts(self, **now: Any) -> Facts:
        """The last ten seconds; `now` are facts that others know."""
        slots = self._last(WINDOW_S)
        total = _sum(slots)
        last = self._slots[-1]
        line = self.roofline
        forward_s = total["forward_s"] or 1.0
        steps = total["num_steps"]
        known: dict[str, Any] = {
            "seconds": float(WINDOW_S),
            "num_steps": int(steps),
            "step_s": total["step_s"] / steps if steps else 0.0,
            "busy_share": min(1.0, total["step_s"] / WINDOW_S),
            "forward_share": total["forward_s"] / total["step_s"] if total["step_s"] else 1.0,
            "mask_share": total["mask_s"] / total["step_s"] if total["step_s"] else 0.0,
            "batch": total["num_sequences"] / steps if steps else 0.0,
            "queue_s": total["queue_s"] / total["num_scheduled"] if total["num_scheduled"] else 0.0,
            "ttft_s": total["ttft_s"] / total["num_first"] if total["num_first"] else None,
            "tpot_s": total["gap_s"] / total["num_gaps"] if total["num_gaps"] else None,
            "num_running": last.num_running,
            "num_waiting": last.num_waiting,
            "kv_share": last.kv_share,
            "max_num_seqs": self._max_num_seqs,
            "num_threads": self._num_threads,
        }
        known |= {name: int(total[name]) for name in COUNTS}
        if line is not None:
            mean_kv = total["kv_tokens"] / total["num_sequences"] if total["num_sequences"] else 0.0
            known |= {
                "weight_bytes": line.weight_bytes,
                "kv_bytes": line.kv_token_bytes * mean_kv,
                "token_operations": line.token_operations,
                "bandwidth": line.bandwidth,
                "peak": line.peak,
                "bandwidth_share": total["bytes"] / forward_s / line.bandwidth if line.bandwidth else None,
                "arithmetic_share": total["operations"] / forward_s / line.peak if line.peak else None,
            }
        return Facts(**known | self._cpu(slots, total["forward_s"]) | now)

    def _cpu(self, slots: list[Second], forward_s: float) -> dict[str, float | None]:
        """How the CPUs' time was shared since the first of these seconds."""
        if not slots:
            return {}
        then, now = slots[0].cpu, self._read_cpu()
        wall, own = now.wall - then.wall, now.own - then.own
        if wall <= 0 or now.machine is None or then.machine is None:
            return {}
        wanted = forward_s * self._num_threads
        others = max(0.0, now.machine - then.machine - own) / wall
        return {"cpu_share": own / wanted if wanted > 0.05 * wall else None, "other_cpus": others}

    def lines(self, step: int = 5) -> dict[str, list[float]]:
        """Sparklines of the last ten minutes, a point for each `step` seconds, the latest last."""
        now = int(self._clock())
        with self._lock:
            slots = list(self._slots)
        columns: list[list[Second]] = [[] for _ in range(SECONDS // step)]
        for slot in slots:
            place = len(columns) - 1 - (now - slot.at) // step
            if 0 <= place < len(columns):
                columns[place].append(slot)
        return {name: [round(line(column, step), 4) for column in columns] for name, line in LINES.items()}


COUNTS = ("prompt_tokens", "decode_tokens", "output_tokens", "num_preempted", "draft_tokens", "accepted_tokens",
          "prefix_queries", "prefix_hits")  # fmt: skip
SUMS = (*COUNTS, "num_steps", "step_s", "forward_s", "mask_s", "num_sequences", "kv_tokens", "bytes", "operations",
        "ttft_s", "num_first", "gap_s", "num_gaps", "queue_s", "num_scheduled")  # fmt: skip


def _sum(slots: Iterable[Second]) -> dict[str, float]:
    found = list(slots)
    return {name: float(sum(getattr(slot, name) for slot in found)) for name in SUMS}


def _mean(total: str, count: str, scale: float = 1.0) -> Callable[[list[Second], int], float]:
    def line(slots: list[Second], step: int) -> float:
        number = sum(getattr(slot, count) for slot in slots)
        return scale * sum(getattr(slot, total) for slot in slots) / number if number else 0.0

    return line


def _rate(name: str) -> Callable[[list[Second], int], float]:
    return lambda slots, step: float(sum(getattr(slot, name) for slot in slots)) / step


def _peak(name: str) -> Callable[[list[Second], int], float]:
    return lambda slots, step: max((float(getattr(slot, name)) for slot in slots), default=0.0)


LINES: dict[str, Callable[[list[Second], int], float]] = {
    "tokens_s": _rate("output_tokens"),
    "prompt_tokens_s": _rate("prompt_tokens"),
    "running": _peak("num_running"),
    "waiting": _peak("num_waiting"),
    "kv": _peak("kv_share"),
    "ttft_ms": _mean("ttft_s", "num_first", 1000.0),
    "tpot_ms": _mean("gap_s", "num_gaps", 1000.0),
    "bytes_s": _mean("bytes", "forward_s"),
}
