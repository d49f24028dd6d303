"""`pagoda finetune` as the shell runs it, as far as it goes without torch: what it shows, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from pagoda.cli.main import main
from tiny_models import TINY, write_gguf


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_gguf(tmp_path / "tiny.gguf", TINY["llama"], type="Q8_0"))


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{i} is", "completion": " it"}) for i in range(4)))
    return str(path)


@pytest.fixture
def pagoda(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*arguments: str) -> tuple[Any, str, str]:
        """→ exit status, standard output, standard error."""
        monkeypatch.setattr("sys.argv", ["pagoda", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as caught:
            main()
        output = capsys.readouterr()
        return caught.value.code, output.out, output.err

    return run


def test_examples_are_shown_with_what_is_learned_of_them(pagoda: Any, model: str, data: str) -> None:
    status, out, err = pagoda("finetune", model, "--data", data, "--show", "1", "--held-out", "0")
    assert status == 0
    assert out.split("\n")[1] == "0 is⟦ it</s>⟧"
    assert "4 records: 4 examples to train on, 0 held out" in err


def test_settings_may_stand_in_a_file(pagoda: Any, model: str, data: str, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(f'[finetune]\ndata = ["{data}"]\nshow = 1\nheld-out = 0.25\n')
    status, _, err = pagoda("finetune", model, "--config", str(config))
    assert status == 0
    assert "3 examples to train on, 1 held out" in err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--data is missing"),
        (["--data", "nonesuch.jsonl", "--show", "1"], "nonesuch.jsonl: cannot be read"),
        (["--data", "DATA", "--show", "1", "--max-length", "1000"], "the model's context is 256 tokens"),
        (["--data", "DATA", "--show", "1", "--rank", "0"], "--rank: 0 is out of range"),
    ],
)
def test_what_is_refused(pagoda: Any, model: str, data: str, flags: list[str], says: str) -> None:
    status, _, err = pagoda("finetune", model, *(data if flag == "DATA" else flag for flag in flags))
    assert status in (1, 2)
    assert says in err


def test_missing_packages_are_named(pagoda: Any, model: str, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "peft" else found(name, *a))
    status, _, err = pagoda("finetune", model, "--data", data, "-o", "out")
    assert status == 2
    assert "peft" in err
    assert "pip install 'pagoda-llm[finetune]'" in err
