"""Adapters' files: what is damaged, made for another model or not understood is refused by name; round trips."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pagoda.adapters.adapter import Adapter, Delta
from pagoda.adapters.files import read_adapter
from pagoda.adapters.gguf import write_gguf_adapter
from pagoda.adapters.peft import write_peft
from pagoda.adapters.place import Base, base_names, place
from pagoda.errors import FormatError, PagodaError, UnsupportedError
from pagoda.models.registry import family_of, load_model
from tiny_adapters import ADAPTERS, golden, value, write_adapter
from tiny_adapters import write_peft as write_folder
from tiny_models import TINY, memory_checkpoint

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def base(name: str = "llama", kind: str = "safetensors") -> Base:
    checkpoint: Any = memory_checkpoint(TINY[name], kind=kind)
    family = family_of(checkpoint)
    return Base(load_model(checkpoint, max_context=128), family, kind == "gguf", family.gguf)


def folder(path: Path, config: dict[str, Any] | None = None, **tensors: Any) -> Path:
    """A folder of one module of rank 2, with these changes."""
    values = {f"{Q}.lora_A.weight": value("a", (2, 64)), f"{Q}.lora_B.weight": value("b", (64, 2)), **tensors}
    kept = {key: array for key, array in values.items() if array is not None}
    return write_folder(path, {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **(config or {})}, kept)


def test_the_plain_folder_is_fine(tmp_path: Path) -> None:
    assert len(place(read_adapter(folder(tmp_path)), base())) == 1


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"future_option": 3}, "future_option = 3 is not understood"),
        ({"use_qalora": True}, "use_qalora"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
        ({"init_lora_weights": "pissa"}, "'pissa' changed the base model's weights"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"r": 4}, "rank 4"),
        ({"r": 0}, "r is 0"),
        ({"r": "two"}, "r must be a number, not 'two'"),
        ({"lora_alpha": None}, "lora_alpha must be a number"),
        ({"use_dora": True}, "use_dora is True"),
        ({"rank_pattern": {"(a+)+b": 2}}, "too intricate"),
        ({"rank_pattern": {".*a.*b.*c.*d": 2}}, "too intricate"),
        ({"rank_pattern": {f".*{i}": 2 for i in range(40)}}, "more than 32 patterns"),
        ({"alpha_pattern": {"q_proj(": 2}}, "is no pattern"),
        ({"alpha_pattern": ["q_proj"]}, "must be an object"),
    ],
)
def test_settings_that_are_not_understood_are_refused(config: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(PagodaError, match=match.replace("(", r"\(").replace("+", r"\+")):
        read_adapter(folder(tmp_path, config))


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({f"{Q}.lora_B.weight": None}, "only one of its two factors"),
        ({f"{Q}.lora_C.weight": value("c", (2, 2))}, "lora_C.weight' is not understood"),
        ({f"{Q}.lora_A.weight": np.full((2, 64), np.nan, np.float32)}, "q_proj holds a number that is not finite"),
        ({f"{Q}.lora_B.weight": value("b", (64, 3))}, r"do not multiply"),
        ({f"{Q}.token_adapter.trainable_tokens_delta": value("t", (2, 2))}, "trainable_tokens_delta"),
    ],
)
def test_tensors_that_cannot_be_are_refused(tensors: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(PagodaError, match=match):
        read_adapter(folder(tmp_path, **tensors))


def test_a_rank_beyond_the_width_is_refused(tmp_path: Path) -> None:
    wide = {f"{Q}.lora_A.weight": value("a", (65, 64)), f"{Q}.lora_B.weight": value("b", (64, 65))}
    with pytest.raises(FormatError, match="rank 65, but its matrix is 64 by 64"):
        read_adapter(folder(tmp_path, {"r": 65}, **wide))


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    """Of other widths, of more layers, of modules that are not there, of another architecture."""
    narrow = {f"{Q}.lora_A.weight": value("a", (2, 32)), f"{Q}.lora_B.weight": value("b", (32, 2))}
    with pytest.raises(FormatError, match=r"q_proj is for a matrix of \(32, 32\), but the model's is \(64, 64\)"):
        place(read_adapter(folder(tmp_path / "narrow", **narrow)), base())
    deep = {key.replace(".0.", ".7."): array for key, array in narrow.items()}
    with pytest.raises(FormatError, match="has 2 layers"):
        place(read_adapter(folder(tmp_path / "deep", **deep)), base())
    with pytest.raises(FormatError, match="fc1', which this llama model does not have"):
        place(read_adapter(write_peft_of(tmp_path / "other", "model.layers.0.mlp.fc1")), base())
    write_gguf_adapter(tmp_path / "x.gguf", "qwen2", {"blk.0.attn_q": delta()})
    with pytest.raises(FormatError, match="made for 'qwen2', but the model is 'llama'"):
        place(read_adapter(tmp_path / "x.gguf"), base())


def delta() -> Delta:
    return Delta(value("a", (2, 64)), value("b", (64, 2)), 1.5)


def write_peft_of(path: Path, module: str) -> Path:
    write_peft(path, {module: delta()}, {})
    return path


def test_damaged_and_missing_files_are_said(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no adapter"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(FormatError, match="may run programs"):
        read_adapter(tmp_path)
    made = folder(tmp_path / "cut")
    weights = made / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(FormatError):
        read_adapter(made)
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    with pytest.raises(FormatError):
        read_adapter(tmp_path / "no.gguf")
    with pytest.raises(FormatError, match="no adapter: there is no such file or folder"):
        read_adapter(tmp_path / "absent")


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    one, same = read_adapter(folder(tmp_path / "a")), read_adapter(folder(tmp_path / "b"))
    other = read_adapter(folder(tmp_path / "c", {"lora_alpha": 5}))
    assert one.digest == same.digest != other.digest


def test_several_patterns_that_match_one_module_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    patterns = {"alpha_pattern": {"self_attn.q_proj": 6, "q_proj": 2}}
    with caplog.at_level(logging.WARNING):
        read = read_adapter(folder(tmp_path, patterns))
    assert read.deltas["model.layers.0.self_attn.q_proj"].scale == 3
    assert "the first counts" in caplog.text


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_what_is_written_for_peft_reads_back_the_same(name: str, tmp_path: Path) -> None:
    first = read_adapter(write_adapter(tmp_path / "first", name))
    write_peft(tmp_path / "again", first.deltas, first.whole, base="tiny")
    again = read_adapter(tmp_path / "again")
    assert same(first, again)


def same(a: Adapter, b: Adapter) -> bool:
    assert a.deltas.keys() == b.deltas.keys()
    for module, delta in a.deltas.items():
        other = b.deltas[module]
        np.testing.assert_array_equal(delta.a, other.a)
        np.testing.assert_array_equal(delta.b, other.b)
        assert delta.scale == pytest.approx(other.scale, rel=1e-6)
        assert (delta.magnitude is None, delta.bias is None) == (other.magnitude is None, other.bias is None)
    assert a.whole.keys() == b.whole.keys()
    return True


@pytest.mark.parametrize("name", ["all_linear", "rslora", "patterns", "fused"])
def test_a_gguf_adapter_adds_what_the_folder_adds(name: str, tmp_path: Path) -> None:
    """Scales, names and the order of rows survive; on a model from either kind of file."""
    read = read_adapter(write_adapter(tmp_path / "peft", name))
    on = base(golden(name)["base"], "gguf")
    write_gguf_adapter(
        tmp_path / "adapter.gguf", on.family.gguf, base_names(read.deltas, on, from_gguf=False, to_gguf=True)
    )
    for kind in ("gguf", "safetensors"):
        target = base(golden(name)["base"], kind)
        expected, found = place(read, target), place(read_adapter(tmp_path / "adapter.gguf"), target)
        assert expected.keys() == found.keys()
        for weight, part in expected.items():
            np.testing.assert_allclose(found[weight].b @ found[weight].a, part.b @ part.a, atol=1e-5)


def test_what_gguf_cannot_say_is_not_written(tmp_path: Path) -> None:
    read = read_adapter(write_adapter(tmp_path, "dora"))
    with pytest.raises(UnsupportedError, match="cannot say"):
        base_names(read.deltas, base(kind="gguf"), from_gguf=False, to_gguf=True)


def test_modules_of_a_wrapped_decoder_are_found(tmp_path: Path) -> None:
    """As adapters of models with images name them."""
    wrapped = write_peft_of(tmp_path, "model.language_model.layers.0.self_attn.q_proj")
    assert len(place(read_adapter(wrapped), base())) == 1


def test_settings_of_training_alone_say_nothing(tmp_path: Path) -> None:
    about = {
        "lora_dropout": 0.3,
        "bias": "none",
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "elsewhere/x",
    }
    assert len(read_adapter(folder(tmp_path, about)).deltas) == 1
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_dropout"] == 0.3
