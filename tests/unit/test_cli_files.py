"""`pagoda pull` and `pagoda inspect` as the shell runs them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from gguf_files import ARRAY, F32, GGUF, STRING, U32, Field, Tensor, model_metadata
from pagoda.cli import pull as pull_module
from pagoda.cli.main import main
from pagoda.sources import LocalModel
from tiny_models import TINY, gguf_metadata, gguf_weights


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with two types, a long text, a long list, and a name that would move the terminal's cursor."""
    metadata = model_metadata(
        **{
            "general.name": Field(STRING, "evil\x1b[2J[red]name"),
            "llama.block_count": Field(U32, 3),
            "tokens": Field(ARRAY, (STRING, [f"t{number}" for number in range(1000)])),
            "scores": Field(ARRAY, (F32, [float("-inf"), 1.0])),
            "text": Field(STRING, "long " * 1000),
        }
    )
    tensors = [
        Tensor("a.weight", (256, 4), 2, bytes(4 * 8 * 18)),
        Tensor("b.weight", (16,), 0, np.zeros(16, "<f4").tobytes()),
    ]
    return GGUF(metadata, tensors).write(tmp_path / "m.gguf")


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    """→ exit status, standard output, standard error."""
    monkeypatch.setattr("sys.argv", ["pagoda", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        main()
    output = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, output.out, output.err


@pytest.fixture
def pagoda(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda *arguments: run(capsys, monkeypatch, *arguments)


def test_inspect_shows_sizes_types_and_metadata(pagoda: Any, model: Path) -> None:
    status, out, _ = pagoda("inspect", str(model))
    assert status == 0
    lines = [line.strip("│ ").split() for line in out.splitlines()]
    assert ["architecture", "llama"] in lines
    assert ["parameters", "1,040", "(0.0", "M)"] in lines
    assert ["bits", "per", "weight", "4.92"] in lines
    assert ["Q4_0", "│", "1", "│", "1,024", "│", "576", "│", "90.0", "%", "│", "4.50"] in lines
    assert ["F32", "│", "1", "│", "16", "│", "64", "│", "10.0", "%", "│", "32.00"] in lines
    assert '1,000 items: ["t0", "t1", "t2"' in out
    assert "t20" not in out
    assert "2 tensors; --tensors lists them" in out
    assert "a.weight" not in out
    assert max(len(line) for line in out.splitlines()) <= 200


def test_inspect_shows_control_characters_and_markup_instead_of_obeying_them(pagoda: Any, model: Path) -> None:
    _, out, _ = pagoda("inspect", str(model))
    assert "\x1b" not in out
    assert r"evil\x1b[2J[red]name" in out


def test_inspect_lists_tensors(pagoda: Any, model: Path) -> None:
    _, out, _ = pagoda("inspect", str(model), "--tensors")
    assert ["a.weight", "│", "Q4_0", "│", "4", "×", "256", "│", "576"] in [
        line.strip("│ ").split() for line in out.splitlines()
    ]


def test_inspect_prints_json(pagoda: Any, model: Path) -> None:
    _, out, _ = pagoda("inspect", "--json", str(model))
    told = json.loads(out)
    assert told["parameters"] == 1040
    assert told["types"]["Q4_0"] == {"tensors": 1, "parameters": 1024, "bytes": 576}
    assert told["tensors"][0] == {"name": "a.weight", "type": "Q4_0", "shape": [4, 256], "bytes": 576}
    assert told["metadata"]["tokens"] == {"count": 1000, "first": [f"t{number}" for number in range(8)]}
    assert told["metadata"]["scores"] == ["-inf", 1.0]
    assert len(told["metadata"]["text"]) == 101
    _, out, _ = pagoda("inspect", "--json", "--full", str(model))
    told = json.loads(out)
    assert len(told["metadata"]["tokens"]) == 1000
    assert told["metadata"]["text"] == "long " * 1000


@pytest.mark.parametrize(
    ("change", "obstacles"),
    [
        ({}, []),
        ({"architecture": "mamba"}, ["architecture 'mamba' is not supported"]),
        ({"architecture": "llama4"}, ["'llama4' is not supported; `pagoda plan` knows its shape"]),
        ({"type": "Q1_0"}, ["1 tensors of type Q1_0, such as 'blk.0.ffn_up.weight', which is not supported"]),
        ({"without": "blk.1.attn_k.weight"}, ["tensor 'blk.1.attn_k.weight' is missing"]),
        ({"pre": "afmoe"}, ["tokenizer.ggml.pre is 'afmoe'"]),
    ],
)
def test_inspect_says_whether_it_can_be_served(
    change: dict[str, str], obstacles: list[str], pagoda: Any, tmp_path: Path
) -> None:
    path = write_changed(tmp_path / "model.gguf", **change)
    _, out, _ = pagoda("inspect", "--json", str(path))
    found = json.loads(out)["obstacles"]
    assert len(found) >= len(obstacles)
    assert bool(found) == bool(obstacles)
    assert all(any(wanted in one for one in found) for wanted in obstacles), found
    _, out, _ = pagoda("inspect", str(path))
    shown = next(line.split() for line in out.splitlines() if "can be served" in line)
    assert shown[3] == ("no:" if obstacles else "yes")


def write_changed(
    path: Path, *, architecture: str = "llama", type: str = "", without: str = "", pre: str = "gpt-2"
) -> Path:
    """A tiny Llama, with one thing that is not as it should be."""
    metadata = {**gguf_metadata(TINY["llama"]), "general.architecture": architecture, "tokenizer.ggml.pre": pre}
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif key != "general.architecture":
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add[value.__class__](key, value)
    for name, values in gguf_weights(TINY["llama"]).items():
        if type and name == "blk.0.ffn_up.weight":
            kind = gguf.GGMLQuantizationType[type]
            writer.add_tensor(name, np.zeros((values.shape[0], 18), np.uint8), raw_dtype=kind)
        elif name != without:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_inspect_refuses_damaged_and_absent_files(pagoda: Any, model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-100])
    status, out, err = pagoda("inspect", str(model))
    assert (status, out) == (1, "")
    assert "it is truncated (download it again) or damaged" in err
    status, _, err = pagoda("inspect", "no-such-model")
    assert status == 1
    assert "there is no model 'no-such-model'" in err


def test_pull_prints_path_size_and_digest(pagoda: Any, model: Path) -> None:
    status, out, _ = pagoda("pull", str(model))
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    assert status == 0
    assert out == f"path    {model}\nsize    {model.stat().st_size:,} bytes\nsha256  {digest}\n"


def test_pull_lists_the_weights_of_a_folder(pagoda: Any, tmp_path: Path) -> None:
    for name in ("b.safetensors", "a.safetensors", "config.json"):
        (tmp_path / name).write_bytes(b"ab")
    _, out, _ = pagoda("pull", str(tmp_path))
    digest = hashlib.sha256(b"ab").hexdigest()
    assert out.splitlines()[1:] == [
        "size    4 bytes",
        f"sha256  {digest}  a.safetensors",
        f"sha256  {digest}  b.safetensors",
    ]


def test_pull_refuses_another_model_than_the_one_wanted(pagoda: Any, model: Path) -> None:
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    assert pagoda("pull", str(model), "--sha256", digest.upper())[0] == 0
    status, _, err = pagoda("pull", str(model), "--sha256", "0" * 64)
    assert status == 1
    assert f"has the SHA-256 {digest}, not {'0' * 64}: it is another model" in err


def test_pull_notices_that_a_cached_file_was_changed(pagoda: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_module, "resolve", lambda name, progress: LocalModel(model, name, "0" * 64))
    status, _, err = pagoda("pull", "smollm2-135m")
    assert status == 1
    assert "remove it and pull again" in err
