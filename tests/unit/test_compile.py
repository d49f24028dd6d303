"""From ops to stages: what is fused, which buffers values live in, and what is refused.

Whether the stages compute what the ops say is tried on random graphs, by running them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_run import PagedRun, reference_run
from pagoda import _native
from pagoda.backends.base import AttentionSpec, Handle, KVGroup, Ops, RopeSpec
from pagoda.backends.compile import Compiler, Weights, kv_layers
from pagoda.backends.cpu import CpuBackend
from pagoda.backends.trace import Attention, Trace
from pagoda.errors import UnsupportedError
from pagoda.models.registry import load_model
from pagoda.types import RawTensor
from tiny_blocks import encode, noise
from tiny_models import TINY, memory_checkpoint

# Stages, as a program that only takes notes gets them


@dataclass(frozen=True)
class Part:
    """Stands for `_native.LinearPart`, which cannot be read."""

    weight: Any
    out: int
    bias: Any
    accumulate: bool = False
    scale: float = 1.0


class Notes:
    """A `_native.Program` that writes down its stages."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.buffers: list[int] = []
        self.quantized: list[int] = []
        self.ropes = 0

    def add_buffer(self, columns: int) -> int:
        self.buffers.append(columns)
        return len(self.buffers) - 1

    def add_quantized(self, columns: int) -> int:
        self.quantized.append(columns)
        return len(self.quantized) - 1

    def add_rope(self, inv_freq: Any, scale: float, neox: bool) -> int:
        self.ropes += 1
        return self.ropes - 1

    def __getattr__(self, name: str) -> Callable[..., None]:
        assert name in ("embed", "rows", "linear", "prepare", "attend"), name
        return lambda *args, **options: self.stages.append((name, args, options))

    @property
    def kinds(self) -> list[str]:
        return [name for name, _, _ in self.stages]

    def options(self, name: str) -> list[dict[str, Any]]:
        return [options for stage, _, options in self.stages if stage == name]

    def parts(self) -> list[list[Part]]:
        """Of each linear stage."""
        return [args[2] for stage, args, _ in self.stages if stage == "linear"]


@pytest.fixture
def notes_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Notes]:
    monkeypatch.setattr(_native, "LinearPart", Part)
    runtime = _native.Runtime(1)

    def compile(forward: Callable[[Any], Any], weights: Weights | None = None) -> Notes:
        trace, notes = Trace(), Notes()
        forward(trace)
        Compiler(notes, weights or Weights(runtime), trace).compile()  # type: ignore[arg-type]
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


def encoded(values: Any, type: str) -> np.ndarray:
    return np.ascontiguousarray(encode(values, type)).view(np.uint8).reshape(-1)


def test_stages_of_a_quantized_layer(notes_of: Callable[..., Notes]) -> None:
    """Norms and activations happen while quantizing; sums happen in the products."""
    notes = notes_of(tiny("llama", "Q8_0"))
    attention = ["rows", "linear", "prepare", "attend", "rows", "linear"]
    feed_forward = ["rows", "linear", "rows", "linear"]
    assert notes.kinds == ["embed", *2 * (attention + feed_forward), "rows", "linear"]
    assert all(options["quantized"] >= 0 and "out" not in options for options in notes.options("rows"))
    assert [len(parts) for parts in notes.parts()] == [3, 1, 2, 1, 3, 1, 2, 1, 1]
    assert [parts[0].accumulate for parts in notes.parts()] == [False, True] * 4 + [False]
    assert [options.get("gather") for options in notes.options("rows")] == [False] * 8 + [True]


def test_stages_of_a_float_layer(notes_of: Callable[..., Notes]) -> None:
    """Nothing is quantized; the wanted rows are gathered apart."""
    notes = notes_of(tiny("llama"))
    attention = ["rows", "linear", "prepare", "attend", "linear"]
    feed_forward = ["rows", "linear", "rows", "linear"]
    assert notes.kinds == ["embed", *2 * (attention + feed_forward), "rows", "rows", "linear"]
    assert notes.quantized == []
    assert [options.get("gather", False) for options in notes.options("rows")] == [False] * 7 + [True]


def test_norms_after_attention_add_into_the_residual(notes_of: Callable[..., Notes]) -> None:
    notes = notes_of(tiny("gemma3", "Q8_0"))
    adding = [options for options in notes.options("rows") if options.get("accumulate")]
    assert len(adding) == 2 * 7
    assert {options["out"] for options in adding} == {notes.stages[0][1][0]}  # where the embedding went
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
    weights = Weights(_native.Runtime(1))
    tensor = weight("w", 16, 32, "Q8_0")
    packed = weights[tensor]
    assert weights[replace(tensor)] is packed
    assert weights.num_bytes == packed.bytes


