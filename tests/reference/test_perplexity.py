"""bench/perplexity.py: llama-perplexity's method, and on the default model its figure."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pagoda.types import Batch

BENCH = Path(__file__).parents[2] / "bench"
LLAMA_CPP = {10: 32.8272}  # windows → perplexity, printed by llama-perplexity -c 512 for the default model
TOLERANCE = 0.005


@pytest.fixture(scope="module")
def perplexity() -> ModuleType:
    sys.path.insert(0, str(BENCH))  # it imports its neighbours
    try:
        spec = importlib.util.spec_from_file_location("bench_perplexity", BENCH / "perplexity.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(BENCH))


def test_windows_drop_the_rest_and_begin_with_bos(perplexity: ModuleType) -> None:
    ids = list(range(100, 111))
    assert [w.tolist() for w in perplexity.windows(ids, 4, None)] == [[100, 101, 102, 103], [104, 105, 106, 107]]
    assert [w.tolist() for w in perplexity.windows(ids, 4, 1)] == [[1, 101, 102, 103], [1, 105, 106, 107]]


def test_the_second_half_predicts_its_next_tokens(perplexity: ModuleType) -> None:
    batch = perplexity.scored_batch(np.arange(40, dtype=np.int32), 2)
    assert batch.logit_rows.tolist() == list(range(20, 39))  # the last token's successor is in no window
    assert [table.tolist() for table in batch.block_tables] == [[[0, 1, 2]]] * 2
    assert batch.context_lens.tolist() == [40]


class CountingUp:
    """A model that gives the number after each token the logit `high`, others 0."""

    def __init__(self, vocab_size: int, high: float) -> None:
        self.vocab_size, self.high = vocab_size, high

    def stage(self, batch: Batch) -> None:
        self.rows = batch.logit_rows

    def launch(self, tokens: np.ndarray) -> None:
        self.wanted = tokens[self.rows]

    def wait(self) -> np.ndarray:
        logits = np.zeros((len(self.wanted), self.vocab_size), dtype=np.float32)
        logits[np.arange(len(self.wanted)), self.wanted + 1] = self.high
        return logits


@pytest.mark.parametrize("high", [0.0, 3.0, 200.0])
def test_perplexity_of_a_model_whose_odds_are_known(perplexity: ModuleType, high: float) -> None:
    window = perplexity.score(CountingUp(64, high), np.arange(40, dtype=np.int32), 1)
    expected = (np.exp(high) + 63) / np.exp(high)  # 1 / probability of the right token
    found = perplexity.Perplexity.of(window.nll)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.error == pytest.approx(0, abs=1e-6)
    assert found.tokens == 19


def test_agreement_counts_equal_tokens_over_all_windows(perplexity: ModuleType) -> None:
    def window(*likeliest: int) -> object:
        return perplexity.Window(np.zeros(len(likeliest)), np.array(likeliest))

    ours = [window(1, 2, 3, 4), window(5, 6, 7, 8), window(9, 9, 9, 9)]
    assert perplexity.agreement(ours, [window(1, 2, 3, 0), window(5, 6, 7, 8)]) == 7 / 8


@pytest.mark.slow
@pytest.mark.parametrize("activations", ["int16", "int8"])
def test_default_model_is_as_perplexed_as_in_llama_cpp(
    perplexity: ModuleType, default_model: Path, activations: str
) -> None:
    ((chunks, expected),) = LLAMA_CPP.items()
    try:
        text = perplexity.prose_file()
    except SystemExit as reason:
        pytest.skip(str(reason))
    options = argparse.Namespace(text=text, context=512, threads=0, kv_type="f16", activation_type=activations)
    windows = perplexity.score_file(default_model, "cpu", options, chunks)
    found = perplexity.Perplexity.of(np.concatenate([window.nll for window in windows]))
    assert found.tokens == chunks * 255
    assert abs(found.value / expected - 1) < TOLERANCE
