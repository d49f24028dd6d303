"""Flags that a method does not look at are refused before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pagoda.errors import ConfigError
from pagoda.quantize.methods import METHOD_SETTINGS, METHODS, check_settings
from pagoda.quantize.settings import QuantizeSettings


@pytest.mark.parametrize(
    ("to", "settings", "said"),
    [
        ("gptq", {"imatrix": "auto"}, "--imatrix: gptq does not read it; leave it out"),
        ("Q4_K_M", {"bits": 3}, "--bits: q4_k_m does not read it"),
        ("q4_k_m", {"calibration": "a.txt"}, "--calibration: q4_k_m does not read it without --imatrix auto"),
        ("q4_k_m", {"save_imatrix": Path("a.gguf"), "imatrix": "b.dat"}, "--save-imatrix keeps the matrix of"),
        ("awq", {"act_order": "full"}, "--act-order: awq does not read it"),
        ("nf4", {"group_size": 64}, "--group-size: nf4 does not read it"),
        ("q8_0", {"dtype": "f16"}, "--dtype: q8_0 does not read it"),
        ("gguf", {"tensor_type": ("a=q8_0",)}, "--tensor-type: gguf does not read it"),
    ],
)
def test_a_flag_without_meaning_is_refused(to: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_settings(QuantizeSettings(to=to, **settings))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"to": "q4_k_m", "imatrix": "auto", "calibration": "a.txt", "save_imatrix": Path("a.gguf")},
        {"to": "gptq", "bits": 3, "symmetric": False, "calibration_samples": 4},
        {"to": "awq", "group_size": 64},
        {"to": "safetensors", "dtype": "f32"},
        {"to": "int8", "threads": 2, "max_kld": 0.1},
    ],
)
def test_flags_with_a_meaning_pass(settings: dict[str, Any]) -> None:
    check_settings(QuantizeSettings(**settings))


def test_methods_read_what_there_is() -> None:
    assert set(QuantizeSettings.__dataclass_fields__) >= METHOD_SETTINGS
    assert all(method.reads <= METHOD_SETTINGS for method in METHODS.values())
