"""How much of an adapter is left after merging: all of it in float32, little of a small change in coarse steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pagoda.adapters.files import read_adapter
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.formats.quantized import as_floats
from pagoda.quantize.merge import merge
from pagoda.quantize.settings import QuantizeSettings
from pagoda.quantize.survival import survival
from tiny_adapters import golden, value, write_adapter, write_peft
from tiny_models import TINY, write_gguf, write_safetensors


def test_merged_in_float32_all_of_it_is_left(tmp_path: Path) -> None:
    base = write_safetensors(tmp_path / "base", TINY["llama"])
    adapter = write_adapter(tmp_path / "adapter", "all_linear")
    merged = merge(base, adapter, tmp_path / "merged", QuantizeSettings(to="safetensors", dtype="f32", threads=1))
    found = survival(base, read_adapter(adapter), merged)
    assert found is not None
    assert found.kept == pytest.approx(1, abs=1e-6)
    assert found.noise < 1e-5
    assert "100.0% of the change is left" in str(found)


def test_the_base_itself_has_nothing_of_it(tmp_path: Path) -> None:
    base = write_gguf(tmp_path / "base.gguf", TINY["llama"])
    found = survival(base, read_adapter(write_adapter(tmp_path / "adapter", "q_v")), base)
    assert found is not None
    assert (found.kept, found.noise) == (0, 1)


def test_steps_of_four_bits_take_small_changes_away(tmp_path: Path) -> None:
    """Of a base that stands on the steps of Q4_0, a change of a hundredth of its weights moves no code."""
    base = write_gguf(tmp_path / "base.gguf", TINY["llama"], type="Q4_0")
    expected = golden("all_linear")
    values = {key: value(key, tuple(shape)) * 0.02 for key, shape in expected["shapes"].items()}
    small = write_peft(tmp_path / "small", expected["config"], values)
    left = {}
    for to in ("q4_0", "q8_0"):
        settings = QuantizeSettings(to=to, threads=1, verify=False)
        left[to] = survival(base, read_adapter(small), merge(base, small, tmp_path / f"{to}.gguf", settings))
    assert left["q4_0"] is not None
    assert left["q8_0"] is not None
    assert left["q4_0"].kept < 0.2


def test_of_a_change_of_nothing_there_is_no_share(tmp_path: Path) -> None:
    base = write_safetensors(tmp_path / "base", TINY["llama"])
    expected = golden("q_v")
    zeros = {key: np.zeros(shape, np.float32) for key, shape in expected["shapes"].items()}
    adapter = read_adapter(write_peft(tmp_path / "zeros", expected["config"], zeros))
    with open_checkpoint(base) as checkpoint:
        assert all(np.isfinite(as_floats(raw)).all() for raw in checkpoint.tensors.values())
    assert survival(base, adapter, base) is None
