"""`pagoda finetune` on a tiny model, from the command line: ten steps, an interrupt, and a run that goes on."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import gguf
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")
for package in ("transformers", "accelerate", "peft"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'pagoda-llm[finetune]'")

from pagoda.errors import CapacityError, ConfigError, QualityError
from pagoda.finetune.prepare import prepare
from pagoda.finetune.run import CHECKPOINTS, finetune
from pagoda.finetune.settings import FinetuneSettings
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.sources import resolve
from tiny_models import TINY, write_gguf

pytestmark = pytest.mark.filterwarnings("default")  # other projects' own warnings
STEPS = 10


class Killed(Exception):
    """In place of a signal: nothing that the run would do at its end is done."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", TINY["llama"], type="Q8_0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    pairs = [{"prompt": f"{a} and {b} is", "completion": f" {a + b}"} for a in range(6) for b in range(6)]
    path.write_text("\n".join(map(json.dumps, pairs)))
    return path


def settings(data: Path, **changes: Any) -> FinetuneSettings:
    usual: dict[str, Any] = {"rank": 4, "max_steps": STEPS, "learning_rate": 5e-3, "threads": 1, "dropout": 0.1}
    return FinetuneSettings(data=(data,), **usual | {"eval_every": 5, "save_every": 2, "held_out": 0.2} | changes)


def run(model: Path, folder: Path, chosen: FinetuneSettings, stop_at: int | None = None) -> dict[str, Any]:
    said: list[str] = []

    def line(text: str) -> None:
        said.append(text)
        if stop_at is not None and text.startswith(f"step {stop_at}/"):
            raise Killed

    return finetune(prepare(resolve(str(model)), chosen), folder, line=line, say=said.append)


@pytest.fixture(scope="module")
def finished(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("out") / "adapter"
    return folder, run(model, folder, settings(data))


def test_it_learns_and_leaves_an_adapter(finished: tuple[Path, dict[str, Any]], model: Path) -> None:
    folder, record = finished
    first, *_, last = (value for _, value in record["held_out_loss"])
    assert last < first
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "loss.png",
        "pagoda_finetune.json",
    }
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8.0, "LORA")
    said = json.loads((folder / "pagoda_finetune.json").read_text())
    assert said["settings"]["rank"] == 4
    assert said["model_parameters"] == sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(model).tensors)
    assert said["versions"].keys() >= {"pagoda", "torch", "peft"}
    assert all(len(digest) == 64 for digest in said["data"]["sha256"].values())


def test_a_killed_run_goes_on_to_the_same_losses(
    finished: tuple[Path, dict[str, Any]], model: Path, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    with pytest.raises(Killed):
        run(model, folder, settings(data), stop_at=7)
    unwritten = folder / CHECKPOINTS / "checkpoint-8"
    unwritten.mkdir()  # as a kill in the middle of a save leaves it
    record = run(model, folder, settings(data))
    _, expected = finished
    assert record["loss"] == expected["loss"]
    assert record["held_out_loss"] == expected["held_out_loss"]
    ours, theirs = (f / "adapter_model.safetensors" for f in (folder, finished[0]))
    assert ours.read_bytes() == theirs.read_bytes()


def test_folders_that_hold_something_else(
    finished: tuple[Path, dict[str, Any]], model: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="holds an adapter"):
        run(model, finished[0], settings(data))
    with pytest.raises(Killed):
        run(model, tmp_path / "begun", settings(data), stop_at=2)
    with pytest.raises(ConfigError, match="unfinished run with other settings"):
        run(model, tmp_path / "begun", settings(data, rank=2))
    (tmp_path / "notes").mkdir()
    with pytest.raises(ConfigError, match="holds no adapter"):
        run(model, tmp_path / "notes", settings(data, force=True))


def test_a_full_disk_is_said_and_the_run_goes_on(
    finished: tuple[Path, dict[str, Any]], model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("pagoda.finetune.trainer.save_adapter", full)
        with pytest.raises(CapacityError, match="is full; make room, and the same command goes on"):
            run(model, tmp_path / "adapter", settings(data))
    record = run(model, tmp_path / "adapter", settings(data))
    assert record["loss"] == finished[1]["loss"]


def test_a_loss_that_is_no_number_ends_the_run(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverged(*_: Any) -> Any:
        return torch.tensor(float("nan"), requires_grad=True)

    monkeypatch.setattr("pagoda.finetune.trainer.micro_loss", diverged)
    with pytest.raises(QualityError, match="the loss of step 1 is nan; take a smaller --learning-rate"):
        run(model, tmp_path / "adapter", settings(data))


def test_patience_ends_a_run_that_gets_no_better(model: Path, data: Path, tmp_path: Path) -> None:
    chosen = settings(data, learning_rate=1.0, eval_every=1, patience=2, max_steps=50)
    record = run(model, tmp_path / "adapter", chosen)
    assert record["steps"] < 50
    values = [value for _, value in record["held_out_loss"]]
    assert min(values) == values[-3]


def test_the_checkpoint_is_left_as_it_was(model: Path, finished: tuple[Path, dict[str, Any]]) -> None:
    with open_checkpoint(model) as checkpoint:
        assert checkpoint.changed() is None
