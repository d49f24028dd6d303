"""Quantized Hugging Face folders: each layer is one tensor that means what its parts say; what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paged_run import reference_run
from pagoda.errors import FormatError, UnsupportedError
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.formats.quantized import QuantizedTensor, as_floats
from pagoda.models.registry import load_model
from quantized_models import KINDS, is_quantized, quantized_arrays, write_folder, write_quantized
from tiny_models import TINY, VOCAB, hf_config, weights

LLAMA = TINY["llama"]
TOKENS = [(37 * i + 11) % VOCAB for i in range(20)]
LOSS = {"fp8": 0.04, "nvfp4": 0.15, "2": 0.6, "3": 0.25, "8": 0.02, "int8": 0.02}  # relative error; 4 bits: 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_layers_decode_to_the_weights_up_to_rounding(kind: str, tmp_path: Path) -> None:
    with open_checkpoint(write_quantized(tmp_path, LLAMA, kind)) as checkpoint:
        expected = weights(LLAMA)
        assert checkpoint.tensors.keys() == expected.keys()
        loss = next((value for bits, value in LOSS.items() if bits in kind and "w8a8" not in kind), 0.15)
        for name, tensor in checkpoint.tensors.items():
            values = as_floats(tensor)
            assert values.shape == tensor.shape == expected[name].shape
            if not is_quantized(name, values):
                np.testing.assert_array_equal(values, expected[name])
                continue
            assert isinstance(tensor, QuantizedTensor)
            assert 0 < tensor.num_bytes < values.nbytes
            assert np.linalg.norm(values - expected[name]) < loss * np.linalg.norm(expected[name])


@pytest.mark.parametrize("kind", ["gptq-act-order", "awq", "w8a8", "nf4-double"])
@pytest.mark.parametrize("model", ["llama", "phi3_long"])
def test_the_reference_runs_them_as_it_runs_the_decoded_weights(kind: str, model: str, tmp_path: Path) -> None:
    with open_checkpoint(write_quantized(tmp_path / "packed", TINY[model], kind)) as packed:
        decoded = {name: as_floats(tensor) for name, tensor in packed.tensors.items()}
        folder = write_folder(tmp_path / "floats", hf_config(TINY[model]), decoded)
        with open_checkpoint(folder) as floats:
            logits = [reference_run(load_model(c)).step({"a": TOKENS})["a"] for c in (packed, floats)]
    np.testing.assert_array_equal(*logits)


def test_layers_left_alone_need_no_list(tmp_path: Path) -> None:
    arrays = quantized_arrays(LLAMA, KINDS["gptq-4"])
    plain = "model.layers.1.mlp.down_proj"
    arrays = {name: array for name, array in arrays.items() if not name.startswith(plain)}
    arrays[f"{plain}.weight"] = weights(LLAMA)[f"{plain}.weight"]
    config = {**hf_config(LLAMA), "quantization_config": KINDS["gptq-4"].config}
    with open_checkpoint(write_folder(tmp_path, config, arrays)) as checkpoint:
        assert checkpoint.tensors[f"{plain}.weight"].type == "F32"
        assert np.isfinite(reference_run(load_model(checkpoint)).step({"a": TOKENS})["a"]).all()


def test_settings_may_stand_in_quantize_config_json(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, hf_config(LLAMA), quantized_arrays(LLAMA, KINDS["gptq-4"]))
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32, "desc_act": False}))
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tensors["model.layers.0.mlp.up_proj.weight"].type == "GPTQ-4"


def test_layers_may_have_bits_of_their_own(tmp_path: Path) -> None:
    arrays = quantized_arrays(LLAMA, KINDS["gptq-4"])
    eight = quantized_arrays(LLAMA, KINDS["gptq-8"])
    arrays |= {name: array for name, array in eight.items() if "down_proj" in name}
    quantization = {**KINDS["gptq-4"].config, "dynamic": {"+:.*down_proj": {"bits": 8}}}
    folder = write_folder(tmp_path, {**hf_config(LLAMA), "quantization_config": quantization}, arrays)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tensors["model.layers.0.mlp.down_proj.weight"].type == "GPTQ-8"
        assert checkpoint.tensors["model.layers.0.mlp.up_proj.weight"].type == "GPTQ-4"
        load_model(checkpoint)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("gptq-4", {"quant_method": "quip"}, "quant_method 'quip' is not supported; supported: gptq, awq"),
        ("gptq-4", {"checkpoint_format": "marlin"}, "'marlin' .* not supported; save it in the format gptq or"),
        ("gptq-4", {"is_marlin_format": True}, "'marlin'"),
        ("gptq-4", {"bits": 5}, "bits is 5; supported: 2, 3, 4, 8"),
        ("awq", {"version": "gemv"}, "AWQ .* version 'gemv' is not supported; save it in 4 bits and version gemm"),
        ("awq", {"bits": 8}, "AWQ checkpoint of 8 bits"),
        ("w4a16", {"format": "marlin-24"}, "4 bits .* in the format 'marlin-24' are not supported; pack-quantized"),
        ("w4a16", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse or transformed"),
    ],
)
def test_unsupported_variants_are_named_with_a_remedy(
    kind: str, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_quantized(tmp_path, LLAMA, kind, **config)
    with pytest.raises(UnsupportedError, match=message):
        open_checkpoint(folder)
    with open_checkpoint(folder, any_type=True) as checkpoint:  # can be looked at
        assert any(name.endswith(("qweight", "weight_packed")) for name in checkpoint.tensors)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("gptq-4", {"group_size": 64}),
        ("gptq-4", {"bits": 3}),
        ("gptq-4", {"group_size": 0}),
        ("gptq-4", {"group_size": "128"}),
        ("awq", {"group_size": 64}),
        ("w4a16", {"config_groups": None}),
    ],
)
def test_settings_that_do_not_fit_the_tensors(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"layer 'model\.layers|group_size is|config_groups is"):
        open_checkpoint(write_quantized(tmp_path, LLAMA, kind, **config))


LAYER = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("kind", "part", "shape"),
    [
        ("gptq-4", ".scales", None),
        ("gptq-4", ".scales", (3, 96)),
        ("gptq-4", ".g_idx", (63,)),
        ("gptq-4", ".qweight", (8 * 96,)),
        ("awq", ".qweight", (65, 12)),
        ("awq", ".scales", (2, 95)),
        ("w4a16", ".weight_packed", (96, 9)),
        ("w4a16", ".weight_shape", (3,)),
        ("w8a8", ".weight_scale", (96, 2)),
        ("nf4", ".weight", (3071, 1)),
        ("nf4", ".weight.quant_state.bitsandbytes__nf4", None),
        ("llm-int8", ".SCB", (95,)),
    ],
)
def test_parts_that_are_missing_or_of_wrong_shapes(
    kind: str, part: str, shape: tuple[int, ...] | None, tmp_path: Path
) -> None:
    """Found when the checkpoint is opened: nothing has been decoded or allocated."""
    arrays = quantized_arrays(LLAMA, KINDS[kind])
    array = arrays.pop(LAYER + part)
    if shape is not None:
        arrays[LAYER + part] = np.zeros(shape, array.dtype)
    config = {**hf_config(LLAMA), "quantization_config": KINDS[kind].config}
    with pytest.raises(FormatError, match=f"layer '{LAYER}'"):
        open_checkpoint(write_folder(tmp_path, config, arrays))


def test_a_layer_of_another_size_than_the_settings_say(tmp_path: Path) -> None:
    wider = LLAMA.with_config(intermediate_size=128)
    config = {**hf_config(LLAMA), "quantization_config": KINDS["awq"].config}
    folder = write_folder(tmp_path, config, quantized_arrays(wider, KINDS["awq"]))
    with (
        open_checkpoint(folder) as checkpoint,
        pytest.raises(FormatError, match=r"gate_proj.weight' has shape \(128, 64\), but the settings say \(96, 64\)"),
    ):
        load_model(checkpoint)
