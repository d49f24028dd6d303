"""Calibration on a real GPU: the statistics that numpy finds, and the same checkpoint in the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cuda_cases import need_gpu

need_gpu()

from pagoda.quantize.arithmetic import make_arithmetic
from quantize_runs import cosine, logits, logits_by_device
from tiny_models import TINY, memory_checkpoint, write_gguf


@pytest.mark.parametrize("family", ["llama3", "llama_biased", "qwen2_windowed", "qwen3_yarn", "gemma3"])
def test_logits_are_those_of_numpy(family: str) -> None:
    checkpoint = memory_checkpoint(TINY[family])
    np.testing.assert_allclose(
        logits(checkpoint, arithmetic=make_arithmetic("cuda", print)), logits(checkpoint), rtol=2e-4, atol=2e-4
    )


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibration_makes_the_model_that_numpy_makes(tmp_path: Path, method: str) -> None:
    source = write_gguf(tmp_path / "model.gguf", TINY["qwen2_windowed"])
    assert cosine(*logits_by_device(source, tmp_path, method, "cpu", "cuda")) > 0.999
