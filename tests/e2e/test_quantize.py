"""`pagoda quantize` and `pagoda convert` on the default model, as the shell runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pagoda.formats.checkpoint import open_checkpoint
from serving import process
from tiny_models import TINY, write_gguf


def pagoda(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pagoda", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_the_default_model_in_fewer_bits(default_model: Path, tmp_path: Path) -> None:
    made = tmp_path / "small.gguf"
    done = pagoda("quantize", default_model, "--to", "Q2_K", "-o", made, "--tensor-type", "token_embd=q4_0")
    assert done.returncode == 0, done.stderr
    assert "quantized already (Q4_1, Q8_0)" in done.stderr
    assert "become Q4_0 instead of Q2_K" in " ".join(done.stderr.split())
    assert 60e6 < made.stat().st_size < 80e6
    assert list(tmp_path.iterdir()) == [made]
    with open_checkpoint(made) as checkpoint:
        assert checkpoint.metadata["general.file_type"] == 10
        assert checkpoint.tensors["blk.0.ffn_down.weight"].type == "Q3_K"


def test_a_folder_and_back_is_the_same_tokenizer_and_weights(default_model: Path, tmp_path: Path) -> None:
    folder, again = tmp_path / "folder", tmp_path / "again.gguf"
    assert pagoda("convert", default_model, "-o", folder).returncode == 0
    assert pagoda("convert", folder, "-o", again).returncode == 0
    with open_checkpoint(default_model) as a, open_checkpoint(again) as b:
        for key in ("tokens", "merges", "token_type", "pre", "bos_token_id", "eos_token_id"):
            assert a.metadata[f"tokenizer.ggml.{key}"] == b.metadata[f"tokenizer.ggml.{key}"], key
        assert a.metadata["tokenizer.chat_template"] == b.metadata["tokenizer.chat_template"]
        assert a.tensors.keys() == b.tensors.keys()
        norm = "blk.3.attn_norm.weight"
        np.testing.assert_allclose(a.tensors[norm].data.view("<f4"), b.tensors[norm].data.view("<f4"), rtol=4e-3)


def test_what_cannot_be_made_is_an_error_with_a_remedy(default_model: Path, tmp_path: Path) -> None:
    wrong = pagoda("quantize", default_model, "--to", "q4_k_n", "-o", tmp_path / "x.gguf")
    assert wrong.returncode == 2
    assert "did you mean q4_k_" in wrong.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["q4_k_m", "nf4"])
def test_what_is_made_is_served(method: str, default_model: Path, tmp_path: Path) -> None:
    made = tmp_path / ("model.gguf" if method == "q4_k_m" else "model")
    done = pagoda("quantize", default_model, "--to", method, "-o", made)
    assert done.returncode == 0, done.stderr
    assert "peak memory" in done.stderr
    question = {"role": "user", "content": "What is the capital of France? One sentence."}
    with process(made, tmp_path / "log") as server:
        body = {"messages": [question], "temperature": 0, "max_tokens": 16}
        answer = server.client.post("/v1/chat/completions", json=body).json()
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_worse_than_the_user_allows(tmp_path: Path) -> None:
    source, made = write_gguf(tmp_path / "source.gguf", TINY["llama_256"]), tmp_path / "made.gguf"
    arguments = ("quantize", source, "--to", "q2_k", "-o", made, "--max-kld")
    worse = pagoda(*arguments, "1e-6")
    assert worse.returncode == 1
    assert "more than --max-kld 1e-06; nothing was kept" in " ".join(worse.stderr.split())
    assert list(tmp_path.iterdir()) == [source]
    assert pagoda(*arguments, "100").returncode == 0
    assert sorted(tmp_path.iterdir()) == [made, source]
