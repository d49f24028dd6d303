"""bench/gpu.py runs from end to end where there is no GPU, keeps what it found, and notices what is wrong."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "gpu.py"

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed: pip install -e '.[cuda]'", allow_module_level=True)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Runs the script with these flags, in this process, since importing torch takes longer. → its exit status"""
    import torch

    monkeypatch.syspath_prepend(str(BENCH.parent))
    from gpu import main

    threads = torch.get_num_threads()
    yield lambda *flags: main(["--device", "cpu", "--shape", "tiny", *flags])
    torch.set_num_threads(threads)


def test_every_part_that_needs_no_model_file(bench: Callable[..., int], tmp_path: Path) -> None:
    out = tmp_path / "gpu"
    assert bench("--only", "check", "steps", "--types", "W4-g128", "--out", str(out)) == 0
    found = json.loads(out.with_suffix(".json").read_text())["parts"]
    assert [(row["weights"], row["ok"]) for row in found["check"]] == [("W4-g128", True)] * 2
    assert all(1e-5 < row["value"] < 2e-2 for row in found["check"])
    assert len(found["steps"]) == 4
    assert sum("times the time without" in row["note"] for row in found["steps"]) == 2

    assert bench("--only", "load", "--types", "BF16", "--out", str(out)) == 0  # the parts before stay
    data = json.loads(out.with_suffix(".json").read_text())
    assert set(data["parts"]) == {"check", "steps", "load"}
    assert all(row["tokens_s"] > 0 and row["note"].startswith("host gaps") for row in data["parts"]["load"])
    text = out.with_suffix(".md").read_text()
    assert text.count("| BF16 |") == 2
    assert data["rates"].keys() == {"copy", "read", "product"}


def test_a_part_that_fails_is_said_and_the_others_go_on(
    bench: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu"
    assert bench("--only", "default", "check", "--model", "no-such-model", "--types", "BF16", "--out", str(out)) == 1
    assert "no-such-model" in capsys.readouterr().out
    found = json.loads(out.with_suffix(".json").read_text())["parts"]
    assert found["default"][0]["ok"] is False
    assert len(found["check"]) == 2


def test_what_a_step_costs_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH.parent))
    from gpu_load import Load
    from gpu_models import SHAPES, Cost, Rates, cost_of

    shape = SHAPES["llama3-8b"]
    assert shape.layer_weights + 2 * shape.vocab * shape.hidden == pytest.approx(8.03e9, rel=1e-3)
    rates = Rates(copy=3e12, read=3e12, product=800e12)
    cost = cost_of(shape, 2 * 8_030_000_000, 32 * 2 * 8 * 128 * 2)
    assert cost.weight_bytes == pytest.approx(15.0e9, rel=0.01)  # without the embedding
    assert cost.decode_s(rates, 1, 1024) == pytest.approx((15.0e9 + 1025 * 131_072) / 3e12, rel=0.01)
    assert cost.prefill_s(rates, 4096) == pytest.approx(
        (2 * 6.98e9 * 4096 + 32 * 4 * 4096 * 4096**2 / 2) / 800e12, rel=0.01
    )
    load = Load(256, 512, 128, 8192)
    decode = sum(cost.decode_s(rates, 256, 512 + i) for i in range(1, 128))
    assert load.floor_s(cost, rates) == pytest.approx(16 * cost.prefill_s(rates, 512, 16) + decode)
    assert Cost(shape, 0, 0).floor_s(rates, tokens=0, rows=0, keys=0, pairs=0) == 0
