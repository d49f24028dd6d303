"""How large the KV cache is, decided once at start: what memory allows, but no more than could ever be used.

    KV bytes = available × utilization − weights − buffers, or what the user said
    blocks   = at most what max_num_seqs sequences of usual length need, and always one of max_context

The usual length is max_context where the user named it or the KV bytes, else USUAL_TOKENS: the pool fills up with
cached prefixes sooner or later, and a model of long context should not for that take all memory there is.

With several KV groups, all get the same share of what they could use; those of a draft model are among them, and so are
the states of recurrent layers, two a sequence: one that it stands on, one that is kept for its prefix. `plan_kv`
is pure; `available_memory` reads the machine.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pagoda.backends.base import ForwardModel, LoadedModel
from pagoda.config import EngineSettings
from pagoda.errors import CapacityError, ConfigError
from pagoda.kv.table import peak_blocks
from pagoda.types import BLOCK_SIZE

USUAL_TOKENS = 2048  # prompt and output of a sequence, where nobody says
SEQUENCE_STATES = 2


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a loaded model takes."""

    weight_bytes: int
    buffer_bytes: int
    windows: tuple[int | None, ...]  # of the KV groups
    block_bytes: tuple[int, ...]
    graph_bytes: int = 0  # of buffer_bytes, on a GPU
    draft: Footprint | None = None  # of what guesses beside it, a draft model or the model's own head
    adapter_bytes: int = 0  # of adapters that are there from the start, or that room is kept for
    state_bytes: int = 0  # of one state of recurrent layers
    name: str = "draft model"  # of what stands beside a model

    @classmethod
    def of(
        cls, forward_model: ForwardModel, model: LoadedModel, draft: Footprint | None = None, adapter_bytes: int = 0
    ) -> Footprint:
        groups = forward_model.kv_groups
        return cls(
            model.weight_bytes,
            model.buffer_bytes,
            tuple(group.window for group in groups),
            tuple(model.block_bytes(g) for g in range(len(groups))),
            model.graph_bytes,
            draft,
            adapter_bytes,
            model.state_bytes,
        )

    @property
    def together(self) -> Footprint:
        """Both models as one: the draft's KV groups come after the target's."""
        if self.draft is None:
            return self
        return Footprint(
            self.weight_bytes + self.draft.weight_bytes,
            self.buffer_bytes + self.draft.buffer_bytes,
            self.windows + self.draft.windows,
            self.block_bytes + self.draft.block_bytes,
            self.graph_bytes + self.draft.graph_bytes,
            adapter_bytes=self.adapter_bytes,
            state_bytes=self.state_bytes,
        )


@dataclass(frozen=True, slots=True)
class KVPlan:
    """Blocks a group, and the longest sequence that fits."""

    footprint: Footprint
    num_blocks: tuple[int, ...]
    max_context: int
    num_seqs: float  # how many sequences of max_context tokens fit at once
    draft_blocks: tuple[int, ...] = ()  # of the draft model's groups
    num_states: int = 0

    @property
    def kv_bytes(self) -> int:
        """The bytes of both models' KV, states included."""
        return _bytes(self.footprint.together, (*self.num_blocks, *self.draft_blocks, self.num_states))

    def __str__(self) -> str:
        taken = f"weights {_mib(self.footprint.weight_bytes)} + {self._buffers()}"
        if draft := self.footprint.draft:
            taken += f" + {draft.name} {_mib(draft.weight_bytes + draft.buffer_bytes)}"
        if self.footprint.adapter_bytes:
            taken += f" + adapters {_mib(self.footprint.adapter_bytes)}"
        return (
            f"memory: {taken} + KV blocks {_mib(self.kv_bytes - self._state_bytes)} "
            f"({' + '.join(map(str, (*self.num_blocks, *self.draft_blocks)))} of {BLOCK_SIZE} tokens) {self._states()}"
            f"= {self.num_seqs:.1f} sequences of {self.max_context} tokens"
        )

    def _states(self) -> str:
        return f"+ {self.num_states} states {_mib(self._state_bytes)} " if self.num_states else ""

    @property
    def _state_bytes(self) -> int:
        return self.num_states * self.footprint.state_bytes

    def _buffers(self) -> str:
        buffers, graphs = self.footprint.buffer_bytes, self.footprint.graph_bytes
        return f"activations {_mib(buffers - graphs)} + graphs {_mib(graphs)}" if graphs else f"buffers {_mib(buffers)}"


