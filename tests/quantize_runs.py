"""Small jobs of `pagoda.quantize` and what their models compute, for tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.hugging_face import as_hugging_face
from pagoda.models.registry import load_model
from pagoda.quantize.calibration.arithmetic import Arithmetic
from pagoda.quantize.calibration.forward import WindowOps
from pagoda.quantize.calibration.layers import InputStatistics, Store
from pagoda.quantize.calibration.linear_source import PlainWeights
from pagoda.quantize.calibration.sample import read_documents, read_sample
from pagoda.quantize.calibration.values import LinearCall, SampleValue
from pagoda.quantize.job import Job
from pagoda.quantize.methods import find_method
from pagoda.quantize.settings import QuantizeSettings
from pagoda.text.tokenizer import load_tokenizer
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


class OutputErrors:
    """A `LinearSource`, the model as it is; `by_name`: |x (W - Q)^T|^2 / |x W^T|^2 of each linear that a job made Q."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.by_name: dict[str, float] = {}

    def weights(self, x: SampleValue, calls: Sequence[LinearCall]) -> list[FloatArray]:
        weights = PlainWeights().weights(x, calls)
        hessian = np.asarray(InputStatistics(x).hessian)
        for call, weight in zip(calls, weights, strict=True):
            change = weight - self.store.load(call.weight.name).values()
            lost, whole = (np.einsum("oi,ij,oj->", part, hessian, part, optimize=True) for part in (change, weight))
            self.by_name[call.weight.name] = float(lost / whole)
        return weights


def output_errors(source: Path, folder: Path) -> dict[str, float]:
    """How far the linears that `run` left in `folder` are from the model's, on the windows it calibrated with."""
    errors = OutputErrors(Store(folder / "work" / "layers"))
    text = str(folder / "calibration.txt")
    with open_checkpoint(source) as checkpoint:
        documents = read_documents(text)
        sample = read_sample(text, documents, load_tokenizer(checkpoint), None, num_windows=6, window_tokens=64)
        load_model(as_hugging_face(checkpoint)).forward(WindowOps(sample.windows, errors))
    return errors.by_name


def check_devices_do_equally_well(source: Path, folder: Path, to: str, *devices: str) -> None:
    """The method on each device in turn: equal errors of every linear's output, equal distances to the original.

    The models need not be equal: sums that differ in last bits tip weights that lie between two codes, and what the
    next columns make up for follows from that.
    """
    with open_checkpoint(source) as checkpoint:
        original = logits(checkpoint)
    errors, distances = [], []
    for device in devices:
        place = folder / device
        place.mkdir()
        made, said = run(source, place, to, device=device)
        assert (f"computing in torch on {device.removeprefix('torch-')}" in said) == (device != "cpu")
        errors.append(output_errors(source, place))
        with open_checkpoint(made) as checkpoint:
            distances.append(1 - cosine(logits(checkpoint), original))
    for found in errors[1:]:
        assert found == pytest.approx(errors[0], rel=0.1)
        assert sum(found.values()) == pytest.approx(sum(errors[0].values()), rel=0.02)
    assert distances[1:] == pytest.approx(distances[:1] * len(distances[1:]), rel=0.1)


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
