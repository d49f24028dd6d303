"""What a loaded model tells a backend: sizes, KV groups, tied heads, and the ops of its forward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from paged_run import reference_run
from pagoda.backends.base import ForwardModel
from pagoda.backends.specs import KVGroup
from pagoda.errors import UnsupportedError
from pagoda.models.hugging_face import as_hugging_face
from pagoda.models.registry import load_model
from pagoda.quantize.gguf.folder_source import FolderSource
from pagoda.types import RawTensor
from tiny_models import TINY, VOCAB, MemoryCheckpoint, TinyModel, memory_checkpoint, raw, weights


def model_of(spec: TinyModel, kind: str = "safetensors") -> ForwardModel:
    return load_model(memory_checkpoint(spec, kind=kind))


class OpsLog:
    """Ops that write down their names and weights; handles are opaque objects that count as used up once."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.overwritten: set[int] = set()

    def __getattr__(self, op: str) -> Any:
        def record(*args: Any, **options: Any) -> object:
            assert not self.overwritten & {id(a) for a in args}, f"{op} uses what add has written over"
            self.calls.append((op, args, options))
            if op == "add":
                self.overwritten.add(id(args[0]))
            return object()

        return record

    def weights(self, op: str) -> list[str]:
        return [a.name for name, args, _ in self.calls if name == op for a in args if isinstance(a, RawTensor)]


@pytest.mark.parametrize("name", TINY)
def test_forward_states_ops_on_opaque_handles_and_uses_every_tensor(name: str) -> None:
    checkpoint = memory_checkpoint(TINY[name])
    ops = OpsLog()
    load_model(checkpoint).forward(ops)  # type: ignore[arg-type]
    given = [value for _, args, options in ops.calls for value in (*args, *options.values())]
    given += [matrix for value in given if isinstance(value, tuple) for matrix in value]
    used = [value for value in given if isinstance(value, RawTensor)]
    names = {tensor.part_of or tensor.name for tensor in used}
    made = {
        name for name in names if name.startswith(("ones.", "streams.")) or name.endswith((".no_bias", ".weight.bias"))
    }
    joined = {name.split(".norms.")[0] for name in names if name.endswith("+")}  # of a tensor a head
    heads = {name for name in checkpoint.tensors if name.split(".norms.")[0] in joined}
    unused = (".layer_scalar",) if TINY[name].config.get("altup_correct_scale", True) else ("correct_output_scale",)
    numbers = {name for name in checkpoint.tensors if name.endswith(unused)}  # one number, no tensor of the graph
    assert names - made - {f"{name}+" for name in heads} == set(checkpoint.tensors) - numbers - heads
    ends = [op for op, _, _ in ops.calls if op in ("embed", "logits")]
    assert ends[0] == "embed"
    assert ends[-1] == "logits"
    assert ends.count("logits") == 1


def test_sizes() -> None:
    model = model_of(TINY["smollm2"])
    assert (model.vocab_size, model.num_layers, model.num_kv_heads, model.head_dim) == (VOCAB, 2, 3, 64)
    assert model.max_context == 256


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("llama", [((0, 1), None)]),
        ("mistral", [((0, 1), 20)]),
        ("qwen2_windowed", [((0,), None), ((1,), 20)]),
        ("gemma3", [((0, 1, 2, 3, 4, 6), 20), ((5,), None)]),
    ],
)
def test_layers_of_one_window_make_a_kv_group(name: str, groups: list[tuple[tuple[int, ...], int | None]]) -> None:
    assert model_of(TINY[name]).kv_groups == tuple(KVGroup(*group) for group in groups)


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_a_window_as_long_as_the_context_is_none(kind: str) -> None:
    spec = TINY["gemma3"].with_config(sliding_window=256)
    assert model_of(spec, kind).kv_groups == (KVGroup(tuple(range(7)), None),)


def test_gguf_may_list_which_layers_slide() -> None:
    checkpoint = memory_checkpoint(TINY["gemma3"], kind="gguf")
    slides = [True, False, True, True, True, True, False]
    listed = {**checkpoint.metadata, "gemma3.attention.sliding_window_pattern": slides}
    groups = load_model(replace(checkpoint, metadata=listed)).kv_groups
    assert [group.layers for group in groups] == [(0, 2, 3, 4, 5), (1, 6)]


def test_a_mistral_that_does_not_state_its_window_has_the_first_ones() -> None:
    spec = TINY["mistral"].with_config(max_position_embeddings=32768)
    unstated = TinyModel("llama", {key: v for key, v in spec.config.items() if key != "sliding_window"})
    assert model_of(unstated).kv_groups[0].window == 4096
    assert model_of(spec.with_config(sliding_window=None)).kv_groups[0].window is None


def head_of(checkpoint: MemoryCheckpoint) -> str:
    ops = OpsLog()
    load_model(checkpoint).forward(ops)  # type: ignore[arg-type]
    return ops.weights("logits")[0]


