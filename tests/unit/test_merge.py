"""`pagoda merge`: what is written is the model with its adapter, in any format, and what that costs is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paged_run import reference_run
from pagoda.adapters.files import read_adapter
from pagoda.cli.merge import MergeSettings, is_served_apart, measure
from pagoda.errors import ConfigError, FormatError
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.registry import load_model
from pagoda.quantize.merge import merge
from pagoda.quantize.settings import QuantizeSettings
from tiny_adapters import ADAPTERS, golden, write_adapter
from tiny_models import TINY, write_gguf, write_safetensors


def base(folder: Path, name: str, kind: str = "safetensors") -> Path:
    spec = TINY[ADAPTERS[name].base]
    if kind == "gguf":
        return write_gguf(folder / "base.gguf", spec)
    return write_safetensors(folder / "base", spec)


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
@pytest.mark.parametrize("name", ["patterns", "dora_biased", "whole_head", "embedding"])
def test_the_folder_is_the_model_with_its_adapter(name: str, kind: str, tmp_path: Path) -> None:
    expected = golden(name)
    adapter = write_adapter(tmp_path / "adapter", name)
    settings = QuantizeSettings(to="safetensors", dtype="f32", threads=1)
    output = merge(base(tmp_path, name, kind), adapter, tmp_path / "merged", settings)
    with open_checkpoint(output) as checkpoint:
        rows = reference_run(load_model(checkpoint, max_context=128)).step({"s": expected["tokens"]})["s"]
    np.testing.assert_allclose(rows[expected["rows"]][:, :: expected["every"]], expected["logits"], atol=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter",
        "base" + ".gguf" * (kind == "gguf"),
        "merged",
    ]


def test_what_merging_costs_is_measured_step_by_step(tmp_path: Path) -> None:
    model, adapter = base(tmp_path, "all_linear"), write_adapter(tmp_path / "adapter", "all_linear")
    text = tmp_path / "text"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    output = merge(model, adapter, tmp_path / "merged.gguf", QuantizeSettings(to="q8_0", threads=1, verify=False))
    settings = MergeSettings(to="q8_0", text=str(text), windows=2, context=64, threads=1)
    (tmp_path / "work").mkdir()
    report, left = measure(model, read_adapter(adapter), output, settings, tmp_path / "work")
    assert [row.name for row in report.rows] == ["base + adapter", "merged, bf16", "merged.gguf"]
    beside, rounded, quantized = report.rows
    assert beside.kld is None
    assert rounded.kld is not None
    assert quantized.kld is not None
    assert 0 < rounded.kld < 0.05
    assert rounded.agreement is not None
    assert rounded.agreement > 0.9
    assert quantized.kld < 0.1
    assert set(left) == {"merged, bf16", "merged.gguf"}
    assert all(0.99 < found.kept < 1.01 for found in left.values())
    assert 0 < left["merged, bf16"].noise < left["merged.gguf"].noise < 0.2


def test_only_what_adds_to_linears_is_served_apart(tmp_path: Path) -> None:
    apart = {name for name in ADAPTERS if is_served_apart(read_adapter(write_adapter(tmp_path / name, name)))}
    assert ADAPTERS.keys() - apart == {"whole_head", "whole_norms", "embedding"}


def test_outputs_and_adapters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model, adapter = base(tmp_path, "q_v"), write_adapter(tmp_path / "adapter", "q_v")
    settings = QuantizeSettings(to="safetensors", threads=1)
    with pytest.raises(ConfigError, match="exists"):
        merge(model, adapter, model, settings)
    with pytest.raises(ConfigError, match="no folder"):
        merge(model, adapter, tmp_path / "nowhere/merged", settings)
    with pytest.raises(FormatError, match="another base model"):
        merge(model, write_adapter(tmp_path / "fused", "fused"), tmp_path / "merged", settings)
    assert not (tmp_path / "merged").exists()
