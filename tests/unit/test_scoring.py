"""The quality report: what is measured, against what, in how much memory; what cannot be compared."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pagoda.cli.compare import print_report
from pagoda.errors import ConfigError
from pagoda.scoring import report as report_module
from pagoda.scoring.plot import quality_over_size
from pagoda.scoring.report import Quality, Report, compare, measure
from pagoda.scoring.score import KeptPredictions, log_total, negative_log_likelihood
from tiny_models import TINY, write_gguf, write_safetensors

LLAMA = TINY["llama"]
RNG = np.random.default_rng(5)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_divergence_is_right_though_predictions_are_kept_in_16_bits() -> None:
    p, q = (RNG.normal(0, 4, (70, 500)).astype(np.float32) for _ in range(2))
    kept = KeptPredictions.of(p)
    expected = (softmax(p) * np.log(softmax(p) / softmax(q))).sum(axis=-1)
    np.testing.assert_allclose(kept.divergence(q), expected, rtol=1e-3)
    assert kept.divergence(p).max() < 1e-6
    np.testing.assert_array_equal(kept.likeliest, p.argmax(axis=-1))
    close = p + RNG.normal(0, 0.01, p.shape).astype(np.float32)
    expected = (softmax(p) * np.log(softmax(p) / softmax(close))).sum(axis=-1)
    assert kept.divergence(close).mean() == pytest.approx(expected.mean(), rel=0.02)


def test_extreme_logits() -> None:
    logits = np.array([[0, -1e30, -1e5], [3e38, 0, 0]], dtype=np.float32)
    assert KeptPredictions.of(logits).divergence(logits).tolist() == [0, 0]
    np.testing.assert_allclose(log_total(logits[:1]), [0])
    np.testing.assert_allclose(negative_log_likelihood(logits, np.array([0, 0], np.int32)), [0, 0])


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 12)
    return str(path)


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """A float original, the same in 8 bits and in 4."""
    return [
        write_safetensors(tmp_path / "original", LLAMA),
        write_gguf(tmp_path / "eight.gguf", LLAMA, type="Q8_0"),
        write_gguf(tmp_path / "four.gguf", LLAMA, type="Q4_0"),
    ]


def number(value: float | None) -> float:
    assert value is not None
    return value


def test_fewer_bits_are_smaller_and_worse(models: list[Path], text: str) -> None:
    seen: list[tuple[str, int, int | None]] = []
    found = compare(models, text=text, context=64, windows=3, progress=lambda *step: seen.append(step))
    original, eight, four = found.rows
    assert (found.original, found.windows, found.tokens) == ("original", 3, 3 * 31)
    assert (original.kld, original.agreement) == (None, None)
    assert 0 < number(eight.kld) < 0.01 < number(four.kld) < number(four.kld_p99)
    assert number(four.agreement) < number(eight.agreement)
    assert four.bytes_per_weight < eight.bytes_per_weight < original.bytes_per_weight == 4
    assert all(row.decode_per_second and row.prefill_per_second for row in found.rows)
    assert [step for step in seen if "four" in step[0]] == [("scoring four", n, 3) for n in (1, 2, 3)]
    assert abs(eight.perplexity / original.perplexity - 1) < 0.05


def test_a_long_text_takes_rounds_and_gives_the_same(
    models: list[Path], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = compare(models, text=text, context=64, windows=3, speed=False)
    monkeypatch.setattr(report_module, "kept_bytes", lambda: 1)  # a window a round
    assert compare(models, text=text, context=64, windows=3, speed=False) == once


def test_measure_and_against(models: list[Path], text: str) -> None:
    original, eight, four = models
    quality = measure(four, original, text, windows=1)
    found = compare([eight, four], original, text, windows=1, speed=False)
    assert [row.name for row in found.rows] == ["original", "eight", "four"]
    assert found.rows[2] == quality
    assert quality.decode_per_second is None


def test_the_original_writes_the_text_where_none_is_given(models: list[Path]) -> None:
    found = compare(models, context=64, windows=3, speed=False)
    assert (found.text, found.windows) == ("text that the original wrote", 3)
    assert found.text_sha256 == compare(models, context=64, windows=3, speed=False).text_sha256


def test_what_cannot_be_compared(models: list[Path], tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.txt cannot be read"):
        compare(models, text="nowhere.txt")
    (tmp_path / "short.txt").write_text("Too short.")
    with pytest.raises(ConfigError, match=r"short\.txt is shorter than one window of 256 tokens"):
        compare(models, text=str(tmp_path / "short.txt"))
    other = write_safetensors(tmp_path / "other", LLAMA)
    changed = json.loads((other / "tokenizer.json").read_text())
    changed["model"]["merges"] = []
    (other / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match="other cuts the text into other tokens than"):
        compare([*models, other], text=text, context=64)


ROWS = (
    Quality("model-F16", 270_000_000, 134_000_000, 268_000_000, 20.1, 0.3, None, None, None, 410.0, 52.0),
    Quality("model-Q8_0", 140_000_000, 134_000_000, 142_000_000, 20.2, 0.3, 0.0004, 0.003, 0.991, 800.0, 101.0),
    Quality("a very long name of a model <in> 4 bits", 80_000_000, 134_000_000, 75_000_000, 21.9, 0.4, 0.06, 0.4, 0.88),
)
FOUND = Report("model-F16", "text that the original wrote", "00", 16, 512, 4080, ROWS)


def test_the_table_fits_80_columns() -> None:
    console = Console(width=80, record=True, file=StringIO())
    print_report(FOUND, console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split()[:1] == ["model-Q8_0"] and line.rstrip().endswith("101.0") for line in lines)
    assert any("0.00040" in line and "99.1%" in line and "1.060" in line for line in lines)
    assert any("4,080 tokens of text that" in line for line in lines)


def test_json_and_picture() -> None:
    data = json.loads(json.dumps(FOUND.as_json()))
    assert data["rows"][1]["bytes_per_weight"] == pytest.approx(1.0597, rel=1e-3)
    svg = ElementTree.fromstring(quality_over_size(FOUND))
    texts = [element.text for element in svg.iter() if element.tag.endswith("text")]
    assert "model-Q8_0" in texts
    assert "a very long name of a model <in> 4 bits" in texts
    assert sum(element.tag.endswith("circle") for element in svg.iter()) == 2
    circles = [float(element.get("cy", 0)) for element in svg.iter() if element.tag.endswith("circle")]
    assert circles[0] > circles[1]  # less divergence lies lower
