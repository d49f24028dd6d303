"""From ops to stages: what is fused, which buffers values live in, and what is refused.

Whether the stages compute what the ops say is tried on random graphs, by running them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from op_graphs import (
    ALL_STEPS,
    ENCODER_STEPS,
    SPEC,
    TRICKY,
    VOCAB,
    Bent,
    Graph,
    Step,
    assert_encodes,
    assert_runs_as_stated,
    encoded,
    k_of,
    plain,
    q_of,
    step,
    weight,
)
from paged_run import PagedRun
from pagoda import _native
from pagoda.backends import packed_weights
from pagoda.backends.base import Handle, Ops
from pagoda.backends.compile import Compiler, StageKind, fusions
from pagoda.backends.cpu import CpuBackend
from pagoda.backends.lowering import lower
from pagoda.backends.packed_weights import PackedWeights
from pagoda.backends.trace import Trace
from pagoda.errors import UnsupportedError
from pagoda.models.registry import load_model
from tiny_models import TINY, memory_checkpoint

# Stages, as a program that only takes notes gets them


@dataclass(frozen=True)
class Part:
    """Stands for `_native.LinearPart`, which cannot be read."""

    weights: Any
    out: int
    bias: Any = None
    accumulate: bool = False
    scale: float = 1.0
    site: int | None = None


class Notes:
    """A `_native.Program` that writes down its stages."""

    def __init__(self) -> None:
        self.stages: list[tuple[StageKind, dict[str, Any]]] = []
        self.buffers: list[int] = []
        self.quantized: list[int] = []
        self.ropes = 0
        self.sites: list[tuple[int, int]] = []

    def add_lora_site(self, rows: int, columns: int) -> int:
        self.sites.append((rows, columns))
        return len(self.sites) - 1

    def add_buffer(self, columns: int, rows: int = 1) -> int:
        self.buffers.append(columns * rows)
        return len(self.buffers) - 1

    def add_quantized(self, columns: int, rows: int = 1) -> int:
        self.quantized.append(columns * rows)
        return len(self.quantized) - 1

    def add_rope(self, inv_freq: Any, scale: float, neox: bool) -> int:
        self.ropes += 1
        return self.ropes - 1

    def add(self, kind: StageKind, **fields: Any) -> None:
        self.stages.append((kind, fields))

    @property
    def kinds(self) -> list[str]:
        """Without the stages of adapters, which stand before linears."""
        return [kind.value for kind, _ in self.stages if not kind.value.startswith("lora")]

    def fields(self, kind: StageKind) -> list[dict[str, Any]]:
        return [fields for stage, fields in self.stages if stage == kind]

    def parts(self) -> list[list[Part]]:
        """Of each linear stage."""
        return [fields["parts"] for fields in self.fields(StageKind.LINEAR)]


@pytest.fixture
def notes_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Notes]:
    monkeypatch.setattr(_native, "LinearPart", Part)
    runtime = _native.Runtime(1)

    def compile(forward: Callable[[Any], Any]) -> Notes:
        trace, notes, weights = Trace(), Notes(), PackedWeights(runtime)
        forward(trace)
        Compiler(notes, weights, lower(trace.nodes, fusions(weights)), dict.fromkeys(range(9), 0)).compile()  # type: ignore[arg-type]
        return notes

    return compile


def tiny(name: str, type: str = "F32", **config: Any) -> Any:
    """Forward pass of a tiny model whose matrices claim to be of `type`."""
    checkpoint = memory_checkpoint(TINY[name].with_config(**config))
    tensors = {
        tensor: replace(raw, type=type, data=encoded(raw.data.view("<f4").reshape(raw.shape), type))
        if len(raw.shape) == 2
        else raw
        for tensor, raw in checkpoint.tensors.items()
    }
    return load_model(replace(checkpoint, tensors=tensors)).forward


def test_stages_of_a_quantized_layer(notes_of: Callable[..., Notes]) -> None:
    """Norms and activations happen while quantizing; sums happen in the products."""
    notes = notes_of(tiny("llama", "Q8_0"))
    attention = ["rowwise", "linear", "rope_and_store_kv", "attend", "rowwise", "linear"]
    feed_forward = ["rowwise", "linear", "rowwise", "linear"]
    assert notes.kinds == ["embed", *2 * (attention + feed_forward), "rowwise", "linear", "rowwise"]
    *quantizing, states = notes.fields(StageKind.ROWWISE)
    assert all(fields["quantized"] >= 0 and "out" not in fields for fields in quantizing)
    assert states["rows"] == "hidden"
    assert [len(parts) for parts in notes.parts()] == [3, 1, 2, 1, 3, 1, 2, 1, 1]
    assert [parts[0].accumulate for parts in notes.parts()] == [False, True] * 4 + [False]
    assert [fields["rows"] for fields in quantizing] == ["tokens"] * 8 + ["logits"]


def test_stages_of_a_float_layer(notes_of: Callable[..., Notes]) -> None:
    """Nothing is quantized; the wanted rows are gathered apart."""
    notes = notes_of(tiny("llama"))
    attention = ["rowwise", "linear", "rope_and_store_kv", "attend", "linear"]
    feed_forward = ["rowwise", "linear", "rowwise", "linear"]
    assert notes.kinds == ["embed", *2 * (attention + feed_forward), "rowwise", "rowwise", "linear", "rowwise"]
    assert notes.quantized == []
    rows = [fields.get("rows", "tokens") for fields in notes.fields(StageKind.ROWWISE)]
    assert rows == ["tokens"] * 7 + ["logits", "hidden"]


def test_each_linear_of_a_layer_takes_an_adapter(notes_of: Callable[..., Notes]) -> None:
    """What its stage reads is kept as floats where a norm or an activation is quantized on the way."""
    notes = notes_of(tiny("llama", "Q8_0"))
    shrinks = notes.fields(StageKind.LORA_SHRINK)
    *linears, head = notes.parts()
    assert [list(fields["sites"]) for fields in shrinks] == [[part.site for part in parts] for parts in linears]
    assert [list(fields["residuals"]) for fields in shrinks] == [
        [part.out if part.accumulate else -1 for part in parts] for parts in linears
    ]
    assert [part.site for part in head] == [None]
    assert len(notes.sites) == sum(len(fields["sites"]) for fields in shrinks) == 14
    kept = [fields["kept"] for fields in notes.fields(StageKind.ROWWISE) if "kept" in fields]
    assert [to is not None for to in kept] == [True, False, True, True] * 2 + [False]
    kinds = [kind.value for kind, _ in notes.stages]
    for place, kind in enumerate(kinds):
        if kind == "lora_shrink":
            assert kinds[place + 1] == "linear"


@pytest.mark.parametrize("type", ["F32", "Q8_0"])
def test_products_write_to_nothing_that_adapters_read_meanwhile(type: str, notes_of: Callable[..., Notes]) -> None:
    """Nobody waits between what adapters make of a linear's input, and its products."""
    notes = notes_of(tiny("gemma3", type))
    for fields, parts in zip(notes.fields(StageKind.LORA_SHRINK), notes.parts(), strict=False):
        assert fields["x"] not in {part.out for part in parts}


