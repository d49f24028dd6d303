"""Small jobs of `pagoda.quantize` and what their models compute, for tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.registry import load_model
from pagoda.quantize.arithmetic import Arithmetic
from pagoda.quantize.forward import PlainWeights, WindowOps
from pagoda.quantize.methods import Job, find_method
from pagoda.quantize.settings import QuantizeSettings
from pagoda.types import FloatArray

need_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")

TEXT = "the quick brown fox jumps over the lazy dog, and then it does so again: 12 times! " * 60
WINDOWS = np.random.default_rng(0).integers(0, 250, (3, 48)).astype(np.int32)


def settings(folder: Path, to: str, **changes: Any) -> QuantizeSettings:
    """Of a job that takes a second."""
    text = folder / "calibration.txt"
    text.write_text(TEXT)
    small = {"calibration": str(text), "calibration_samples": 6, "calibration_tokens": 64, "group_size": 32}
    return QuantizeSettings(to=to, **(small | changes))


def run(source: Path, folder: Path, to: str, **changes: Any) -> tuple[Path, list[str]]:
    """The method's folder, its work beside it, and what it said."""
    work, said = folder / "work", []
    work.mkdir(exist_ok=True)
    job = Job(source, work, to, settings(folder, to, **changes), lambda what, done, total: None, said.append)
    return find_method(to).run(job), said


def logits_by_device(source: Path, folder: Path, to: str, *devices: str) -> list[FloatArray]:
    """What the method's folders compute, calibrated on each device in turn; each says which it is if it is torch's."""
    found = []
    for device in devices:
        place = folder / device
        place.mkdir()
        made, said = run(source, place, to, device=device)
        assert (f"computing in torch on {device.removeprefix('torch-')}" in said) == (device != "cpu")
        with open_checkpoint(made) as checkpoint:
            found.append(logits(checkpoint))
    return found


def cosine(a: FloatArray, b: FloatArray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def logits(
    checkpoint: Any, windows: npt.NDArray[np.int32] = WINDOWS, arithmetic: Arithmetic | None = None
) -> FloatArray:
    """Of every token of the windows. → [N, V]"""
    found: list[FloatArray] = []
    ops = WindowOps(windows, PlainWeights(), on_logits=lambda i, chunk: found.append(chunk), arithmetic=arithmetic)
    load_model(checkpoint).forward(ops)
    return np.concatenate(found)
