"""GPTQModel's GPTQ or AWQ of a model on given tokens, with its own defaults; run by its own Python.

python bench/peer_gptqmodel.py gptq|awq MODEL TOKENS.npy OUT GROUP_SIZE
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # of two cores it would use one


def rows(windows: npt.NDArray[Any]) -> list[dict[str, list[int]]]:
    return [{"input_ids": [int(token) for token in row], "attention_mask": [1] * len(row)} for row in windows]


def main(method: str, model: str, windows: str, out: str, group_size: str) -> None:
    import torch
    from gptqmodel import GPTQModel
    from gptqmodel.quantization.config import AWQConfig, GPTQConfig

    kind = {"gptq": GPTQConfig, "awq": AWQConfig}[method]
    config = kind(bits=4, group_size=int(group_size))
    loaded = GPTQModel.load(model, config, device="cpu", dtype=torch.float32)
    loaded.quantize(rows(np.load(windows)), batch_size=8)
    loaded.save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
