"""The forward pass over windows computes what the reference backend computes, whatever the family and arithmetic."""

from collections.abc import Sequence

import numpy as np
import pytest

from pagoda.backends.base import run_batch
from pagoda.backends.reference import ReferenceBackend
from pagoda.models.registry import load_model
from pagoda.quantize.calibration.arithmetic import make_arithmetic
from pagoda.quantize.calibration.forward import WindowOps
from pagoda.quantize.calibration.layers import InputStatistics, column_sums
from pagoda.quantize.calibration.linear_source import PlainWeights
from pagoda.quantize.calibration.values import LinearCall, SampleValue
from pagoda.types import Batch, FloatArray
from quantize_runs import WINDOWS, logits, need_torch
from tiny_models import TINY, memory_checkpoint


def reference_logits(family: str) -> FloatArray:
    model = load_model(memory_checkpoint(TINY[family]))
    loaded = ReferenceBackend(batch_invariant=False).load(model, max_batch_tokens=64, max_batch_seqs=64, kv_type="f32")
    length = WINDOWS.shape[1]
    blocks = length // 16
    loaded.allocate_kv((blocks,) * len(model.kv_groups))
    table = np.arange(blocks, dtype=np.int32)[None]
    rows = []
    for tokens in WINDOWS:
        batch = Batch(
            tokens=tokens,
            positions=np.arange(length, dtype=np.int32),
            seq_starts=np.array([0, length], dtype=np.int32),
            context_lens=np.array([length], dtype=np.int32),
            block_tables=(table,) * len(model.kv_groups),
            logit_rows=np.arange(length, dtype=np.int32),
        )
        rows.append(run_batch(loaded, batch).copy())
    return np.concatenate(rows)


DEVICES = ["cpu", pytest.param("torch-cpu", marks=need_torch)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "family", ["llama3", "llama_biased", "mistral", "qwen2_windowed", "qwen3_yarn", "gemma3", "phi3_long"]
)
def test_agrees_with_the_reference_backend(family: str, device: str) -> None:
    found = logits(memory_checkpoint(TINY[family]), arithmetic=make_arithmetic(device, print))
    np.testing.assert_allclose(found, reference_logits(family), rtol=2e-4, atol=2e-4)


@need_torch
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_statistics_are_the_same_in_torch(family: str) -> None:
    found: list[list[FloatArray]] = []
    for device in ("cpu", "torch-cpu"):
        source = Statistics()
        model = load_model(memory_checkpoint(TINY[family]))
        model.forward(WindowOps(WINDOWS, source, arithmetic=make_arithmetic(device, print)))
        found.append(source.found)
    assert len(found[0]) == 3 * 4 * model.num_layers
    for host, device in zip(*found, strict=True):
        np.testing.assert_allclose(device, host, rtol=2e-3, atol=2e-4 * np.abs(host).max())


class Statistics(PlainWeights):
    """Keeps what quantizers are told of inputs."""

    def __init__(self) -> None:
        self.found: list[FloatArray] = []

    def weights(self, x: SampleValue, calls: Sequence[LinearCall]) -> list[FloatArray]:
        statistics = InputStatistics(x)
        self.found += [statistics.hessian, statistics.mean_abs, column_sums(x, 2)[0]]
        assert np.allclose(np.diagonal(statistics.hessian), column_sums(x, 2)[0], rtol=1e-5)
        return super().weights(x, calls)


class Noting(PlainWeights):
    """Notes which linears were settled together, and how often each input was read through."""

    def __init__(self) -> None:
        self.groups: list[tuple[str, ...]] = []

    def weights(self, x: SampleValue, calls: Sequence[LinearCall]) -> list[FloatArray]:
        self.groups.append(tuple(call.weight.name.split(".")[-2] for call in calls))
        return super().weights(x, calls)


def test_linears_of_one_input_are_asked_for_together() -> None:
    source = Noting()
    model = load_model(memory_checkpoint(TINY["llama"]))
    model.forward(WindowOps(WINDOWS, source))
    layer = [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]
    assert source.groups == layer * 2