def test_norms_after_attention_add_into_the_residual(notes_of: Callable[..., Notes]) -> None:
    notes = notes_of(tiny("gemma3", "Q8_0"))
    adding = [fields for fields in notes.fields(StageKind.ROWWISE) if fields.get("accumulate")]
    assert len(adding) == 2 * 7
    assert {fields["out"] for fields in adding} == {notes.stages[0][1]["out"]}  # where the embedding went
    assert not any(part.accumulate for parts in notes.parts() for part in parts)


@pytest.mark.parametrize("type", ["F32", "Q8_0"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_more_layers_take_no_more_buffers(name: str, type: str, notes_of: Callable[..., Notes]) -> None:
    few, many = (notes_of(tiny(name, type, num_hidden_layers=n)) for n in (2, 9))
    assert Counter(few.buffers) == Counter(many.buffers)
    assert few.quantized == many.quantized
    assert len(set(many.quantized)) == len(many.quantized)  # one of each width


def test_ropes_are_shared_between_layers(notes_of: Callable[..., Notes]) -> None:
    assert notes_of(tiny("llama")).ropes == 1
    assert notes_of(tiny("gemma3")).ropes == 2  # of windows, and of the whole context


def test_a_weight_used_twice_is_packed_once() -> None:
    weights = PackedWeights(_native.Runtime(1))
    tensor = weight("w", 16, 32, "Q8_0")
    packed = weights[tensor]
    assert weights[replace(tensor)] is packed
    assert weights.num_bytes == packed.bytes


@pytest.mark.parametrize("together", [1, 3000, 1 << 20])
def test_experts_that_are_packed_together_are_those_packed_alone(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_weights, "TOGETHER", together)
    runtime = _native.Runtime(2)
    weights, x = PackedWeights(runtime), np.linspace(-1, 1, 3 * 64, dtype=np.float32).reshape(3, 64)
    tensors = [weight(f"w{i}", 37, 64, "Q4_0") for i in range(5)]
    known = weights[tensors[2]]
    packed = weights.all([*tensors, tensors[0]])
    assert packed[2] is known
    assert packed[5] is packed[0]
    for tensor, together_ in zip(tensors, packed, strict=False):
        products = [np.empty((3, 37), np.float32) for _ in range(2)]
        runtime.matmul(together_, x, products[0])
        runtime.matmul(PackedWeights(runtime)[tensor], x, products[1])
        np.testing.assert_array_equal(*products)
    assert weights.all([weight("v", 5, 32, "Q8_0"), tensors[1]])[1] is packed[1]  # of two shapes
    assert weights.all([]) == []


def test_no_stage_writes_what_a_later_stage_still_reads(notes_of: Callable[..., Notes]) -> None:
    """Every read of a float buffer finds what was written for it: of each buffer, reads follow a write."""
    notes = notes_of(tiny("gemma3", "Q8_0"))
    written: set[int] = set()
    for kind, fields in notes.stages:
        if kind == StageKind.LINEAR:
            assert {part.out for part in fields["parts"] if part.accumulate} <= written
            written |= {part.out for part in fields["parts"]}
        elif kind == StageKind.ROWWISE:
            assert {fields["x"], fields.get("gate", fields["x"])} <= written
            written |= {fields[to] for to in ("out", "kept") if fields.get(to) is not None}
        elif kind == StageKind.LORA_SHRINK:
            assert fields["x"] in written
        elif kind == StageKind.ROPE_AND_STORE_KV:
            inputs = {fields["q"], fields["k"], fields["v"]}
            assert inputs <= written
            assert len(inputs) == 3
        elif kind == StageKind.ATTEND:
            assert fields["q"] in written
            assert fields["out"] != fields["q"]
            written.add(fields["out"])
        else:
            written.add(fields["out"])


# Any graph computes what its ops say

BACKEND = CpuBackend(threads=2)


@settings(max_examples=100, deadline=None)
@given(ALL_STEPS)
def test_any_graph_computes_what_its_ops_say(steps: list[Step]) -> None:
    assert_runs_as_stated(Graph(steps), BACKEND)


@settings(max_examples=100, deadline=None)
@given(ENCODER_STEPS)
def test_any_graph_of_an_encoders_ops_computes_what_they_say(steps: list[Step]) -> None:
    assert_runs_as_stated(Graph(steps), BACKEND)


@pytest.mark.parametrize("what", TRICKY)
@pytest.mark.parametrize("tail", ["norm", "linear"])
@pytest.mark.parametrize("last", [0, 1, 2, 3])
def test_tricky_graphs(what: str, last: int, tail: str) -> None:
    """The output head reads the same value as the last step."""
    assert_runs_as_stated(Graph([*TRICKY[what], step(tail, last)]), BACKEND)


@pytest.mark.parametrize("what", TRICKY)
def test_parts_of_one_stage_write_to_buffers_of_their_own(what: str, notes_of: Callable[..., Notes]) -> None:
    """Threads compute them side by side."""
    for parts in notes_of(Graph([*TRICKY[what], step("norm", 0)]).forward).parts():
        assert len({part.out for part in parts}) == len(parts)


def test_a_model_may_end_in_hidden_states_alone() -> None:
    assert_encodes(BACKEND)


def test_hidden_states_lie_in_a_buffer_that_is_free_by_then(notes_of: Callable[..., Notes]) -> None:
    """And the norm before the head is computed for wanted rows alone."""
    notes = notes_of(tiny("llama", "Q8_0"))
    norm, states = (fields for fields in notes.fields(StageKind.ROWWISE)[-2:])
    assert (norm["rows"], states["rows"]) == ("logits", "hidden")
    earlier = {part.out for parts in notes.parts() for part in parts}
    assert states["out"] in earlier | {fields.get("kept") for fields in notes.fields(StageKind.ROWWISE)}


def test_a_stage_without_rows_does_not_run() -> None:
    model = load_model(memory_checkpoint(TINY["llama"]))
    loaded = BACKEND.load(model, max_batch_tokens=8, max_batch_seqs=8, kv_type="f32")
    run, profiles = PagedRun(model, loaded), []
    for rows in ([], [0]):
        loaded.program.profiling = True
        run.step({"a": [1, 2]}, hidden_rows=rows)
        profiles.append(len(loaded.program.take_profile()))
    assert profiles[1] == profiles[0] + 1


def test_keys_used_as_values_are_fine_where_nothing_turns_them() -> None:
    def bend(ops: Ops, x: Handle) -> tuple[Handle, Handle, Handle]:
        k = k_of(ops, x)
        return q_of(ops, x), k, k

    assert_runs_as_stated(Bent(bend), BACKEND)


def test_scores_that_are_no_numbers_stay_in_their_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token 0 of the table is nan, and with it the scores of all experts. The head reads what they make."""
    graph = Graph([step("experts", 0, type="F32"), step("attention", 1)])
    table = weight("table", VOCAB, 64)
    table.data[:4] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
    monkeypatch.setattr("op_graphs.weight", lambda name, *rest: table if name == "table" else weight(name, *rest))
    run = PagedRun(graph, BACKEND.load(graph, max_batch_tokens=8, max_batch_seqs=8, kv_type="f32"))
    logits = run.step({"a": [3, 0, 5], "b": [7]})
    assert np.isnan(logits["a"]).any(1).tolist() == [False, True, False]
    assert not np.isnan(logits["b"]).any()


# Refusals


def test_heads_that_kernels_do_not_take_are_refused() -> None:
    spec = replace(SPEC, num_heads=1, head_dim=1024)
    with pytest.raises(UnsupportedError, match=r"cannot run this model: .*too large a head"):
        BACKEND.load(Bent(plain, spec), max_batch_tokens=8, max_batch_seqs=8, kv_type="f32")


@pytest.mark.parametrize(
    ("kind", "fields", "match"),
    [
        ("rowwise", {}, "rowwise needs x"),
        ("rowwise", {"x": 0, "outt": 1}, "rowwise has no fields but x, gate, activation"),
        ("rowwise", {"x": "first"}, "rowwise takes no such x"),
        ("linear", {"parts": [1]}, "linear takes no such parts"),
    ],
)
def test_fields_that_a_stage_does_not_have_are_refused(kind: str, fields: dict[str, Any], match: str) -> None:
    with pytest.raises(TypeError, match=match):
        _native.Runtime(1).program(1, 1, "f32").add(kind, **fields)


def test_a_stage_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no such stage: twist"):
        _native.Runtime(1).program(1, 1, "f32").add("twist", x=0)


def test_every_kind_of_stage_is_one_of_the_program() -> None:
    for kind in StageKind:
        with pytest.raises(TypeError, match=f"{kind.value} needs"):
            _native.Runtime(1).program(1, 1, "f32").add(kind)
