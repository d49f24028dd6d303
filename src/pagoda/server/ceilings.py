"""What a step of the served model costs in bytes and operations, and what this machine was measured to do at most."""

from __future__ import annotations

import logging
from typing import Any, Protocol, runtime_checkable

from pagoda.backends.cores import usable_cores
from pagoda.config import EngineSettings
from pagoda.engine.memory import KVPlan
from pagoda.errors import PagodaError
from pagoda.hardware.host import read_hardware
from pagoda.hardware.machine import Measurement, age, remembered_measurement
from pagoda.observe.history import History
from pagoda.observe.roofline import Roofline
from pagoda.sources import LocalModel
from pagoda.types import BLOCK_SIZE

logger = logging.getLogger("pagoda.server")


@runtime_checkable
class FromFiles(Protocol):
    """A `Loaded` that says where its weights came from; `pagoda.engine.load.LoadedEngine` does."""

    source: LocalModel
    settings: EngineSettings
    kv_plan: KVPlan


def make_history(loaded: object) -> History:
    """The last ten minutes of a model's engine, which knows how many threads and sequences it may have."""
    if not isinstance(loaded, FromFiles):
        return History()
    settings = loaded.settings
    on_gpu = settings.backend == "cuda"
    threads = 0 if on_gpu else settings.threads or usable_cores()
    return History(num_threads=threads, max_num_seqs=settings.num_seqs)


def roofline_of(loaded: object) -> Roofline | None:
    """For a model from files; None for others. Nothing is measured now: `pagoda doctor` does, once."""
    if not isinstance(loaded, FromFiles):
        return None
    footprint = loaded.kv_plan.footprint
    hardware = read_hardware()
    threads = loaded.settings.threads
    measured = remembered_measurement(hardware, threads) or remembered_measurement(hardware)
    bandwidth, peak, source = _ceilings(loaded, measured)
    return Roofline(
        weight_bytes=float(footprint.weight_bytes),
        kv_token_bytes=sum(footprint.block_bytes) / BLOCK_SIZE,
        token_operations=_token_operations(loaded),
        bandwidth=bandwidth,
        peak=peak,
        source=source,
    )


def _token_operations(loaded: FromFiles) -> float:
    """Two for each weight of a matrix that a token meets."""
    from pagoda.plan.model.models import shape_of_file

    try:
        shape = shape_of_file(loaded.source.path)
    except PagodaError as error:
        logger.warning("what a step computes is not known", extra={"facts": {"why": str(error)}})
        return 0.0
    return 2.0 * sum(tensor.elements * shape.active_share(tensor) for tensor in (*shape.layer_matrices, shape.head))


def _ceilings(loaded: Any, measured: Measurement | None) -> tuple[float | None, float | None, str]:
    """Bytes/s, operations/s, and where they come from."""
    if measured is None:
        return None, None, "this machine has not been measured: run pagoda doctor once"
    source = f"pagoda doctor, {age(measured.date)}"
    if loaded.settings.backend in ("auto", "cuda") and measured.gpu is not None:
        gpu = measured.gpu
        return gpu.bandwidth_bytes_s, max(gpu.flops.values()), source
    kind = "int8" if "int8" in measured.peaks else next(iter(measured.peaks))
    return max(measured.read_bandwidth.values()), measured.peaks[kind], source
