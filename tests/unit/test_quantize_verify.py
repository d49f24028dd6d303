"""What is made is loaded, and a conversion compared with its source, before it gets its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pagoda.errors import ConfigError, QualityError
from pagoda.quantize import run as run_module
from pagoda.quantize.job import Job
from pagoda.quantize.methods import METHODS, Method
from pagoda.quantize.run import quantize
from pagoda.quantize.settings import QuantizeSettings
from pagoda.scoring.verify import divergence
from tiny_models import TINY, write_gguf, write_safetensors

LLAMA = TINY["llama"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_safetensors(tmp_path / "source", LLAMA)


def replace_method(monkeypatch: pytest.MonkeyPatch, name: str, spoil: object) -> None:
    """After the method has run, `spoil(path)` damages what it made."""
    row = METHODS[name]

    def spoilt(job: Job) -> Path:
        made = row.run(job)
        spoil(made)  # type: ignore[operator]
        return made

    monkeypatch.setattr(run_module, "find_method", lambda _: Method(spoilt, row.about, row.suffix, row.largest_kld))


@pytest.mark.parametrize("to", ["safetensors", "f32", "bf16", "f16", "gguf"])
def test_conversions_say_how_near_they_are(source: Path, tmp_path: Path, to: str) -> None:
    said: list[str] = []
    made = quantize(source, tmp_path / f"out{METHODS[to].suffix}", QuantizeSettings(to=to), say=said.append)
    assert any(line.startswith("verified: KL divergence") for line in said)
    assert divergence(made, source) < 1e-3


def drop_rope(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_theta": 3.0, "rope_parameters": None}
    (folder / "config.json").write_text(json.dumps(config))


def test_a_conversion_that_loses_a_setting_is_not_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_method(monkeypatch, "safetensors", drop_rope)
    output = tmp_path / "out"
    with pytest.raises(QualityError, match=r"predicts a text otherwise than its source.*--no-verify keeps"):
        quantize(source, output, QuantizeSettings(to="safetensors"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    assert quantize(source, output, QuantizeSettings(to="safetensors", verify=False)) == output


def test_what_cannot_be_loaded_is_not_kept(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_method(monkeypatch, "q8_0", lambda file: file.write_bytes(file.read_bytes()[:-5000]))
    with pytest.raises(QualityError, match=r"what was made cannot be served: .*; nothing was kept"):
        quantize(source, tmp_path / "out.gguf", QuantizeSettings(to="q8_0"))
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("to", ["nf4", "int8", "awq"])
def test_rows_that_kernels_cannot_read_are_refused_at_once(tmp_path: Path, to: str) -> None:
    narrow = write_gguf(tmp_path / "m.gguf", LLAMA.with_config(intermediate_size=112), type="F32")
    with pytest.raises(ConfigError, match=r"has rows of 112 weights, which kernels that read 32 at a time"):
        quantize(narrow, tmp_path / "out", QuantizeSettings(to=to, group_size=16))
