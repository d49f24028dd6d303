"""The CPU backend against the reference on every tiny family: any mix of chunks, hostile block tables, every KV type.

The native program fuses what the reference takes step by step, so this covers the trace and the compiler as well.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any, get_args

import numpy as np
import pytest

from paged_run import PagedRun, chunk, error, move_blocks, reference_run, run_steps
from pagoda import _native
from pagoda.backends.base import run_batch
from pagoda.backends.cpu import CpuBackend, CpuModel
from pagoda.backends.specs import Activation, KVType
from pagoda.errors import EngineError, UnsupportedError
from pagoda.formats.blocks import BLOCK_TYPES
from pagoda.models.layers import Decoder
from pagoda.models.registry import load_model
from pagoda.types import Batch, FloatArray, RawTensor
from tiny_blocks import encode
from tiny_models import TINY, VOCAB, MemoryCheckpoint, gguf_weights, is_matrix, memory_checkpoint

ISAS = _native.available_isas()
KV_TYPES = [type for type in get_args(KVType) if type != "fp8"]  # of GPUs
BLOCK_QUANTS = [type for type, block in BLOCK_TYPES.items() if block.elements > 1]

# Steps of some sequences' token counts: prompts in chunks of any size beside single tokens. Sequence "a" passes 256
# tokens, where attention starts a second chunk.
STEPS: list[dict[str, int]] = [
    {"a": 37},
    {"a": 1, "b": 5},
    {"c": 64, "a": 30, "b": 1},
    {"b": 1, "a": 1, "c": 1},
    {"a": 170, "d": 3},
    {"a": 16, "b": 17, "c": 1, "d": 1},
    {"d": 1, "a": 3, "c": 9},
]
FEWER = STEPS[:4]
TOTALS = {name: sum(step.get(name, 0) for step in STEPS) for name in "abcd"}


@functools.cache
def backend(isa: str = ISAS[0], threads: int = 2, bits: int = 16) -> CpuBackend:
    return CpuBackend(threads=threads, isa=isa, activation_bits=bits)


def native_run(model: Decoder, *, on: CpuBackend | None = None, kv_type: KVType = "f32", seed: int = 0) -> PagedRun:
    loaded = (on or backend()).load(model, max_batch_tokens=300, max_batch_seqs=300, kv_type=kv_type)
    return PagedRun(model, loaded, seed=seed)


def typed(name: str, type: str) -> MemoryCheckpoint:
    """A tiny model in memory whose matrices are of `type`, vectors float32."""
    tensors = {}
    for tensor, values in gguf_weights(TINY[name]).items():
        chosen = type if is_matrix(tensor, values) else "F32"
        data = np.ascontiguousarray(encode(values, chosen, tensor)).view(np.uint8).reshape(-1)
        tensors[tensor] = RawTensor(tensor, chosen, values.shape, data)
    return replace(memory_checkpoint(TINY[name], kind="gguf"), tensors=tensors)


@functools.cache
def model_of(name: str, type: str = "F32") -> Decoder:
    model = load_model(memory_checkpoint(TINY[name]) if type == "F32" else typed(name, type))
    assert isinstance(model, Decoder)
    return model


@functools.cache
def reference_logits(name: str, type: str = "F32") -> Mapping[str, FloatArray]:
    return run_steps(reference_run(model_of(name, type)), STEPS)


def steps_on(isa: str) -> list[dict[str, int]]:
    """The generic kernels are slow."""
    return FEWER if isa == "generic" else STEPS


def assert_same_bits(got: Mapping[str, FloatArray], expected: Mapping[str, FloatArray]) -> None:
    for name in got:
        np.testing.assert_array_equal(got[name], expected[name][: len(got[name])])


# Numbers


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", TINY)
def test_float_logits_are_those_of_the_reference(name: str, isa: str) -> None:
    got = run_steps(native_run(model_of(name), on=backend(isa)), steps_on(isa))
    for sequence, logits in got.items():
        np.testing.assert_allclose(logits, reference_logits(name)[sequence][: len(logits)], atol=4e-4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type", ["F16", "BF16"])
@pytest.mark.parametrize("name", ["llama_biased", "qwen3", "gemma3"])
def test_sixteen_bit_weights_too(name: str, type: str, isa: str) -> None:
    got = run_steps(native_run(model_of(name, type), on=backend(isa)), steps_on(isa))
    assert error(got, reference_logits(name, type)) < 1e-5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type", BLOCK_QUANTS)
def test_quantized_weights_err_as_int8_activations_must(type: str, isa: str) -> None:
    name = "llama_256" if BLOCK_TYPES[type].elements == 256 else "llama"
    got = run_steps(native_run(model_of(name, type), on=backend(isa)), steps_on(isa))
    assert error(got, reference_logits(name, type)) < 0.02


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type", [type for type in BLOCK_QUANTS if BLOCK_TYPES[type].elements == 32] + ["F16"])
def test_experts_of_any_type(type: str, isa: str) -> None:
    got = run_steps(native_run(model_of("mixtral", type), on=backend(isa)), steps_on(isa))
    assert error(got, reference_logits("mixtral", type)) < 0.02


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type", ["Q4_0", "Q4_1", "Q5_0", "Q6_K", "Q8_0"])
def test_activations_in_bytes(type: str, isa: str) -> None:
    """They err more than those of 16 bits where the instruction set takes them, and keep the batch's invariance."""
    name = "llama_256" if BLOCK_TYPES[type].elements == 256 else "llama"
    on = backend(isa, bits=8)
    together = run_steps(native_run(model_of(name, type), on=on), steps_on(isa))
    assert error(together, reference_logits(name, type)) < 0.05
    if type == "Q4_0":
        wide = run_steps(native_run(model_of(name, type), on=backend(isa)), steps_on(isa))
        assert error(together, reference_logits(name, type)) > 2 * error(wide, reference_logits(name, type))
    alone = run_steps(native_run(model_of(name, type), on=on, seed=1), [{"a": len(together["a"])}])
    assert_same_bits(alone, together)


