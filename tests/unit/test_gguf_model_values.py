"""What a GGUF file says of a folder's rotary embedding: all of it, or a refusal that names what it cannot say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pagoda.errors import UnsupportedError
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.registry import load_model
from pagoda.quantize.run import quantize
from pagoda.quantize.settings import QuantizeSettings
from tiny_models import TINY, write_safetensors

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def converted(folder: Path, **config: Any) -> tuple[Any, Any]:
    """The rotary embedding before and after a way into GGUF."""
    source = write_safetensors(folder / "source", TINY["llama"].with_config(max_position_embeddings=256, **config))
    made = quantize(source, folder / "made.gguf", QuantizeSettings(to="f32"))
    found = []
    for path in (source, made):
        with open_checkpoint(path) as checkpoint:
            found.append(load_model(checkpoint).blocks[0].attention.rope)
    return found[0], found[1]


@pytest.mark.parametrize(
    "scaling",
    [
        YARN,
        {**YARN, "factor": None},
        {**YARN, "attention_factor": 1.7},
        {**YARN, "attention_factor": 1.0},
        {**YARN, "mscale": 1.0, "mscale_all_dim": 0.8},
        {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ],
)
def test_scalings_survive(tmp_path: Path, scaling: dict[str, Any]) -> None:
    before, after = converted(tmp_path, rope_scaling=scaling)
    np.testing.assert_allclose(after.inv_freq, before.inv_freq, rtol=1e-5)
    assert after.scale == pytest.approx(before.scale, rel=1e-6)


@pytest.mark.parametrize(
    ("scaling", "named"),
    [({**YARN, "truncate": False}, "truncate: false"), ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic'")],
)
def test_what_gguf_cannot_say_is_refused_by_name(tmp_path: Path, scaling: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        converted(tmp_path, rope_scaling=scaling)