def test_no_stage_writes_what_a_later_stage_still_reads(notes_of: Callable[..., Notes]) -> None:
    """Every read of a float buffer finds what was written for it: of each buffer, reads follow a write."""
    notes = notes_of(tiny("gemma3", "Q8_0"))
    written: set[int] = set()
    for name, args, options in notes.stages:
        if name == "linear":
            assert {part.out for part in args[2] if part.accumulate} <= written
            written |= {part.out for part in args[2]}
        elif name == "rows":
            assert {args[0], options.get("gate", args[0])} <= written
            written |= {options["out"]} if "out" in options else set()
        elif name == "prepare":
            assert set(args[:3]) <= written
            assert len(set(args[:3])) == 3
        elif name == "attend":
            assert args[0] in written
            assert args[1] != args[0]
            written.add(args[1])
        else:
            written.add(args[0])


# Graphs. A step of a graph is an op on some of the values that live: `pick` chooses them, modulo their number.

WIDTHS = (32, 64)
HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2, 1, 32, 40
SPEC = AttentionSpec(HEADS, KV_HEADS, HEAD_DIM, HEAD_DIM**-0.5)
ROPE = RopeSpec("neox", (0.1 ** np.arange(HEAD_DIM // 2)).astype(np.float32))


def weight(name: str, rows: int, columns: int, type: str = "F32") -> RawTensor:
    values = noise(name, (rows, columns), columns**-0.5)
    return RawTensor(name, type, (rows, columns), encoded(values, type))


def vector(name: str, size: int) -> RawTensor:
    return RawTensor(name, "F32", (size,), encoded(1 + noise(name, (size,), 0.3), "F32"))


@dataclass(frozen=True)
class Step:
    op: str
    pick: tuple[int, int, int]
    type: str
    flag: bool


@dataclass
class Graph:
    """A `ForwardModel` made of steps; `attention` steps are its layers."""

    steps: Sequence[Step]
    vocab_size: int = VOCAB
    num_kv_heads: int = KV_HEADS
    head_dim: int = HEAD_DIM
    max_context: int = 64
    live: list[tuple[Handle, int]] = field(default_factory=list, repr=False)  # values and their widths

    @property
    def num_layers(self) -> int:
        return sum(step.op == "attention" for step in self.steps)

    @property
    def kv_groups(self) -> tuple[KVGroup, ...]:
        return (KVGroup(tuple(range(self.num_layers)), None),)

    def forward(self, ops: Ops) -> Handle:
        self.live = [(ops.embed(weight("table", VOCAB, 64)), 64)]
        layer = 0
        for i, step in enumerate(self.steps):
            if step.op == "attention":
                self._attention(ops, f"{i}", step, layer)
                layer += 1
            else:
                getattr(self, f"_{step.op}")(ops, f"{i}", step)
        last = self.steps[-1]
        x, width = self._pick(last.pick[0])
        return ops.logits(x, weight("head", VOCAB, width, last.type))

    def _pick(self, n: int, width: int | None = None) -> tuple[Handle, int]:
        fitting = [value for value in self.live if width in (None, value[1])]
        return fitting[n % len(fitting)]

    def _norm(self, ops: Ops, name: str, step: Step) -> None:
        x, width = self._pick(step.pick[0])
        self.live.append((ops.rms_norm(x, vector(name, width), 1e-5), width))

    def _linear(self, ops: Ops, name: str, step: Step) -> None:
        self.live.append(self._project(ops, name, step, step.pick[0], WIDTHS[step.pick[1] % 2]))

    def _project(self, ops: Ops, name: str, step: Step, pick: int, out: int) -> tuple[Handle, int]:
        x, width = self._pick(pick)
        return ops.linear(x, weight(name, out, width, step.type), vector(f"{name}b", out) if step.flag else None), out

    def _gated(self, ops: Ops, name: str, step: Step) -> None:
        gate, width = self._pick(step.pick[0])
        up, _ = self._pick(step.pick[1], width)
        self.live.append((ops.gated(gate, up, "silu"), width))

    def _add(self, ops: Ops, name: str, step: Step) -> None:
        x, width = self._pick(step.pick[0])
        y, _ = self._pick(step.pick[1], width)
        self.live = [value for value in self.live if value[0] is not x]  # it may be written over
        self.live.append((ops.add(x, y), width))

    def _attention(self, ops: Ops, name: str, step: Step, layer: int) -> None:
        q, _ = self._project(ops, f"{name}q", step, step.pick[0], HEADS * HEAD_DIM)
        k, _ = self._project(ops, f"{name}k", step, step.pick[1], KV_HEADS * HEAD_DIM)
        v, _ = self._project(ops, f"{name}v", step, step.pick[2], KV_HEADS * HEAD_DIM)
        if step.flag:
            q = ops.head_norm(q, vector(f"{name}qn", HEAD_DIM), 1e-5, HEADS)
            k = ops.head_norm(k, vector(f"{name}kn", HEAD_DIM), 1e-5, KV_HEADS)
        q, k = ops.rope(q, HEADS, ROPE), ops.rope(k, KV_HEADS, ROPE)
        self.live.append((ops.attention(layer, q, k, v, SPEC), HEADS * HEAD_DIM))


def steps_of(*ops: str) -> st.SearchStrategy[Step]:
    pick = st.integers(0, 7)
    return st.builds(
        Step, st.sampled_from(ops), st.tuples(pick, pick, pick), st.sampled_from(["F32", "Q8_0"]), st.booleans()
    )


OTHERS = st.lists(steps_of("norm", "linear", "linear", "gated", "add", "add"), max_size=8)


def joined(first: list[Step], attention: Step, second: list[Step], another: Step, third: list[Step]) -> list[Step]:
    return [*first, attention, *second, another, *third]


ALL_STEPS = st.builds(joined, OTHERS, steps_of("attention"), OTHERS, steps_of("attention", "norm"), OTHERS)
BACKEND = CpuBackend(threads=2)


def run(graph: Graph, run: PagedRun) -> np.ndarray:
    first = run.step({"a": [3, 1, 4, 1, 5]})["a"]
    second = run.step({"b": [9, 2, 6], "a": [5, 35]})
    return np.concatenate([first, second["a"], second["b"]])


def assert_runs_as_stated(graph: Graph) -> None:
    loaded = BACKEND.load(graph, max_batch_tokens=8, max_batch_seqs=8, kv_type="f32")
    got, expected = run(graph, PagedRun(graph, loaded)), run(graph, reference_run(graph))
    loaded.close()
    quantized = any(step.type == "Q8_0" for step in graph.steps)
    error = np.sqrt(np.square(got - expected).mean() / np.square(expected).mean())
    assert error < (0.1 if quantized else 1e-4), graph.steps


@settings(max_examples=100, deadline=None)
@given(ALL_STEPS)
def test_any_graph_computes_what_its_ops_say(steps: list[Step]) -> None:
    assert_runs_as_stated(Graph(steps))


def step(op: str, *pick: int, type: str = "Q8_0", flag: bool = False) -> Step:
    return Step(op, (*pick, *[0] * (3 - len(pick))), type, flag)  # type: ignore[arg-type]


ATTENTION = step("attention")
TWO_PRODUCTS = [step("norm", 0), step("linear", 1, 1), step("linear", 1, 1)]
TRICKY: dict[str, list[Step]] = {
    "a norm whose input is written over before it is read": [
        step("norm", 0),
        step("linear", 0, 1),
        step("add", 0, 2),
        step("linear", 0, 1),
        ATTENTION,
    ],
    "an activation whose gate is written over before it is read": [
        step("linear", 0, 1),
        step("gated", 1, 1),
        step("add", 1, 0),
        step("linear", 1, 1),
        step("add", 2, 3),
        ATTENTION,
    ],
    "two products of one value that are both added to one sum": [
        *TWO_PRODUCTS,
        step("add", 0, 2),
        step("add", 3, 2),
        ATTENTION,
    ],
    "a product added to another of the same value": [*TWO_PRODUCTS, step("add", 2, 3), ATTENTION],
    "a norm that a linear and the output head read": [
        ATTENTION,
        step("norm", 0),
        step("linear", 2, 0),
        step("linear", 2, 1),
    ],
    "a value added to itself": [step("linear", 0, 1), step("add", 1, 1), ATTENTION],
    "a value that float and block weights read": [
        step("norm", 0),
        step("linear", 1, 1, type="F32"),
        step("linear", 1, 1),
        step("add", 2, 3),
        ATTENTION,
    ],
}


@pytest.mark.parametrize("what", TRICKY)
@pytest.mark.parametrize("tail", ["norm", "linear"])
@pytest.mark.parametrize("last", [0, 1, 2, 3])
def test_tricky_graphs(what: str, last: int, tail: str) -> None:
    """The output head reads the same value as the last step."""
    assert_runs_as_stated(Graph([*TRICKY[what], step(tail, last)]))


@pytest.mark.parametrize("what", TRICKY)
def test_parts_of_one_stage_write_to_buffers_of_their_own(what: str, notes_of: Callable[..., Notes]) -> None:
    """Threads compute them side by side."""
    for parts in notes_of(Graph([*TRICKY[what], step("norm", 0)]).forward).parts():
        assert len({part.out for part in parts}) == len(parts)


# Refusals


class Bent(Graph):
    """A graph of one attention whose parts a test bends."""

    def __init__(
        self, bend: Callable[[Ops, Handle], tuple[Handle, Handle, Handle]], spec: AttentionSpec = SPEC
    ) -> None:
        super().__init__([ATTENTION])
        self.bend, self.spec = bend, spec

    def forward(self, ops: Ops) -> Handle:
        x = ops.embed(weight("table", VOCAB, 64))
        return ops.logits(ops.attention(0, *self.bend(ops, x), self.spec), weight("head", VOCAB, 64))


def q_of(ops: Ops, x: Handle) -> Handle:
    return ops.linear(x, weight("q", 64, 64))


def k_of(ops: Ops, x: Handle) -> Handle:
    return ops.linear(x, weight("k", 32, 64))


def rope_outside(ops: Ops, x: Handle) -> tuple[Handle, Handle, Handle]:
    return q_of(ops, ops.rope(x, 2, ROPE)), k_of(ops, x), k_of(ops, x)


def head_norm_outside(ops: Ops, x: Handle) -> tuple[Handle, Handle, Handle]:
    return q_of(ops, ops.head_norm(x, vector("n", 32), 1e-5, 2)), k_of(ops, x), k_of(ops, x)


def norm_after_rope(ops: Ops, x: Handle) -> tuple[Handle, Handle, Handle]:
    q = ops.head_norm(ops.rope(q_of(ops, x), 2, ROPE), vector("n", 32), 1e-5, 2)
    return q, ops.rope(k_of(ops, x), 1, ROPE), k_of(ops, x)


def queries_turned_alone(ops: Ops, x: Handle) -> tuple[Handle, Handle, Handle]:
    return ops.rope(q_of(ops, x), 2, ROPE), k_of(ops, x), k_of(ops, x)


def values_that_are_keys(ops: Ops, x: Handle) -> tuple[Handle, Handle, Handle]:
    k = k_of(ops, x)
    return ops.rope(q_of(ops, x), 2, ROPE), ops.rope(k, 1, ROPE), k


def unlike_eps(ops: Ops, x: Handle) -> tuple[Handle, Handle, Handle]:
    q = ops.head_norm(q_of(ops, x), vector("n", 32), 1e-5, 2)
    return q, ops.head_norm(k_of(ops, x), vector("n", 32), 1e-6, 1), k_of(ops, x)


@pytest.mark.parametrize(
    ("bend", "match"),
    [
        (rope_outside, "rotates"),
        (head_norm_outside, "normalizes"),
        (norm_after_rope, "rotates"),
        (queries_turned_alone, "alike"),
        (values_that_are_keys, "nothing else reads"),
        (unlike_eps, "alike"),
    ],
)
def test_what_the_stages_cannot_say_is_refused(bend: Any, match: str) -> None:
    with pytest.raises(UnsupportedError, match=match):
        BACKEND.load(Bent(bend), max_batch_tokens=8, max_batch_seqs=8, kv_type="f32")


def plain(ops: Ops, x: Handle) -> tuple[Handle, Handle, Handle]:
    return q_of(ops, x), k_of(ops, x), k_of(ops, x)


def test_more_heads_than_the_kernels_take_are_refused() -> None:
    spec = replace(SPEC, num_heads=64, head_dim=1)
    with pytest.raises(UnsupportedError, match=r"cannot run this model: .*heads"):
        BACKEND.load(Bent(plain, spec), max_batch_tokens=8, max_batch_seqs=8, kv_type="f32")


def test_keys_used_as_values_are_fine_where_nothing_turns_them() -> None:
    def bend(ops: Ops, x: Handle) -> tuple[Handle, Handle, Handle]:
        k = k_of(ops, x)
        return q_of(ops, x), k, k

    assert_runs_as_stated(Bent(bend))


@pytest.mark.parametrize("layers", [[], [1], [0, 0], [0, 2]])
def test_each_layer_has_one_attention(layers: list[int]) -> None:
    graph = Graph([ATTENTION, ATTENTION])
    nodes = [Attention((), 64, layer=layer, spec=SPEC) for layer in layers]
    with pytest.raises(UnsupportedError, match="one attention in each layer"):
        kv_layers(graph, nodes)
    assert kv_layers(graph, [Attention((), 64, layer=n, spec=SPEC) for n in (1, 0)]) == [(0, 1, 32)] * 2