def test_linears_that_read_one_value_in_bytes_and_in_sixteen_bits() -> None:
    checkpoint, q8 = typed("llama", "Q4_0"), typed("llama", "Q8_0")
    mixed = {name: q8.tensors[name] for name in checkpoint.tensors if "attn_q" in name or "ffn_up" in name}
    model = load_model(replace(checkpoint, tensors={**checkpoint.tensors, **mixed}))
    got = run_steps(native_run(model, on=backend(bits=8)), STEPS)
    assert error(got, run_steps(reference_run(model), STEPS)) < 0.05


@pytest.mark.parametrize(
    "name",
    [
        *("qwen2", "qwen3", "qwen2_windowed", "gemma3", "mistral", "smollm2", "llama3", "glm4", "hunyuan", "cohere2"),
        *("stablelm", "nemotron", "gemma4", "gemma4_dense"),
        *("gemma3n", "cohere_plus", "stablelm_12b", "mistral4", "deepseek2", "qwen3vl"),
    ],
)
def test_quantized_families(name: str) -> None:
    got = run_steps(native_run(model_of(name, "Q8_0")), STEPS)
    assert error(got, reference_logits(name, "Q8_0")) < 0.03


def test_types_may_differ_from_tensor_to_tensor() -> None:
    """Float and block weights that read one value; a float head over a block table."""
    checkpoint, q8 = typed("llama", "F32"), typed("llama", "Q8_0")
    for part in ("attn_q", "attn_v", "ffn_up", "token_embd"):
        mixed = {n: q8.tensors[n] for n in checkpoint.tensors if part in n}
        checkpoint = replace(checkpoint, tensors={**checkpoint.tensors, **mixed})
    model = load_model(checkpoint)
    assert error(run_steps(native_run(model), STEPS), run_steps(reference_run(model), STEPS)) < 0.02


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("kv_type", "least", "most"),
    [("f16", 1e-6, 1e-3), ("bf16", 1e-5, 8e-3), ("int16", 1e-7, 1e-3), ("int8", 1e-5, 0.02)],
)
@pytest.mark.parametrize("name", ["llama", "qwen3_256", "gemma3"])
def test_kv_types_round_and_no_more(name: str, kv_type: KVType, least: float, most: float, isa: str) -> None:
    got = run_steps(native_run(model_of(name), on=backend(isa), kv_type=kv_type), steps_on(isa))
    assert least < error(got, reference_logits(name)) < most


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", get_args(Activation))
def test_activations(activation: Activation, isa: str) -> None:
    model = model_of("llama")
    blocks = tuple(replace(b, ffn=replace(b.ffn, activation=activation)) for b in model.blocks)
    model = replace(model, blocks=blocks)
    got = run_steps(native_run(model, on=backend(isa)), STEPS[:3])
    assert error(got, run_steps(reference_run(model), STEPS[:3])) < 1e-5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type", ["F32", "Q8_0"])