def test_heads_are_tied_as_the_setting_says_and_else_by_what_there_is() -> None:
    own, tied = "lm_head.weight", "model.embed_tokens.weight"
    with_head = {name: raw(name, values) for name, values in weights(TINY["llama"]).items()}
    without_head = {name: t for name, t in with_head.items() if name != own}
    base = memory_checkpoint(TINY["llama"])
    for setting, tensors, expected in [
        (False, with_head, own),
        (True, with_head, tied),  # the copy is left alone
        (True, without_head, tied),
        (None, with_head, own),
        (None, without_head, tied),
    ]:
        metadata = {**base.metadata, "tie_word_embeddings": setting}
        assert head_of(replace(base, metadata=metadata, tensors=tensors)) == expected, setting


def test_biases_that_the_file_brings_are_used() -> None:
    checkpoint = memory_checkpoint(TINY["llama"], kind="gguf")
    name = "blk.1.attn_output.bias"
    biased = replace(
        checkpoint, tensors={**checkpoint.tensors, name: raw(name, weights(TINY["llama"])["model.norm.weight"])}
    )
    ops = OpsLog()
    load_model(biased).forward(ops)  # type: ignore[arg-type]
    assert name in ops.weights("linear")


def test_gemma_norms_multiply_by_one_plus_what_a_config_folder_holds() -> None:
    model = model_of(TINY["gemma3"])
    held = weights(TINY["gemma3"])["model.norm.weight"]
    weight = model.output_norm.weight  # type: ignore[attr-defined]
    assert weight.type == "F32"
    assert weight.data.view("<f4").tolist() == pytest.approx((held + 1).tolist())


def test_gemma_27b_scales_attention_by_its_own_width() -> None:
    """GGUF has no key for it: 62 layers are the 27B, whose queries are divided by sqrt(hidden / heads)."""
    small = TINY["gemma3"].with_config(hidden_size=64, num_attention_heads=4, head_dim=32)
    for layers, scale in [(7, 32**-0.5), (62, 16**-0.5)]:
        model = model_of(small.with_config(num_hidden_layers=layers), "gguf")
        assert model.blocks[0].attention.spec.scale == pytest.approx(scale)  # type: ignore[attr-defined]


def fused_experts(kind: str) -> MemoryCheckpoint:
    """Qwen3-MoE with gates and ups of all experts in one stack, as llama.cpp and transformers 5 can write it."""
    whole = memory_checkpoint(TINY["qwen3moe"], kind=kind)
    stacks = memory_checkpoint(TINY["qwen3moe"], kind="gguf").tensors
    tensors = {name: t for name, t in whole.tensors.items() if "_exps" not in name and ".experts." not in name}
    for i in range(2):
        gate, up, down = (stacks[f"blk.{i}.ffn_{part}_exps.weight"] for part in ("gate", "up", "down"))
        both = np.concatenate([t.data.view("<f4").reshape(t.shape) for t in (gate, up)], axis=1)
        ours = (f"blk.{i}.ffn_gate_up_exps.weight", f"blk.{i}.ffn_down_exps.weight")
        theirs = tuple(f"model.layers.{i}.mlp.experts.{part}_proj" for part in ("gate_up", "down"))
        names = ours if kind == "gguf" else theirs
        tensors |= {names[0]: raw(names[0], both), names[1]: replace(down, name=names[1])}
    return replace(whole, tensors=tensors)


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_experts_may_stand_in_one_stack(kind: str) -> None:
    tokens = [3, 1, 4, 1, 5]
    apart, fused = memory_checkpoint(TINY["qwen3moe"], kind=kind), fused_experts(kind)
    found, expected = (reference_run(load_model(c)).step({"a": tokens})["a"] for c in (fused, apart))
    np.testing.assert_array_equal(found, expected)


def test_fused_experts_are_not_converted_but_refused() -> None:
    with pytest.raises(UnsupportedError, match="gates and ups in one"):
        as_hugging_face(fused_experts("gguf"))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="all experts in one: save the model"):
        FolderSource(fused_experts("safetensors"), 1)  # type: ignore[arg-type]


def test_a_gguf_file_may_hold_a_vector_as_one_row() -> None:
    checkpoint = memory_checkpoint(TINY["qwen2moe"], kind="gguf")
    gates = {name: tensor for name, tensor in checkpoint.tensors.items() if "ffn_gate_inp_shexp" in name}
    assert gates
    for name, tensor in gates.items():  # as llama.cpp's converter writes them
        checkpoint.tensors[name] = replace(tensor, shape=(1, *tensor.shape[-1:]))
    runs = [reference_run(load_model(one)) for one in (checkpoint, memory_checkpoint(TINY["qwen2moe"], kind="gguf"))]
    first, second = (run.step({"a": list(range(1, 12))}) for run in runs)
    assert np.array_equal(first["a"], second["a"])
