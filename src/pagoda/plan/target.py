"""One plan: one model in one format on one kind of device. From settings to figures, decided once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pagoda.backends.specs import KVType, kv_type_for
from pagoda.config import CPU_LIMITS, GPU_LIMITS
from pagoda.engine.load import MIN_ROWS
from pagoda.errors import ConfigError, UnsupportedError
from pagoda.hardware.device import THIS, Device
from pagoda.plan.cost.memory import (
    GPU_RUNTIME_BYTES,
    Memory,
    buffer_bytes,
    cpu_runtime_bytes,
    kv_request_bytes,
    kv_token_bytes,
)
from pagoda.plan.cost.roofline import Costs, RooflineCosts, peak_flops
from pagoda.plan.cost.speed import RequestLoad, Speed, batch_of_compute, largest_concurrency, prefill_s, speed
from pagoda.plan.cost.work import Workload, decode_step, prefill_steps
from pagoda.plan.model.models import find_shape
from pagoda.plan.model.shapes import ModelShape
from pagoda.plan.model.weights import ModelWeights, default_format, weights_in
from pagoda.plan.settings import USUAL_TPOT_MS, USUAL_TTFT_MS, PlanSettings

Say = Callable[[str], None]

CPU_CHUNK, GPU_CHUNK = CPU_LIMITS[0], GPU_LIMITS[0]
MOST_USERS = 512  # more than that are not planned into one replica
USUAL_ROWS = 64


@dataclass(frozen=True)
class Target:
    """A model in a format on tp × pp devices, for a load."""

    shape: ModelShape
    device: Device
    weights: ModelWeights
    settings: PlanSettings
    tp: int = 1
    pp: int = 1
    measured: Costs | None = None  # of the kernels here, where this is the machine
    draft: Target | None = None  # a draft model on the same devices

    @property
    def num_devices(self) -> int:
        return self.tp * self.pp

    @property
    def is_here(self) -> bool:
        return self.device.id == THIS

    @property
    def chunk(self) -> int:
        return self.settings.max_batch_tokens or (GPU_CHUNK if self.device.kind == "gpu" else CPU_CHUNK)

    @property
    def load(self) -> RequestLoad:
        return RequestLoad(self.settings.prompt, self.settings.output, self.chunk)

    @property
    def context(self) -> int:
        return self.settings.context or self.settings.prompt + self.settings.output

    @cached_property
    def workload(self) -> Workload:
        return Workload(self.shape, self.weights, self.kv_type)

    @cached_property
    def costs(self) -> Costs:
        return self.measured or RooflineCosts(self.device, self.workload, self.weights, tp=self.tp, pp=self.pp)

    @cached_property
    def ceilings(self) -> RooflineCosts:
        """Costs at the device's own limits, without any loss."""
        return RooflineCosts(self.device, self.workload, self.weights, tp=self.tp, pp=self.pp, ideal=True)

    # Memory

    @cached_property
    def kv_type(self) -> KVType:
        """Number type of the KV cache: the one asked for, or else what `pagoda serve` takes on the device."""
        return kv_type_for(self.device.isa) if self.settings.kv_type == "auto" else self.settings.kv_type

    @cached_property
    def memory(self) -> Memory:
        kv_type, tokens = self.kv_type, self.settings.prompt + self.settings.output
        shards = self.kv_shards
        weights, buffers, runtime = self._fixed()
        shape = self.shape.with_head() if self.has_head else self.shape
        own = Memory(
            device_bytes=self.device.memory_bytes,
            usable_bytes=int(self.device.memory_bytes * self.settings.memory_utilization),
            weight_bytes=weights,
            buffer_bytes=buffers,
            runtime_bytes=runtime,
            kv_token_bytes=sum(kv_token_bytes(kind, kv_type) for kind in shape.attention) / shards,
            kv_request_bytes=-(-kv_request_bytes(shape, kv_type, tokens, self.chunk) // shards),
            kv_context_bytes=-(-kv_request_bytes(shape, kv_type, self.context, self.chunk) // shards),
        )
        return own if self.draft is None else own.with_draft(self.draft.memory)

    @property
    def has_head(self) -> bool:
        """Whether the model's own head guesses: of a file that has it, on a CPU, without a draft model."""
        return self.device.kind != "gpu" and self.draft is None and self.shape.has_head

    @property
    def kv_shards(self) -> int:
        """Parts that the KV cache of a token is split in: heads among tp devices, each whole; latents stay whole."""
        kind = self.shape.attention[0]
        return self.pp * (1 if kind.latent_dim else min(self.tp, kind.num_kv_heads))

    def _fixed(self) -> tuple[int, int, int]:
        """Bytes of weights, buffers and runtime on one device."""
        rows = max(USUAL_ROWS, MIN_ROWS)
        if self.is_here and (here := self._engine_fixed(rows)):
            return here
        weights = -(-self.weights.total // self.num_devices)
        buffers = buffer_bytes(self.shape, self.chunk, rows)
        runtime = GPU_RUNTIME_BYTES if self.device.kind == "gpu" else cpu_runtime_bytes(self.shape)
        return weights, buffers, runtime

    def _engine_fixed(self, rows: int) -> tuple[int, int, int] | None:
        """Bytes of weights, buffers and runtime as this engine lays them out; None if it does not run such a model."""
        from pagoda.backends.cores import usable_cores
        from pagoda.plan.cost.resident import embedding_bytes, engine_bytes

        if self.kv_type == "fp8":
            return None
        kv_type, threads = self.kv_type, usable_cores()
        limits = {"batch_tokens": self.chunk, "rows": rows, "threads": threads}
        sizes = engine_bytes(self.shape, self.weights, kv_type, **limits, with_head=self.has_head)
        if sizes is None:
            return None
        weights, buffers = sizes
        return weights + embedding_bytes(self.shape, self.weights), buffers, cpu_runtime_bytes(self.shape)

    @property
    def fits(self) -> bool:
        """Whether memory holds the users asked for (one by default), and one request as long as the context."""
        wanted = self.settings.concurrency or 1
        return self.memory.max_requests >= wanted and self.memory.max_full_requests >= 1

    @property
    def missing_bytes(self) -> int:
        """Bytes that one device lacks; 0 if the plan fits."""
        need = max(self.memory.kv_context_bytes, (self.settings.concurrency or 1) * self.memory.kv_request_bytes)
        return max(0, self.memory.fixed_bytes + need - self.memory.usable_bytes)

    # Speed

    @property
    def compute_type(self) -> str:
        return peak_flops(self.device, self.weights.computes_on(self.device.kind))[0]

    @property
    def ridge(self) -> float:
        """FLOPs per byte at which arithmetic and memory take equally long."""
        peak = peak_flops(self.device, self.weights.computes_on(self.device.kind))[1]
        return peak / self.device.bandwidth_bytes_s

    @cached_property
    def ttft_s(self) -> float:
        return prefill_s(self.costs, self.settings.prompt, self.chunk)

    @cached_property
    def tpot_s(self) -> float:
        return self.costs.step(decode_step(1, self.settings.prompt + self.settings.output / 2)).seconds

    @cached_property
    def prefill_intensity(self) -> float:
        works = [self.workload.of(step) for step in prefill_steps(self.settings.prompt, self.chunk)]
        return sum(work.flops for work in works) / sum(work.bytes for work in works)

    @property
    def prefill_flops(self) -> float:
        return sum(self.workload.of(step).flops for step in prefill_steps(self.settings.prompt, self.chunk))

    @cached_property
    def decode_intensity(self) -> float:
        return self.workload.of(decode_step(1, self.settings.prompt + self.settings.output / 2)).intensity

    @cached_property
    def compute_bound_batch(self) -> int | None:
        return batch_of_compute(self.costs, self.settings.prompt + self.settings.output // 2)

    def at(self, concurrency: int) -> Speed:
        return speed(self.costs, self.load, concurrency)

    @cached_property
    def users(self) -> int:
        """The concurrency to run at: what was asked for, what the bounds allow, else what memory holds, up to where
        decode turns compute-bound and more users only wait. 0: none.

        Where a bound is not given, it is USUAL_TTFT_MS or USUAL_TPOT_MS, if one user alone keeps them.
        """
        told = self.settings
        if told.concurrency:
            return told.concurrency
        most = min(self.memory.max_requests, MOST_USERS)
        if told.ttft is None and told.tpot is None:
            most = min(most, self.compute_bound_batch or most)
        usual = self._users_within(most, told.ttft or USUAL_TTFT_MS, told.tpot or USUAL_TPOT_MS)
        return usual or self._users_within(min(most, 1), told.ttft, told.tpot)

    def _users_within(self, most: int, *bounds_ms: float | None) -> int:
        ttft, tpot = (None if ms is None else ms / 1000 for ms in bounds_ms)
        return largest_concurrency(self.costs, self.load, most, ttft, tpot)

    @property
    def meets(self) -> bool:
        return self.fits and self.users >= 1

    @property
    def price_usd_h(self) -> float | None:
        """USD an hour for all devices of the target; None without a price."""
        each = self.settings.price if self.settings.price is not None else self.device.usd_per_hour
        return None if each is None else each * self.num_devices

    def with_settings(self, **changes: Any) -> Target:
        """A copy with other settings. Measured costs are dropped if the type of KV or activations changes."""
        settings = replace(self.settings, **changes)
        measured = None if {"kv_type", "activation_type"} & changes.keys() else self.measured
        return replace(self, settings=settings, measured=measured)

    def on(self, device: Device | None = None, *, tp: int | None = None, format: str | None = None) -> Target:
        """A copy on other devices or in another format, without measured costs."""
        weights = self.weights if format is None else weights_in(self.shape, format)
        return replace(self, device=device or self.device, tp=tp or self.tp, weights=weights, measured=None)


def split(shape: ModelShape, settings: PlanSettings) -> tuple[int, int]:
    """(tp, pp) of `--gpus`, `--tp` and `--pp`. ConfigError if heads or layers cannot be shared out so."""
    if settings.tp is None and settings.pp is None:
        tp = next(n for n in range(settings.gpus, 0, -1) if settings.gpus % n == 0 and _heads_divide(shape, n))
        pp = settings.gpus // tp
    else:
        tp, pp = settings.tp or 1, settings.pp or 1
        if settings.gpus not in (1, tp * pp):
            raise ConfigError(f"--tp {tp} × --pp {pp} are {tp * pp} devices, but --gpus is {settings.gpus}")
    if not _heads_divide(shape, tp):
        heads = shape.attention[0].num_heads
        raise ConfigError(f"--tp {tp}: {heads} query heads cannot be shared out evenly among {tp} devices")
    if pp > shape.num_layers:
        raise ConfigError(f"--pp {pp}: the model has only {shape.num_layers} layers")
    return tp, pp


def _heads_divide(shape: ModelShape, tp: int) -> bool:
    return all(kind.num_heads % tp == 0 for kind in shape.attention)


def _draft(device: Device, settings: PlanSettings, tp: int, pp: int) -> Target | None:
    """The draft model that the settings name, in its file's format."""
    if settings.draft_model is None:
        return None
    shape = find_shape(settings.draft_model)
    weights = weights_in(shape, default_format(shape, device.kind))
    return Target(shape, device, weights, replace(settings, model=settings.draft_model, draft_model=None), tp, pp)


def make_target(
    shape: ModelShape,
    device: Device,
    format: str,
    settings: PlanSettings,
    *,
    say: Say = lambda line: None,
    probe: bool = True,
) -> Target:
    """Decide the plan of one row. On this machine the kernels are measured, if that has not been done yet; without
    `probe` they are not, and the device's own efficiency stands in."""
    weights = weights_in(shape, format)
    if settings.context is not None and settings.context > shape.max_context:
        raise ConfigError(f"--context {settings.context}: the context of {shape.name} is {shape.max_context} tokens")
    if settings.prompt + settings.output > shape.max_context:
        raise ConfigError(
            f"--prompt {settings.prompt} and --output {settings.output} are more than the context of {shape.name}, "
            f"{shape.max_context} tokens"
        )
    tp, pp = split(shape, settings)
    target = Target(shape, device, weights, settings, tp, pp, draft=_draft(device, settings, tp, pp))
    if device.id != THIS or tp * pp > 1:
        return target
    from pagoda.plan.measured.measured_costs import measured_costs  # needs the extension and its probes

    try:
        costs = measured_costs(shape, weights, device, target.kv_type, settings.activation_type, say=say, probe=probe)
    except UnsupportedError:
        return target  # the engine here does not run it: the device's own efficiency stands
    return replace(target, measured=costs)