def test_soft_caps_of_scores_and_logits(type: str, isa: str) -> None:
    plain = model_of("llama", type)
    capped_blocks = tuple(
        replace(b, attention=replace(b.attention, spec=replace(b.attention.spec, softcap=0.5))) for b in plain.blocks
    )
    capped = replace(plain, blocks=capped_blocks, logit_softcap=1.5, embedding_scale=3.0)
    expected = run_steps(reference_run(capped), STEPS)
    assert error(reference_logits("llama", type), expected) > 0.1
    got = run_steps(native_run(capped, on=backend(isa)), steps_on(isa))
    assert max(np.abs(rows).max() for rows in got.values()) <= 1.5
    assert error(got, expected) < (1e-5 if type == "F32" else 0.02)


# Bits

NO_BITS = ("qwen3moe_mixed", "gemma3n_deep")  # which GGUF cannot say; whose layers are those of gemma3n, and many


@pytest.mark.parametrize("type", ["F32", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("name", [name for name in TINY if name not in NO_BITS])
def test_bits_do_not_depend_on_the_batch(name: str, type: str) -> None:
    """Each sequence alone, in one piece or token by token at its end, on other blocks: the same bits."""
    together = run_steps(native_run(model_of(name, type)), STEPS)
    for sequence, total in TOTALS.items():
        alone = run_steps(native_run(model_of(name, type), seed=1), [{sequence: total}])
        assert_same_bits(alone, together)
    decoded = [{"b": 8}] + [{"b": 1}] * (TOTALS["b"] - 8)
    assert_same_bits(run_steps(native_run(model_of(name, type), seed=2), decoded), together)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("type", ["BF16", "Q5_1"])
def test_bits_do_not_depend_on_the_batch_with_any_kv_type(type: str, kv_type: KVType, isa: str) -> None:
    model = model_of("qwen2_windowed", type)
    together = run_steps(native_run(model, on=backend(isa), kv_type=kv_type), steps_on(isa))
    alone = run_steps(native_run(model, on=backend(isa), kv_type=kv_type, seed=1), [{"a": len(together["a"])}])
    assert_same_bits(alone, together)


@pytest.mark.parametrize("name", ["qwen3", "smollm2", "mixtral"])
def test_bits_do_not_depend_on_the_number_of_threads(name: str) -> None:
    one = run_steps(native_run(model_of(name, "Q4_0"), on=backend(threads=1)), STEPS)
    three = run_steps(native_run(model_of(name, "Q4_0"), on=backend(threads=3)), STEPS)
    assert_same_bits(three, one)


def test_logits_of_wanted_rows_only_and_in_their_order() -> None:
    model = model_of("llama", "Q8_0")
    expected = native_run(model).step({"a": chunk("a", 0, 40)})["a"]
    loaded = backend().load(model, max_batch_tokens=40, max_batch_seqs=4, kv_type="f32")
    loaded.allocate_kv((3,))
    for rows in ([39], [39, 0, 17], [5, 5], []):
        got = run_batch(loaded, batch(chunk("a", 0, 40), [[0, 1, 2]], rows=rows))
        np.testing.assert_array_equal(got, expected[rows].reshape(-1, VOCAB))


@pytest.mark.parametrize("type", ["F32", "Q8_0"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral"])
def test_hidden_states_of_wanted_rows(name: str, type: str) -> None:
    """They are what the head reads, and no step changes their bits."""
    model = model_of(name, type)
    run, expected = native_run(model), reference_run(model)
    run.step({"a": chunk("a", 0, 40), "b": chunk("b", 0, 3)}, hidden_rows=[39, 0, 42])
    expected.step({"a": chunk("a", 0, 40), "b": chunk("b", 0, 3)}, hidden_rows=[39, 0, 42])
    assert np.sqrt(np.square(run.hidden - expected.hidden).mean() / np.square(expected.hidden).mean()) < 0.02
    alone = native_run(model, seed=1)
    alone.step({"a": chunk("a", 0, 39)})
    alone.step({"a": chunk("a", 39, 1)}, hidden_rows=[0])
    np.testing.assert_array_equal(alone.hidden[0], run.hidden[0])


# KV blocks


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_copied_blocks_continue_as_the_original_does(kv_type: KVType) -> None:
    run = native_run(model_of("qwen2_windowed"), kv_type=kv_type)
    run.step({"a": chunk("a", 0, 25)})
    for group, free in enumerate(run.free):
        own = run.tables["a"][group]
        copies = [free.pop() for _ in own]
        pairs = [(source, copy) for source, copy in zip(own, copies, strict=True) if source >= 0]
        run.loaded.copy_blocks(group, np.array(pairs, np.int32))
        run.tables.setdefault("fork", []).append(copies)
    run.lengths["fork"] = 25
    tail = chunk("a", 25, 6)
    forked = run.step({"fork": chunk("z", 25, 6)})["fork"]  # writes into the copies alone
    original = run.step({"a": tail})["a"]
    straight = native_run(model_of("qwen2_windowed"), kv_type=kv_type).step({"a": chunk("a", 0, 25) + tail})["a"]
    np.testing.assert_array_equal(original, straight[25:])
    other = native_run(model_of("qwen2_windowed"), kv_type=kv_type)
    np.testing.assert_array_equal(forked, other.step({"a": chunk("a", 0, 25) + chunk("z", 25, 6)})["a"][25:])


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_blocks_that_were_moved_continue_as_the_original_does(kv_type: KVType) -> None:
    run, other = (native_run(model_of("qwen2_windowed"), kv_type=kv_type) for _ in range(2))
    run.step({"a": chunk("a", 0, 25)})
    other.step({"b": chunk("b", 0, 20)})  # so that the blocks are not the same ones
    move_blocks(run, other, "a")
    np.testing.assert_array_equal(run.step({"a": chunk("a", 25, 6)})["a"], other.step({"a": chunk("a", 25, 6)})["a"])


def test_moves_outside_of_the_pool_are_refused() -> None:
    model = small_model()
    size = model.block_bytes(0)
    for blocks, shape in (([4], (1, size)), ([-1], (1, size)), ([0], (2, size)), ([0], (1, size - 1))):
        with pytest.raises(ValueError, match="block"):
            model.write_blocks(0, np.array(blocks, np.int32), np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="block"):
        model.read_blocks(0, np.array([4], np.int32))


@pytest.mark.parametrize("pairs", [[(0, 4)], [(4, 0)], [(-1, 0)], [(0, 1), (1, -2)], [(2**31 - 1, 0)]])
def test_copies_outside_of_the_pool_are_refused(pairs: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="block"):
        small_model().copy_blocks(0, np.array(pairs, np.int32))


def test_a_group_that_is_none_is_refused() -> None:
    for group in (-1, 1):
        with pytest.raises((ValueError, IndexError)):
            small_model().copy_blocks(group, np.array([(0, 1)], np.int32))
        with pytest.raises((ValueError, IndexError)):
            small_model().block_bytes(group)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_block_takes_what_its_tokens_need(name: str) -> None:
    """16 tokens of K and V in every layer; scales and alignment add an eighth at most."""
    model = model_of(name)
    for kv_type, size in [("f32", 4), ("f16", 2), ("bf16", 2), ("int16", 2), ("int8", 1)]:
        loaded = backend().load(model, max_batch_tokens=8, max_batch_seqs=1, kv_type=kv_type)
        for g, group in enumerate(model.kv_groups):
            bare = 2 * 16 * model.num_kv_heads * model.head_dim * size * len(group.layers)
            scales = 2 * 16 * model.num_kv_heads * 4 * len(group.layers) if "int" in kv_type else 0
            assert bare + scales <= loaded.block_bytes(g) <= (bare + scales) * 1.125


# Refusals


@functools.cache
def small_model() -> CpuModel:
    """At most 8 tokens and 4 rows of logits a step; 4 blocks."""
    loaded = backend().load(model_of("llama"), max_batch_tokens=8, max_batch_seqs=4, kv_type="f16")
    loaded.allocate_kv((4,))
    return loaded


def ints(values: Any) -> Any:
    return np.array(values, np.int32)


def batch(tokens: list[int], table: list[list[int]], *, start: int = 0, rows: list[int] | None = None) -> Batch:
    """One sequence whose first token stands at `start`."""
    return Batch(
        tokens=ints(tokens),
        positions=np.arange(start, start + len(tokens), dtype=np.int32),
        seq_starts=ints([0, len(tokens)]),
        context_lens=ints([start + len(tokens)]),
        block_tables=(ints(table),),
        logit_rows=ints([len(tokens) - 1] if rows is None else rows),
    )


GOOD = batch([1, 2, 3, 4], [[3, 1]])
TWO = replace(GOOD, seq_starts=ints([0, 3, 4]), positions=ints([0, 1, 2, 9]), block_tables=(ints([[3, 1], [2, 0]]),))
WRONG: dict[str, Batch] = {
    "token beyond the vocabulary": replace(GOOD, tokens=ints([1, 2, VOCAB, 4])),
    "negative token": replace(GOOD, tokens=ints([-1, 2, 3, 4])),
    "no token": batch([], [[0]], rows=[]),
    "too many tokens": batch(list(range(9)), [[0, 1]]),
    "too few positions": replace(GOOD, positions=ints([0, 1, 2])),
    "positions with a gap": replace(GOOD, positions=ints([0, 1, 3, 4])),
    "positions that fall": replace(GOOD, positions=ints([3, 2, 1, 0])),
    "negative positions": replace(GOOD, positions=ints([-2, -1, 0, 1])),
    "positions beyond the table": batch([1, 2], [[0, 1]], start=31),
    "a position near the end of int32": batch([1], [[0, 1]], start=2**31 - 2),
    "block beyond the pool": batch([1], [[4]]),
    "block far beyond the pool": batch([1], [[2**31 - 1]]),
    "negative block": batch([1], [[-2]]),
    "no block for the new token": batch([1], [[0, -1]], start=16),
    "a hole where nothing slides": batch([1], [[-1, 0]], start=16),
    "bad block before the new token": batch([1], [[9, 0]], start=16),
    "no table": replace(GOOD, block_tables=()),
    "a table too many": replace(GOOD, block_tables=GOOD.block_tables * 2),
    "too few rows in the table": replace(TWO, block_tables=GOOD.block_tables),
    "an empty table": replace(GOOD, block_tables=(np.zeros((1, 0), np.int32),)),
    "no sequence": replace(GOOD, seq_starts=ints([0])),
    "no sequence starts": replace(GOOD, seq_starts=ints([])),
    "sequences that do not start at the first token": replace(TWO, seq_starts=ints([1, 3, 4])),
    "sequences that end too soon": replace(GOOD, seq_starts=ints([0, 3])),
    "sequences that end too late": replace(GOOD, seq_starts=ints([0, 5])),
    "a sequence without tokens": replace(TWO, seq_starts=ints([0, 4, 4]), positions=ints([0, 1, 2, 3])),
    "sequences that go back": replace(TWO, seq_starts=ints([0, 6, 4])),
    "negative row": replace(GOOD, logit_rows=ints([-1])),
    "row beyond the tokens": replace(GOOD, logit_rows=ints([4])),
    "too many rows": replace(GOOD, logit_rows=ints([0, 1, 2, 3, 3])),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_step_is_refused_and_the_next_one_runs(what: str) -> None:
    before = run_batch(small_model(), GOOD).copy()
    with pytest.raises(ValueError, match=r"\w \w"):
        run_batch(small_model(), WRONG[what])
    np.testing.assert_array_equal(run_batch(small_model(), GOOD), before)
    assert np.isfinite(run_batch(small_model(), TWO)).all()


def test_a_hole_in_the_table_is_refused_where_the_window_reaches() -> None:
    loaded = backend().load(model_of("mistral"), max_batch_tokens=8, max_batch_seqs=4, kv_type="f16")
    loaded.allocate_kv((4,))
    run_batch(loaded, batch([1], [[-1, 1, 2, 3]], start=48))  # a window of 20 keys begins in block 1
    with pytest.raises(ValueError, match="a block that attention reads is missing"):
        run_batch(loaded, batch([1], [[0, -1, 2, 3]], start=48))


def test_a_step_before_there_is_kv_is_refused() -> None:
    loaded = backend().load(model_of("llama"), max_batch_tokens=8, max_batch_seqs=4, kv_type="f16")
    with pytest.raises(ValueError, match="KV group"):
        run_batch(loaded, GOOD)
    with pytest.raises(ValueError, match="KV group"):
        loaded.allocate_kv((4, 4))


def test_a_type_without_kernels_is_refused_by_the_tensors_name() -> None:
    for name in ("blk.1.ffn_up.weight", "token_embd.weight", "blk.0.attn_norm.weight"):
        checkpoint = memory_checkpoint(TINY["llama"], kind="gguf")
        odd = replace(checkpoint.tensors[name], type="Q4_2")
        model = load_model(replace(checkpoint, tensors={**checkpoint.tensors, name: odd}))
        with pytest.raises(UnsupportedError, match=rf"'{name}' has type 'Q4_2'.*Q4_K"):
            backend().load(model, max_batch_tokens=8, max_batch_seqs=4, kv_type="f16")


def test_rows_that_are_no_whole_blocks_are_refused_by_the_tensors_name() -> None:
    checkpoint = memory_checkpoint(TINY["llama"], kind="gguf")
    name = "blk.1.ffn_down.weight"
    odd = replace(checkpoint.tensors[name], type="Q6_K")
    model = load_model(replace(checkpoint, tensors={**checkpoint.tensors, name: odd}))
    with pytest.raises(UnsupportedError, match=rf"'{name}' has 96 columns, which Q6_K .* 256"):
        backend().load(model, max_batch_tokens=8, max_batch_seqs=4, kv_type="f16")


# The end


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def freed_by_closing() -> tuple[int, int]:
    """→ bytes of weights and KV that a model held, and how many fewer are resident when it is closed"""
    loaded = backend().load(model_of("smollm2"), max_batch_tokens=2048, max_batch_seqs=512, kv_type="f32")
    loaded.allocate_kv((2000,))
    for block in range(2000):  # touch them
        loaded.copy_blocks(0, ints([(1 + block % 1999, block)]))
    assert np.isfinite(run_batch(loaded, GOOD)).all()
    held = loaded.weight_bytes + 2000 * loaded.block_bytes(0)
    before = resident_bytes()
    loaded.close()
    freed = before - resident_bytes()
    loaded.close()  # again: nothing happens
    return held, freed


def test_closing_frees_weights_buffers_and_kv() -> None:
    """In a process of its own: small weights lie beside those of other models, and go when all of them have."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        held, freed = process.submit(freed_by_closing).result()
    assert freed > 0.9 * held > 50e6


def test_a_closed_model_says_so() -> None:
    loaded = backend().load(model_of("llama"), max_batch_tokens=8, max_batch_seqs=4, kv_type="f16")
    loaded.allocate_kv((4,))
    kept = run_batch(loaded, GOOD)
    loaded.close()
    assert np.isfinite(kept).all()  # whoever holds logits may still read them
    for call in (
        lambda: run_batch(loaded, GOOD),
        lambda: loaded.copy_blocks(0, ints([(0, 1)])),
        lambda: loaded.allocate_kv((4,)),
        lambda: loaded.block_bytes(0),
    ):
        with pytest.raises(EngineError, match="closed"):
            call()
