"""What is said of a run beforehand: steps, memory by part, and time at given rates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pagoda.finetune.clock import clock
from pagoda.finetune.history import evaluations_since_best, losses, smoothed
from pagoda.finetune.predict import SHARE, predict
from pagoda.finetune.prepare import Prepared, prepare
from pagoda.finetune.schedule import make_schedule
from pagoda.finetune.settings import FinetuneSettings
from pagoda.sources import resolve
from tiny_models import TINY, VOCAB, write_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", TINY["llama"], type="Q8_0")


def prepared(model: Path, tmp_path: Path, **changes: Any) -> Prepared:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": "abc", "completion": f"{i:02}"}) for i in range(20)))
    return prepare(resolve(str(model)), FinetuneSettings(data=(data,), held_out=0, **changes))


def test_time_is_products_at_the_rates(model: Path, tmp_path: Path) -> None:
    run = prepared(model, tmp_path, max_steps=10, batch=4, checkpointing=False)
    length, learned = 6, 3  # a, b, c, two digits, the end
    layer = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 96 * 64
    work = 40 * length * 2 * layer * (1 / 1e6 + 1 / 2e6) + 40 * learned * VOCAB * 64 * (1 / 1e6 + 1 / 2e6)
    made = predict(run, (1e6, 2e6))
    assert made.tokens == 40 * length
    assert made.seconds == pytest.approx(work / SHARE)


def test_memory_counts_adapters_of_the_targets(model: Path, tmp_path: Path) -> None:
    both = predict(prepared(model, tmp_path, rank=8, targets=("q", "v")), (1.0, 1.0)).memory
    assert both.adapters == 16 * 2 * 8 * ((64 + 64) + (32 + 64))
    every = predict(prepared(model, tmp_path, rank=8), (1.0, 1.0))
    assert every.memory.adapters > both.adapters
    assert every.to_json()["memory"]["total"] == every.memory.total


def test_keeping_activations_takes_more(model: Path, tmp_path: Path) -> None:
    kept, again = (
        predict(prepared(model, tmp_path, checkpointing=flag), (1.0, 1.0)).memory.activations for flag in (False, True)
    )
    assert kept > again


def test_steps(tmp_path: Path) -> None:
    settings = FinetuneSettings(data=(tmp_path,), batch=4, epochs=2, warmup=0.1)
    found = make_schedule(settings, 10)
    assert (found.steps, found.warmup, found.eval_every, found.save_every) == (6, 1, 1, 1)
    longer = make_schedule(FinetuneSettings(data=(tmp_path,), max_steps=95, save_every=7), 10)
    assert (longer.steps, longer.eval_every, longer.save_every) == (95, 10, 7)


def test_evaluations() -> None:
    log = [{"step": 1, "loss": 3.0}, {"step": 1, "eval_loss": 2.0}, {"step": 2, "eval_loss": 2.5}]
    assert losses(log, "loss") == [(1, 3.0)]
    assert evaluations_since_best(losses(log, "eval_loss")) == 1
    assert evaluations_since_best([]) == 0
    assert smoothed([(1, 5.0), (2, 5.0)]) == [(1, pytest.approx(5.0)), (2, pytest.approx(5.0))]


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0, 61.4, 3725)] == ["0:00", "1:01", "1:02:05"]
