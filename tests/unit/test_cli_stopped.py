"""What is said after Ctrl-C: whether the same command goes on, and what is lost."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pagoda.cli import cache_verifier, eval_run, making
from pagoda.cli import finetune as finetune_verb
from pagoda.cli import merge as merge_verb
from pagoda.cli.main import main
from pagoda.finetune.run import last_checkpoint
from tiny_adapters import ADAPTERS, write_adapter
from tiny_models import TINY, write_safetensors


def stop(*args: Any, **options: Any) -> NoReturn:
    raise KeyboardInterrupt


class Said:
    """Runs a verb, which must end as a command that was interrupted does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *args: object) -> str:
        self.monkeypatch.setattr(sys, "argv", ["pagoda", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        error = self.capsys.readouterr().err
        assert ended.value.code == 130
        assert "Traceback" not in error
        return error.strip().splitlines()[-1]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    return Said(monkeypatch, capsys)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_safetensors(tmp_path / "base", TINY[ADAPTERS["patterns"].base])


@pytest.mark.parametrize(("to", "goes_on"), [("q8_0", True), ("gptq", True), ("nf4", False), ("safetensors", False)])
def test_quantize(said: Said, model: Path, tmp_path: Path, to: str, goes_on: bool) -> None:
    said.monkeypatch.setattr(making, "quantize", stop)
    line = said("quantize", model, "--to", to, "-o", tmp_path / "out")
    assert ("goes on from there" in line, "begins anew" in line) == (goes_on, not goes_on)


def test_merge(said: Said, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, output = write_adapter(tmp_path / "adapter", "patterns"), tmp_path / "merged.gguf"
    command = ("merge", model, adapter, "-o", output, "--to", "q8_0")
    with monkeypatch.context() as patched:
        patched.setattr("pagoda.quantize.run._put", stop)  # when all of the work is done
        assert "begins anew" in said(*command)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
    monkeypatch.setattr(merge_verb, "measure", stop)
    assert said(*command) == f"stopped; {output} is whole, but was not measured"
    assert output.is_file()


def test_finetune(said: Said, model: Path, tmp_path: Path) -> None:
    data, output = tmp_path / "data.jsonl", tmp_path / "adapter"
    data.write_text("".join(json.dumps({"text": f"{number} is a number"}) + "\n" for number in range(20)))
    said.monkeypatch.setattr(finetune_verb, "check_packages", lambda: None)
    said.monkeypatch.setattr(finetune_verb, "train", stop)
    command = ("finetune", model, "--data", data, "-o", output)
    assert "no checkpoint was written yet" in said(*command)
    for step in (8, 16):
        (output / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
    (output / "checkpoints" / "checkpoint-8" / "trainer_state.json").write_text('{"global_step": 8}')
    assert said(*command) == "stopped; the same command goes on from step 8"  # 16 was cut off
    assert last_checkpoint(output) == output / "checkpoints" / "checkpoint-8"


@pytest.mark.parametrize("keep", ["keep", "drop"])
@pytest.mark.parametrize("at", ["evaluate", "measure_noise"])
def test_eval_run(said: Said, tmp_path: Path, at: str, keep: str) -> None:
    cases, output = tmp_path / "cases.jsonl", tmp_path / "out.json"
    cases.write_text('{"question": "q", "answer": "Paris", "reference": "Paris"}\n')
    said.monkeypatch.setattr(eval_run, at, stop)
    line = said("eval", "run", cases, "--metrics", "exact_match", "-o", output, "--on-interrupt", keep)
    assert ("goes on from there" in line) == (keep == "keep")
    assert (tmp_path / "out.json.cases").exists() == (keep == "keep")


def test_cache_train(said: Said, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"a": "one", "b": "two", "same": false}\n')
    said.monkeypatch.setattr(cache_verifier, "load_embedder", lambda *args, **options: None)
    said.monkeypatch.setattr(cache_verifier, "train", stop)
    assert "begins anew" in said("cache", "train", pairs, "-o", tmp_path / "verifier.json")
