"""Reading heads that predict one token more: which tensors, which columns, what is said of those that are not whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pagoda.errors import FormatError, UnsupportedError
from pagoda.formats.quantized import as_floats
from pagoda.models import mimo, qwen35
from pagoda.models.mtp import MtpHead
from pagoda.models.mtp_reader import columns_of, renamed, stated_heads
from pagoda.models.registry import load_head, load_model
from pagoda.types import RawTensor
from tiny_blocks import encode, noise
from tiny_heads import HEADED, with_head
from tiny_models import TINY, MemoryCheckpoint, memory_checkpoint


def head_of(checkpoint: MemoryCheckpoint) -> MtpHead | None:
    return load_head(checkpoint, load_model(checkpoint))


def without(checkpoint: MemoryCheckpoint, end: str) -> MemoryCheckpoint:
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.endswith(end)}
    assert len(tensors) < len(checkpoint.tensors)
    return replace(checkpoint, tensors=tensors)


@pytest.mark.parametrize("type", ["F32", "BF16", "Q8_0", "Q4_K"])
def test_columns_of_a_matrix_keep_its_type_where_blocks_end_there(type: str) -> None:
    values = noise(f"matrix {type}", (6, 1024))
    raw = RawTensor("m", type, (6, 1024), np.frombuffer(encode(values, type, "m").tobytes(), np.uint8))
    whole = as_floats(raw)
    for start, stop in ((0, 512), (512, 1024)):
        part = columns_of(raw, start, stop)
        assert (part.type, part.shape, part.part_of) == (type, (6, 512), "m")
        assert np.array_equal(as_floats(part), whole[:, start:stop])
    cut = columns_of(raw, 16, 80)
    assert cut.type == (type if type in ("F32", "BF16") else "F16")
    assert np.allclose(as_floats(cut), whole[:, 16:80], rtol=1e-3)


@pytest.mark.parametrize("name", HEADED)
def test_either_kind_of_file_has_the_same_head(name: str) -> None:
    head = head_of(memory_checkpoint(with_head(name)))
    assert head is not None
    assert head.embedding.name == "model.embed_tokens.weight"
    assert head.from_token.weight.shape == head.from_hidden.weight.shape == (64, 64)
    assert head.from_token.weight.name.endswith("[:, 64:128]" if name == "mimo" else "[:, 0:64]")
    if name != "mimo":  # of which there are no such files
        other = head_of(memory_checkpoint(with_head(name), kind="gguf"))
        assert other is not None
        for one, two in ((head.from_token, other.from_token), (head.from_hidden, other.from_hidden)):
            assert np.array_equal(as_floats(one.weight), as_floats(two.weight))
        for norm, same in ((head.token_norm, other.token_norm), (head.hidden_norm, other.hidden_norm)):
            assert np.allclose(as_floats(norm.weight), as_floats(same.weight))


def test_an_output_of_its_own_is_the_heads() -> None:
    checkpoint = memory_checkpoint(with_head("glm4moe"))
    start = "model.layers.3."
    table = checkpoint.tensors["lm_head.weight"]
    own = {f"{start}{name}.weight": table for name in ("embed_tokens", "shared_head.head")}
    tensors = {**checkpoint.tensors, **{name: replace(tensor, name=name) for name, tensor in own.items()}}
    head = head_of(replace(checkpoint, tensors=tensors))
    assert head is not None
    assert head.output.name == f"{start}shared_head.head.weight"
    assert head.embedding.name == f"{start}embed_tokens.weight"


def test_a_head_that_is_not_whole_is_said_to_be_so() -> None:
    checkpoint = memory_checkpoint(with_head("glm4moe"))
    with pytest.raises(FormatError, match=r"model.layers.3.enorm.weight' is missing"):
        head_of(without(checkpoint, "enorm.weight"))
    with pytest.raises(UnsupportedError, match="hold none of its tensors"):
        head_of(without(checkpoint, "eh_proj.weight"))
    assert head_of(memory_checkpoint(TINY["glm4moe"])) is None
    assert head_of(memory_checkpoint(TINY["llama"])) is None


def test_without_a_norm_of_its_own_it_takes_the_models() -> None:
    head = head_of(without(memory_checkpoint(with_head("glm4moe"), kind="gguf"), "shared_head_norm.weight"))
    assert head is not None
    assert isinstance(head.norm, type(head.token_norm))
    assert head.norm.weight.name == "output_norm.weight"


def test_names_and_counts_as_publishers_write_them() -> None:
    assert renamed("mtp.fc.weight", qwen35.DENSE, 5) == "model.layers.5.eh_proj.weight"
    assert renamed("mtp.layers.0.mlp.up_proj.weight", qwen35.NEXT, 5) == "model.layers.5.mlp.up_proj.weight"
    assert renamed("model.mtp_layers.0.input_proj.weight", mimo.FAMILY, 2) == "model.layers.2.eh_proj.weight"
    assert renamed("model.norm.weight", mimo.FAMILY, 2) == "model.norm.weight"
    plain = memory_checkpoint(TINY["qwen35"])
    assert stated_heads(plain) == 0
    assert stated_heads(replace(plain, metadata={"text_config": {"mtp_num_hidden_layers": 1}})) == 1
    gguf = memory_checkpoint(with_head("glm4moe"), kind="gguf")
    assert stated_heads(gguf) == 1