def plan_kv(
    footprint: Footprint, settings: EngineSettings, model_context: int, available: int, *, fill: bool = False
) -> KVPlan:
    """Size the KV cache. `available` bytes were free before the model was loaded. `fill`: take all that may be taken,
    as on a GPU, whose memory nobody else is waiting for.

    Without settings.max_context, the context shrinks to what fits. CapacityError: what was asked for does not fit.
    ConfigError: the model has no such context.
    """
    target, footprint = footprint, footprint.together
    budget = settings.kv_memory_bytes
    if budget is None:
        taken = footprint.weight_bytes + footprint.buffer_bytes + footprint.adapter_bytes
        allowed = int(available * settings.memory_utilization)
        budget = allowed - taken
        if budget <= 0:
            smaller = "take a smaller model"
            if footprint.weight_bytes < allowed:
                smaller = (
                    f"lower --max-batch-tokens {settings.batch_tokens} or --max-num-seqs {settings.num_seqs}, whose "
                    f"buffers take {_mib(footprint.buffer_bytes)} of it"
                )
            raise CapacityError(
                f"the model needs {_mib(taken)}, but {settings.memory_utilization:.0%} of the available memory is "
                f"{_mib(allowed)}; free some memory, raise --memory-utilization or {smaller}"
            )
    max_context = _max_context(footprint, settings, model_context, budget)
    one = _blocks_of_one(footprint, settings, max_context)
    num_seqs = min(settings.num_seqs, settings.batch_tokens)
    usual = one if fill else _blocks_of_one(footprint, settings, _usual_tokens(settings, max_context))
    wanted = [max(n, few * num_seqs) for n, few in zip(one, usual, strict=True)]
    share = min(1.0, budget / _bytes(footprint, wanted))
    num_blocks = tuple(max(n, int(many * share)) for n, many in zip(one, wanted, strict=True))
    num_seqs_whole = min(m / n for m, n in zip(num_blocks, one, strict=True) if n)
    own = len(target.windows)
    return KVPlan(target, num_blocks[:own], max_context, num_seqs_whole, num_blocks[own:-1], num_blocks[-1])


def _usual_tokens(settings: EngineSettings, max_context: int) -> int:
    said = settings.max_context is not None or settings.kv_memory_bytes is not None
    return max_context if said else min(max_context, USUAL_TOKENS)


def _max_context(footprint: Footprint, settings: EngineSettings, model_context: int, budget: int) -> int:
    """The longest context whose one sequence fits in `budget`."""
    wanted = settings.max_context or model_context
    if wanted > model_context:
        raise ConfigError(
            f"--max-context {wanted}: the model's context is {model_context} tokens; --rope-scaling yarn:"
            f"{-(-wanted // model_context)} stretches it, if the model was made for that"
        )

    def fits(num_tokens: int) -> bool:
        return _bytes(footprint, _blocks_of_one(footprint, settings, num_tokens)) <= budget

    if fits(wanted):
        return wanted
    fitting = _largest(wanted, fits)
    needed = _bytes(footprint, _blocks_of_one(footprint, settings, wanted))
    if settings.max_context is not None or fitting < BLOCK_SIZE:
        raise CapacityError(
            f"one sequence of {wanted} tokens needs {_mib(needed)} of KV cache, but there are {_mib(max(budget, 0))}, "
            f"enough for {fitting} tokens; lower --max-context, raise --kv-memory or --memory-utilization, or take "
            "--kv-type int8"
        )
    return fitting


def _largest(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest n ≤ limit that fits, 0 if none does; what fits, fits also smaller."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _blocks_of_one(footprint: Footprint, settings: EngineSettings, num_tokens: int) -> list[int]:
    """Blocks of each group, then states."""
    blocks = [peak_blocks(num_tokens, window, settings.batch_tokens) for window in footprint.windows]
    return [*blocks, SEQUENCE_STATES if footprint.state_bytes else 0]


def _bytes(footprint: Footprint, counts: Sequence[int]) -> int:
    """The bytes of so many blocks of each group, and of states."""
    return sum(n * size for n, size in zip(counts, (*footprint.block_bytes, footprint.state_bytes), strict=True))


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"


# The machine


def available_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may still take: free and reclaimable memory, within the limits of its cgroups."""
    if sys.platform == "darwin":
        return _darwin_memory()
    return min([_meminfo(proc / "meminfo"), *_cgroup_rooms(proc / "self/cgroup", cgroups)])


def _meminfo(path: Path) -> int:
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _cgroup_rooms(membership: Path, cgroups: Path) -> list[int]:
    """What each limit on the way from this process's memory cgroup to the root still allows."""
    rooms = []
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, usage, inactive = cgroups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, inactive = cgroups / "memory", "total_inactive_file"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):  # in a container, the path may be the host's: then only the root is there
            rooms += _cgroup_room(root.joinpath(*parts[:depth]), limit, usage, inactive)
    return rooms


def _cgroup_room(folder: Path, limit: str, usage: str, inactive: str) -> list[int]:
    try:
        allowed = int((folder / limit).read_text())  # "max" is no limit
        used = int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return []
    return [max(0, allowed - used + int(stat.get(inactive, 0)))]


def _darwin_memory() -> int:
    """Half of the physical memory: macOS has no figure for what is available that means the same."""
    return int(subprocess.check_output(["sysctl", "-n", "hw.memsize"])) // 2


def peak_memory() -> int:
    """The most bytes of memory that this process has held at once."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
