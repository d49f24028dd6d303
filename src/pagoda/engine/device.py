"""Where to compute: the device that was asked for, or the best there is, with the reason in the log."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pagoda.backends.base import Backend, ForwardModel
from pagoda.config import EngineSettings
from pagoda.errors import ConfigError
from pagoda.formats.checkpoint import Checkpoint, open_checkpoint
from pagoda.models.base_names import with_base_names
from pagoda.models.layers import Decoder
from pagoda.models.mtp import MtpHead
from pagoda.models.registry import load_head, load_model
from pagoda.models.rope_override import override_rope
from pagoda.sources import resolve

log = logging.getLogger(__name__)

DRIVER = Path("/proc/driver/nvidia/version")
WSL_DRIVER = Path("/dev/dxg")


def make_backend(settings: EngineSettings) -> Backend:
    """The backend of `settings.backend`. ConfigError: the device is not there, or the settings do not go with it."""
    chosen = settings.backend
    if chosen == "auto":
        missing = no_cuda_reason()
        chosen = "cpu" if missing else "cuda"
        log.info("computing on %s: %s", *(("the CPU", missing) if missing else ("CUDA", "there is a GPU")))
    if chosen != "cuda" and settings.tensor_parallel > 1 and settings.backend != "torch-cpu":
        raise ConfigError("--tensor-parallel needs --device cuda")
    if chosen != "cpu" and settings.activation_type == "int8":
        raise ConfigError("--activation-type int8 needs --device cpu: elsewhere activations are floats")
    if chosen != "cpu" and settings.kv_type == "int16":
        raise ConfigError("--kv-type int16 needs --device cpu: elsewhere f16 takes as little")
    if chosen == "cpu" and settings.kv_host_memory_bytes is not None:
        raise ConfigError("--kv-host-memory is for GPUs: on a CPU the KV cache lies in that memory; raise --kv-memory")
    return BACKENDS[chosen](settings)


def no_cuda_reason() -> str | None:
    """Why nothing can be computed on a GPU here; None: it can. torch is imported where a GPU's driver is."""
    if not DRIVER.exists() and not WSL_DRIVER.exists():
        return "this machine has no NVIDIA GPU, or no driver for it"
    for package in ("torch", "triton"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: pip install torch triton"
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU that it can use"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} is older than compute capability 8.0"
    return None


def torch_device(backend: str) -> str | None:
    """What torch calls the device behind this value of `--device`; None: torch is not what computes there.

    ConfigError: the device, or torch, is not there.
    """
    if backend == "torch-cpu":
        if importlib.util.find_spec("torch") is None:
            raise ConfigError("--device torch-cpu: torch is not installed: pip install torch triton")
        return "cpu"
    if backend not in ("auto", "cuda"):
        return None
    missing = no_cuda_reason()
    if missing is not None and backend == "cuda":
        raise ConfigError(f"--device cuda: {missing}")
    return None if missing else "cuda"


def _cpu(settings: EngineSettings) -> Backend:
    from pagoda.backends.cpu import CpuBackend  # imports the extension

    return CpuBackend(
        threads=settings.threads,
        isa=settings.isa,
        activation_bits=int(settings.activation_type[3:]),
        bf16_products=settings.bf16_products,
    )


def _reference(settings: EngineSettings) -> Backend:
    from pagoda.backends.reference import ReferenceBackend

    return ReferenceBackend()


def _torch(settings: EngineSettings) -> Backend:
    device = torch_device(settings.backend)
    assert device is not None
    from pagoda.backends.cuda.backend import CudaBackend  # imports torch
    from pagoda.backends.cuda.options import CudaOptions
    from pagoda.backends.cuda.parallel import ParallelBackend

    options = CudaOptions(
        device,
        ops="fast" if device == "cuda" else "eager",
        batch_invariant=settings.batch_invariant,
        graphs=settings.cuda_graphs,
    )
    if settings.tensor_parallel == 1:
        return CudaBackend(options)
    return ParallelBackend(options, settings.tensor_parallel, partial(open_model, settings))


def open_model(settings: EngineSettings) -> ForwardModel:
    """What another process of the same engine opens for itself."""
    return open_forward_model(open_checkpoint(resolve(settings.model).path), settings)


def open_forward_model(checkpoint: Checkpoint, settings: EngineSettings) -> ForwardModel:
    """The checkpoint's model as the settings will serve it. Raises what `load_model` and `override_rope` raise."""
    longest = settings.max_context
    named = with_base_names(checkpoint)
    return load_model(override_rope(named, settings.rope_scaling, settings.rope_theta, longest), longest)


def open_head(checkpoint: Checkpoint, settings: EngineSettings, model: Decoder) -> MtpHead | None:
    """The head beside such a `model` that predicts one token more; None: it has none. Raises as `load_head` does."""
    longest = settings.max_context
    named = with_base_names(checkpoint)
    return load_head(override_rope(named, settings.rope_scaling, settings.rope_theta, longest), model, longest)


BACKENDS: dict[str, Callable[[EngineSettings], Backend]] = {
    "cpu": _cpu,
    "cuda": _torch,
    "torch-cpu": _torch,
    "reference": _reference,
}
