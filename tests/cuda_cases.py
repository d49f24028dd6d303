"""What tests of the CUDA backend share: whether it can be tested here, models on torch's CPU, and steps for kernels."""

from __future__ import annotations

import importlib.util
import os

import pytest

from pagoda.engine.device import no_cuda_reason

NO_GPU = no_cuda_reason()  # None: there is one that can be computed on
if NO_GPU is not None:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before kernels are imported: then numpy runs them


def need_torch(*, triton: bool = False) -> None:
    """Skip the module where torch, or Triton, is not installed."""
    for package in ("torch", "triton") if triton else ("torch",):
        if importlib.util.find_spec(package) is None:
            pytest.skip(
                f"{package} is not installed; `make test` brings it where an index has it for this machine",
                allow_module_level=True,
            )
    import torch

    torch.set_num_threads(1)  # tensors are tiny, and threads only wait for each other


def need_gpu() -> None:
    if NO_GPU is not None:
        pytest.skip(NO_GPU, allow_module_level=True)
