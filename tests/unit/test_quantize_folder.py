"""Quantized folders of tiny models of every family: what they hold, resuming, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from paged_run import reference_run
from pagoda.errors import CapacityError, ConfigError, FormatError, UnsupportedError
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.formats.quantized import as_floats
from pagoda.models.hugging_face import as_hugging_face
from pagoda.models.registry import load_model
from pagoda.quantize.calibration import layers
from pagoda.quantize.calibration.arithmetic import Arithmetic, make_arithmetic
from pagoda.quantize.calibration.forward import WindowOps
from pagoda.quantize.calibration.layers import Store
from pagoda.quantize.folder.write import narrow
from pagoda.quantize.run import quantize
from pagoda.text.tokenizer import load_tokenizer
from quantize_runs import WINDOWS, check_devices_do_equally_well, cosine, logits, need_torch, run, settings
from tiny_models import MIXTURES, TINY, memory_checkpoint, write_gguf, write_safetensors

FAMILIES = ["llama3", "llama_biased", "mistral", "qwen2", "qwen3", "gemma3", "phi3_long", "qwen3moe", "mixtral"]


class Stored:
    """A `LinearSource`: what a job made of the weights, and the model's own where it left them."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def weights(self, x, calls):
        names = [call.weight.name for call in calls]
        return [
            self.store.load(name).values() if self.store.has(name) else as_floats(call.weight)
            for name, call in zip(names, calls, strict=True)
        ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_the_folder_is_the_model_that_was_calibrated(tmp_path: Path, family: str, method: str) -> None:
    source = write_gguf(tmp_path / "model.gguf", TINY[family])
    folder, _ = run(source, tmp_path, method)
    with open_checkpoint(folder) as made:
        found = logits(made)
    # The same layers, not yet folded and packed, in the model as it was:
    kept: list[np.ndarray] = []
    source_ = Stored(Store(tmp_path / "work" / "layers"))
    ops = WindowOps(WINDOWS, source_, on_logits=lambda i, chunk: kept.append(chunk))
    with open_checkpoint(source) as opened:
        load_model(as_hugging_face(opened)).forward(ops)
        expected = np.concatenate(kept)
        if family in MIXTURES:  # a router in 16 bits sends a token in many elsewhere, and later ones attend to it
            assert np.median([cosine(a, b) for a, b in zip(found, expected, strict=True)]) > 0.99999
        else:
            assert cosine(found, expected) > (0.9995 if family == "gemma3" else 0.99999)
        assert cosine(found, logits(opened)) > 0.85


@need_torch
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibration_in_torch_does_as_well(tmp_path: Path, method: str) -> None:
    source = write_gguf(tmp_path / "model.gguf", TINY["qwen2_windowed"])
    check_devices_do_equally_well(source, tmp_path, method, "cpu", "torch-cpu")


@pytest.mark.parametrize("family", ["qwen3", "phi3_long", "qwen3moe_mixed", "mixtral"])
@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_methods_without_a_sample(tmp_path: Path, method: str, family: str) -> None:
    source = write_safetensors(tmp_path / "model", TINY[family])
    folder, said = run(source, tmp_path, method)
    with open_checkpoint(source) as opened, open_checkpoint(folder) as made:
        assert (
            cosine(logits(made), logits(opened))
            > {"nf4": 0.85, "int8": 0.995 if family in MIXTURES else 0.9995}[method]
        )
    assert not any("calibrating" in line for line in said)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_those_that_were_asked_for(tmp_path: Path, threads: int) -> None:
    source, counts = write_gguf(tmp_path / "model.gguf", TINY["llama"]), []

    def say(line: str) -> None:
        if "calibrating" in line:
            counts.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")

    quantize(source, tmp_path / "out", settings(tmp_path, "gptq", threads=threads), say=say)
    assert counts
    assert set(counts) == {threads}


def test_a_device_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagoda.engine.device.no_cuda_reason", lambda: "there is none")
    source = write_gguf(tmp_path / "model.gguf", TINY["llama"])
    with pytest.raises(ConfigError, match="--device cuda: there is none"):
        quantize(source, tmp_path / "out", settings(tmp_path, "gptq", device="cuda"))
    assert not list(tmp_path.glob("out*"))


def test_what_config_and_tokenizer_say(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "model.gguf", TINY["llama"])
    folder, said = run(source, tmp_path, "gptq", group_size=128, act_order="full", symmetric=False)
    config = json.loads((folder / "config.json").read_text())
    quantization = config["quantization_config"]
    assert quantization["quant_method"] == "gptq"
    assert (quantization["bits"], quantization["group_size"], quantization["desc_act"]) == (4, 32, True)
    assert quantization["sym"] is False
    assert config["pagoda"]["calibration"]["windows"] == 6
    assert len(config["pagoda"]["calibration"]["sha256"]) == 64
    assert any("groups of 32" in line for line in said)  # 64 and 96 columns
    assert any("peak memory" in line for line in said)
    with open_checkpoint(source) as opened, open_checkpoint(folder) as made:
        text = "hello there,  World 123 <s> \n"
        assert load_tokenizer(made).encode(text) == load_tokenizer(opened).encode(text)


def test_an_interrupted_job_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_safetensors(tmp_path / "model", TINY["llama"])
    whole, _ = run(source, tmp_path, "awq")
    expected = (whole / "model.safetensors").read_bytes()
    finished = tmp_path / "work" / "layers"
    for name in ("model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.o_proj.weight"):
        (finished / f"{name}.npz").unlink()
    made: list[str] = []
    save = Store.save
    monkeypatch.setattr(layers.Store, "save", lambda self, name, *rest: (made.append(name), save(self, name, *rest))[1])
    again, _ = run(source, tmp_path, "awq")
    assert sorted(made) == ["model.layers.0.self_attn.o_proj.weight", "model.layers.1.mlp.down_proj.weight"]
    assert (again / "model.safetensors").read_bytes() == expected


def test_refusals(tmp_path: Path) -> None:
    spec = TINY["llama"]
    source = write_safetensors(tmp_path / "model", spec)
    with pytest.raises(ConfigError, match="gptq has 2, 3, 4, 8 bits, not 5"):
        run(source, tmp_path, "gptq", bits=5)
    with pytest.raises(ConfigError, match="awq has 4 bits"):
        run(source, tmp_path, "awq", bits=3)
    with pytest.raises(ConfigError, match="groups of 100 do not divide rows of 64, 96"):
        run(source, tmp_path, "gptq", group_size=100)
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    with pytest.raises(ConfigError, match="is empty"):
        run(source, tmp_path, "gptq", calibration=str(empty))
    quantized, _ = run(source, tmp_path, "int8")
    with pytest.raises(UnsupportedError, match="quantized already"):
        run(quantized, tmp_path, "gptq")


@pytest.mark.parametrize("method", ["gptq", "nf4"])
def test_damaged_weights_are_named(tmp_path: Path, method: str) -> None:
    source = write_safetensors(tmp_path / "model", TINY["llama"])
    file = source / "model.safetensors"
    with open_checkpoint(source) as opened:
        data = opened.tensors["model.layers.0.mlp.up_proj.weight"].data
        at = file.read_bytes().index(np.ascontiguousarray(data).tobytes())
    raw = bytearray(file.read_bytes())
    raw[at : at + 4] = np.float32(np.nan).tobytes()
    file.write_bytes(raw)
    with pytest.raises(FormatError, match=r"layers\.0\.mlp\.up_proj\.weight.* NaN or infinite"):
        run(source, tmp_path, method)


@pytest.mark.parametrize("device", ["cpu", pytest.param("torch-cpu", marks=need_torch)])
@pytest.mark.parametrize("to", ["gptq", "q4_0"])
def test_a_sample_that_memory_does_not_hold(tmp_path: Path, to: str, device: str, monkeypatch: Any) -> None:
    source = write_gguf(tmp_path / "model.gguf", TINY["llama"])
    arithmetic = type(make_arithmetic(device, print))

    def gated(self: Arithmetic, *_: Any) -> None:
        raise arithmetic.out_of_memory("no more")

    monkeypatch.setattr(arithmetic, "gated", gated)
    with pytest.raises(CapacityError, match=r"ran out on 6 windows of 64 tokens; take fewer --calibration-samples"):
        run(source, tmp_path, to, device=device, imatrix="auto" if to == "q4_0" else None)


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_looks_like_hugging_face(tmp_path: Path, family: str) -> None:
    """Names, order of rows, norms and settings: the view of a GGUF file computes what the folder computes."""
    with open_checkpoint(write_gguf(tmp_path / "model.gguf", TINY[family])) as opened:
        view = as_hugging_face(opened)
        expected = memory_checkpoint(TINY[family])
        assert set(view.tensors) == set(expected.tensors)
        tokens = WINDOWS[0].tolist()
        found, wanted = (reference_run(load_model(c)).step({"a": tokens})["a"] for c in (view, expected))
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-4)


def test_narrow() -> None:
    values = np.array([1.0, -0.1, 3.14159, 1e-3], dtype=np.float32)
    bits = narrow(values, "BF16", "x").astype(np.uint32) << 16
    np.testing.assert_allclose(bits.view(np.float32), values, rtol=2**-8)
    with pytest.raises(UnsupportedError, match="float16 cannot"):
        narrow(np.array([1e6], dtype=np.float32), "F16", "x")
