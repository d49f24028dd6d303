"""Whole jobs on tiny models: folders become the GGUF files they should, what is interrupted goes on."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest

from paged_run import reference_run
from pagoda.errors import CapacityError, ConfigError, FormatError, UnsupportedError
from pagoda.formats.blocks import dequantize
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.formats.gguf_writer import GGUFWriter
from pagoda.formats.safetensors_writer import SafetensorsFolder
from pagoda.models.registry import load_model
from pagoda.quantize.calibration.imatrix import read_imatrix
from pagoda.quantize.run import quantize
from pagoda.quantize.settings import QuantizeSettings
from pagoda.text.tokenizer import load_tokenizer
from quantized_models import write_quantized
from tiny_models import TINY, VOCAB, write_gguf, write_safetensors

TOKENS = [(37 * i + 11) % VOCAB for i in range(40)]
TEXT = "It's the end, and 1234 things — naïve ones — began in the hold of a ship.\n\n  Now then!"


def run(source: Path, output: Path, to: str, **settings: object) -> list[str]:
    """→ what the user was told"""
    said: list[str] = []
    quantize(source, output, QuantizeSettings(to=to, threads=2, **settings), say=said.append)  # type: ignore[arg-type]
    return said


def floats(path: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(path) as checkpoint:
        return {name: dequantize(raw.data, raw.type, raw.shape) for name, raw in checkpoint.tensors.items()}


def logits(path: Path) -> np.ndarray:
    with open_checkpoint(path) as checkpoint:
        return reference_run(load_model(checkpoint)).step({"a": TOKENS})["a"]


LLAMAS = ["llama", "llama3", "llama_biased", "mistral", "mixtral", "granite", "ministral3"]
OTHERS = [
    "qwen2",
    "qwen3",
    "qwen3_yarn",
    "qwen3moe",
    "phi3",
    "phi3_long",
    "gemma",
    "gemma2",
    "gemma3",
    "olmo2",
    "smollm3",
    *("olmo3", "glm4", "seed_oss", "cohere", "cohere2", "stablelm", "stablelm_parallel", "nemotron"),
]


@pytest.mark.parametrize("name", [*LLAMAS, *OTHERS])
def test_a_folder_becomes_the_gguf_file_of_the_same_model(name: str, tmp_path: Path) -> None:
    spec = TINY[name]
    folder = write_safetensors(tmp_path / "folder", spec)
    run(folder, tmp_path / "made.gguf", "f32")
    expected = floats(write_gguf(tmp_path / "expected.gguf", spec))
    made = floats(tmp_path / "made.gguf")
    assert made.keys() == expected.keys()
    for tensor, values in expected.items():
        np.testing.assert_allclose(made[tensor], values, rtol=1e-6, err_msg=tensor)
    np.testing.assert_allclose(logits(tmp_path / "made.gguf"), logits(folder), atol=2e-4)
    with open_checkpoint(folder) as a, open_checkpoint(tmp_path / "made.gguf") as b:
        theirs, ours = load_tokenizer(a), load_tokenizer(b)
    assert ours.encode(TEXT) == theirs.encode(TEXT)
    assert (ours.bos_id, ours.eos_ids) == (theirs.bos_id, theirs.eos_ids)


@pytest.mark.parametrize(
    "name",
    [
        *("llama", "mistral", "mixtral", "qwen3", "qwen3moe", "phi3", "phi3_long"),
        *("gemma", "gemma2", "gemma3", "olmo2", "smollm3", "granite"),
        *("olmo3", "glm4", "seed_oss", "cohere", "cohere2", "stablelm", "stablelm_parallel", "nemotron"),
    ],
)
def test_there_and_back_again_is_the_same_model(name: str, tmp_path: Path) -> None:
    original = write_gguf(tmp_path / "original.gguf", TINY[name])
    run(original, tmp_path / "folder", "safetensors", dtype="f32")
    run(tmp_path / "folder", tmp_path / "again.gguf", "f32")
    expected, again = floats(original), floats(tmp_path / "again.gguf")
    assert again.keys() == expected.keys()
    for tensor, values in expected.items():
        np.testing.assert_allclose(again[tensor], values, rtol=1e-6, err_msg=tensor)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("qwen3moe_mixed", {}, "some without"),
        ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob False"),
    ],
)
def test_mixtures_that_gguf_cannot_say_are_refused(
    name: str, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = write_safetensors(tmp_path / "folder", TINY[name].with_config(**changes))
    with pytest.raises(UnsupportedError, match=message):
        run(folder, tmp_path / "made.gguf", "f16")


def test_windows_that_gguf_cannot_say_are_refused(tmp_path: Path) -> None:
    folder = write_safetensors(tmp_path / "folder", TINY["qwen2_windowed"])
    with pytest.raises(UnsupportedError, match="sliding windows"):
        run(folder, tmp_path / "made.gguf", "f16")
    assert not (tmp_path / "made.gguf").exists()


def test_types_shrink_by_the_mix_and_fallbacks_are_said_aloud(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "source.gguf", TINY["smollm2"])
    said = run(source, tmp_path / "made.gguf", "q4_k_m", tensor_type=("attn_output=q8_0",))
    with open_checkpoint(tmp_path / "made.gguf") as made:
        types = {name: raw.type for name, raw in made.tensors.items()}
        assert made.metadata["general.file_type"] == 15
        assert made.metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert (types["blk.0.ffn_down.weight"], types["blk.1.ffn_down.weight"]) == ("Q4_K", "Q6_K")
    assert types["blk.0.attn_q.weight"] == "Q5_0"
    assert types["blk.0.attn_output.weight"] == "Q8_0"
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert any("become Q5_0 instead of Q4_K" in line and "576" in line for line in said)
    assert np.corrcoef(logits(source).ravel(), logits(tmp_path / "made.gguf").ravel())[0, 1] > 0.98


def test_an_interrupted_job_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_gguf(tmp_path / "source.gguf", TINY["llama_256"])
    run(source, tmp_path / "whole.gguf", "q5_k_m")
    written: list[str] = []
    write = GGUFWriter.write

    def watched(self: GGUFWriter, name: str, data: np.ndarray) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(name)
        write(self, name, data)

    monkeypatch.setattr(GGUFWriter, "write", watched)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "made.gguf", "q5_k_m")
    assert not (tmp_path / "made.gguf").exists()
    before, written[:] = list(written), []
    monkeypatch.setattr(GGUFWriter, "write", lambda self, name, data: (written.append(name), write(self, name, data)))
    assert any("going on" in line for line in run(source, tmp_path / "made.gguf", "q5_k_m"))
    assert not set(before) & set(written)
    assert (tmp_path / "made.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert not (tmp_path / "made.gguf.partial").exists()


def test_another_jobs_leftovers_are_not_mixed_in(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "source.gguf", TINY["llama_256"])
    with pytest.raises(FormatError):
        run(source, tmp_path / "made.gguf", "q8_0", imatrix=str(source))
    said = run(source, tmp_path / "made.gguf", "q4_0")
    assert any("starting over" in line for line in said)
    run(source, tmp_path / "alone.gguf", "q4_0")
    assert (tmp_path / "made.gguf").read_bytes() == (tmp_path / "alone.gguf").read_bytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("tensor", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_damaged_weights_are_named_and_nothing_is_left(bad: float, tensor: str, tmp_path: Path) -> None:
    folder = write_safetensors(tmp_path / "folder", TINY["llama_256"])
    with open_checkpoint(folder) as checkpoint:
        raw = checkpoint.tensors[tensor]
        offset = (folder / "model.safetensors").read_bytes().index(raw.data.tobytes())
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(offset + 40)
        file.write(np.float32(bad).tobytes())
    with pytest.raises(FormatError, match=r"column 10|row 0"):
        run(folder, tmp_path / "made.gguf", "q4_k_m")
    assert not (tmp_path / "made.gguf").exists()


@pytest.mark.parametrize("kind", ["gguf", "folder"])
@pytest.mark.parametrize("to", ["q4_k_m", "nf4"])
def test_a_truncated_model_is_refused(kind: str, to: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    weights = write_gguf(source, TINY["llama_256"]) if kind == "gguf" else write_safetensors(source, TINY["llama_256"])
    weights = source if kind == "gguf" else source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5000])
    with pytest.raises(FormatError, match=r"source.*(truncated|ends|beyond|outside)"):
        run(source, tmp_path / "made", to)
    assert not (tmp_path / "made").exists()


def test_a_folder_whose_groups_do_not_fit_is_refused(tmp_path: Path) -> None:
    source = write_quantized(tmp_path / "source", TINY["llama"], "gptq-4", group_size=24)
    for to in ("gguf", "q4_0", "safetensors"):
        with pytest.raises(FormatError, match="group"):
            run(source, tmp_path / "made", to)
        shutil.rmtree(tmp_path / "made.partial")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("to", "writer"), [("q8_0", GGUFWriter), ("int8", SafetensorsFolder)])
def test_a_disk_that_fills_up_leaves_nothing_under_the_final_name(
    to: str, writer: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_gguf(tmp_path / "source.gguf", TINY["llama"])

    def full(*anything: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write", full)
        with pytest.raises(CapacityError, match=r"the disk is full: .*made\.partial; make room and run"):
            run(source, tmp_path / "made", to)
    assert not (tmp_path / "made").exists()
    assert any("going on" in line for line in run(source, tmp_path / "made", to))
    assert (tmp_path / "made").exists()


def test_what_is_quantized_already_is_refused_or_said(tmp_path: Path) -> None:
    source = write_quantized(tmp_path / "source", TINY["llama"], "gptq-4")
    with pytest.raises(UnsupportedError, match=r"quantized already \(GPTQ-4\); .* pagoda convert"):
        run(source, tmp_path / "again", "nf4")
    assert any("quantized already" in line for line in run(source, tmp_path / "made.gguf", "q8_0", imatrix="auto"))


def test_an_output_that_exists_is_kept_unless_forced(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "source.gguf", TINY["llama"])
    output = tmp_path / "made.gguf"
    output.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="--force"):
        run(source, output, "q8_0")
    assert output.read_bytes() == b"mine"
    run(source, output, "q8_0", force=True)
    assert output.stat().st_size > 1000


def test_the_importance_matrix_is_the_mean_square_of_inputs(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "source.gguf", TINY["llama_256"])
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 40)
    settings = {"imatrix": "auto", "calibration": str(text), "calibration_samples": 4, "calibration_tokens": 64}
    run(source, tmp_path / "made.gguf", "q4_k_m", save_imatrix=tmp_path / "kept.gguf", **settings)
    matrix = read_imatrix(tmp_path / "kept.gguf")
    assert len(matrix.entries) == 14
    assert {count for entry in matrix.entries.values() for count in entry.counts} == {4 * 64}
    with open_checkpoint(source) as checkpoint:
        norm = dequantize(checkpoint.tensors["blk.0.attn_norm.weight"].data, "F32", (256,))
    means = matrix.entries["blk.0.attn_q.weight"].means()
    assert np.mean(means / norm**2) == pytest.approx(1.0, rel=1e-3)  # what an RMS norm gives out
    run(source, tmp_path / "from_file.gguf", "q4_k_m", imatrix=str(tmp_path / "kept.gguf"))
    first, second = floats(tmp_path / "made.gguf"), floats(tmp_path / "from_file.gguf")
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])


def test_experts_have_the_importance_of_the_tokens_that_they_got(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "source.gguf", TINY["qwen3moe"])
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 40)
    settings = {"imatrix": "auto", "calibration": str(text), "calibration_samples": 4, "calibration_tokens": 64}
    run(source, tmp_path / "made.gguf", "q4_0", save_imatrix=tmp_path / "kept.gguf", **settings)
    matrix = read_imatrix(tmp_path / "kept.gguf")
    down, up = (matrix.entries[f"blk.1.ffn_{part}_exps.weight"] for part in ("down", "up"))
    assert up.counts.tolist() == down.counts.tolist()
    assert up.counts.sum() == 4 * 64 * 2  # two experts for each token
    with open_checkpoint(source) as checkpoint:
        norm = dequantize(checkpoint.tensors["blk.1.ffn_norm.weight"].data, "F32", (64,))
    seen = up.counts > 0
    np.testing.assert_allclose((up.means()[seen] / norm**2).mean(1), 1.0, rtol=1e-3)  # of what an RMS norm gives out
    run(source, tmp_path / "from_file.gguf", "q4_0", imatrix=str(tmp_path / "kept.gguf"))
    made, again, plain = (tmp_path / name for name in ("made.gguf", "from_file.gguf", "plain.gguf"))
    run(source, plain, "q4_0")
    name = "blk.1.ffn_up_exps.weight"
    np.testing.assert_array_equal(floats(made)[name], floats(again)[name])
    assert (floats(made)[name] != floats(plain)[name]).any()


def test_a_family_that_is_not_converted_is_refused_both_ways(tmp_path: Path) -> None:
    folder = write_safetensors(tmp_path / "folder", TINY["gemma4"])
    with pytest.raises(UnsupportedError, match="converter makes them"):
        run(folder, tmp_path / "made.gguf", "f16")
    with pytest.raises(UnsupportedError, match="converter makes them"):
        run(write_gguf(tmp_path / "model.gguf", TINY["gemma4"]), tmp_path / "made", "safetensors", dtype="f32")
