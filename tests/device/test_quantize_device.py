"""Calibration on a real GPU: the statistics that numpy finds, and checkpoints as good."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cuda_cases import need_gpu

need_gpu()

from pagoda.quantize.calibration.arithmetic import make_arithmetic
from quantize_runs import check_devices_do_equally_well, logits
from tiny_models import TINY, memory_checkpoint, write_gguf


@pytest.mark.parametrize("family", ["llama3", "llama_biased", "qwen2_windowed", "qwen3_yarn", "gemma3"])
def test_logits_are_those_of_numpy(family: str) -> None:
    checkpoint = memory_checkpoint(TINY[family])
    np.testing.assert_allclose(
        logits(checkpoint, arithmetic=make_arithmetic("cuda", print)), logits(checkpoint), rtol=2e-4, atol=2e-4
    )


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibration_does_as_well_as_on_the_cpu(tmp_path: Path, method: str) -> None:
    source = write_gguf(tmp_path / "model.gguf", TINY["qwen2_windowed"])
    check_devices_do_equally_well(source, tmp_path, method, "cpu", "cuda")
