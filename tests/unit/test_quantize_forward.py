"""The forward pass over windows computes what the reference backend computes, whatever the family."""

from collections.abc import Sequence

import numpy as np
import pytest

from pagoda.backends.reference import ReferenceBackend
from pagoda.models.registry import load_model
from pagoda.quantize.forward import LinearCall, PlainWeights, Value, WindowOps, perplexity_of
from pagoda.types import Batch, FloatArray
from quantize_runs import WINDOWS, logits
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
        rows.append(loaded.forward(batch).copy())
    return np.concatenate(rows)


@pytest.mark.parametrize("family", ["llama3", "llama_biased", "mistral", "qwen2_windowed", "qwen3_yarn", "gemma3"])
def test_agrees_with_the_reference_backend(family: str) -> None:
    found = logits(memory_checkpoint(TINY[family]))
    np.testing.assert_allclose(found, reference_logits(family), rtol=2e-4, atol=2e-4)


class Noting(PlainWeights):
    """Notes which linears were settled together, and how often each input was read through."""

    def __init__(self) -> None:
        self.groups: list[tuple[str, ...]] = []

    def weights(self, x: Value, calls: Sequence[LinearCall]) -> list[FloatArray]:
        self.groups.append(tuple(call.weight.name.split(".")[-2] for call in calls))
        return super().weights(x, calls)


def test_linears_of_one_input_are_asked_for_together() -> None:
    source = Noting()
    model = load_model(memory_checkpoint(TINY["llama"]))
    model.forward(WindowOps(WINDOWS, source))
    layer = [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]
    assert source.groups == layer * 2


def test_perplexity_is_of_second_halves() -> None:
    checkpoint = memory_checkpoint(TINY["llama"])
    rows = logits(checkpoint).reshape(*WINDOWS.shape, -1).astype(np.float64)
    rows -= np.log(np.exp(rows).sum(axis=-1, keepdims=True))
    half = WINDOWS.shape[1] // 2
    chosen = np.take_along_axis(rows[:, half:-1], WINDOWS[:, half + 1 :, None], axis=-1)
    found = perplexity_of(load_model(checkpoint).forward, WINDOWS, PlainWeights())
    assert found == pytest.approx(np.exp(-chosen.mean()), rel=1e-4)
