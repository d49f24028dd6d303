"""The default model on the CUDA backend, in torch on a CPU: its real weights, beside the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cuda_cases import need_torch

need_torch()

from paged_run import PagedRun, reference_run
from pagoda.backends.cuda.backend import CudaBackend
from pagoda.backends.cuda.options import CudaOptions
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.registry import load_model
from pagoda.text.tokenizer import load_tokenizer

ANSWER = 16  # tokens


@pytest.mark.slow
def test_logits_and_greedy_tokens(default_model: Path) -> None:
    checkpoint = open_checkpoint(default_model)
    model, prompt = load_model(checkpoint), load_tokenizer(checkpoint).encode("Water boils at a temperature of")
    loaded = CudaBackend(CudaOptions("cpu", "eager")).load(model, max_batch_tokens=32, max_batch_seqs=32, kv_type="f16")
    run = PagedRun(model, loaded, num_blocks=4)
    got = [run.step({"a": prompt})["a"]]
    answer = [int(got[0][-1].argmax())]
    while len(answer) < ANSWER:
        got.append(run.step({"a": answer[-1:]})["a"])
        answer.append(int(got[-1][0].argmax()))
    loaded.close()
    right = reference_run(model, num_blocks=4).step({"a": prompt + answer[:-1]})["a"]
    off = np.linalg.norm(np.concatenate(got) - right) / np.linalg.norm(right)
    assert 1e-5 < off < 5e-3  # f16 activations and keys round, and no more
    assert right[len(prompt) - 1 :].argmax(1).tolist() == answer
