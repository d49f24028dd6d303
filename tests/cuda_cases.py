"""What tests of the CUDA backend share: whether it can be tested here, models on torch's CPU, and steps for kernels."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

HAS_GPU = Path("/proc/driver/nvidia/version").exists()
if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before kernels are imported: then numpy runs them


def need_torch(*, triton: bool = False) -> None:
    """Skip the module where torch, or Triton, is not installed."""
    for package in ("torch", "triton") if triton else ("torch",):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[cuda]'", allow_module_level=True)
    import torch

    torch.set_num_threads(1)  # tensors are tiny, and threads only wait for each other


def need_gpu() -> None:
    need_torch(triton=True)
    import torch

    if not torch.cuda.is_available():
        pytest.skip("this machine has no GPU", allow_module_level=True)
