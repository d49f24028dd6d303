"""Random forward passes: any mix of ops on any of the values that live, and such as are easily computed wrongly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import strategies as st

from paged_run import PagedRun, reference_run
from pagoda.backends.base import Backend, Handle, LoadedModel, Ops, run_batch
from pagoda.backends.specs import Activation, AttentionSpec, ExpertGroups, ExpertsSpec, KVGroup, RopeSpec
from pagoda.types import Batch, RawTensor
from tiny_blocks import encode, noise

WIDTHS = (32, 64)
HEADS, KV_HEADS, HEAD_DIM, VOCAB, EXPERTS = 2, 1, 32, 40, 6
SPEC = AttentionSpec(HEADS, KV_HEADS, HEAD_DIM, HEAD_DIM**-0.5)
ROPE = RopeSpec("neox", (0.1 ** np.arange(HEAD_DIM // 2)).astype(np.float32))


def encoded(values: np.ndarray, type: str) -> np.ndarray:
    """The bytes of a tensor of these values."""
    return np.ascontiguousarray(encode(values, type)).view(np.uint8).reshape(-1)


def weight(name: str, rows: int, columns: int, type: str = "F32") -> RawTensor:
    values = noise(name, (rows, columns), columns**-0.5)
    return RawTensor(name, type, (rows, columns), encoded(values, type))


def vector(name: str, size: int) -> RawTensor:
    return RawTensor(name, "F32", (size,), encoded(1 + noise(name, (size,), 0.3), "F32"))


@dataclass(frozen=True)
class Step:
    """An op on some of the values that live: `pick` chooses them, modulo their number."""

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

    def forward(self, ops: Ops) -> None:
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
        ops.logits(x, weight("head", VOCAB, width, last.type))
        ops.hidden_states(self._pick(last.pick[1])[0])

    def _pick(self, n: int, width: int | None = None) -> tuple[Handle, int]:
        fitting = [value for value in self.live if width in (None, value[1])]
        return fitting[n % len(fitting)]

    def _norm(self, ops: Ops, name: str, step: Step) -> None:
        x, width = self._pick(step.pick[0])
        self.live.append((ops.rms_norm(x, vector(name, width), 1e-5), width))

    def _layer_norm(self, ops: Ops, name: str, step: Step) -> None:
        x, width = self._pick(step.pick[0])
        self.live.append((ops.layer_norm(x, vector(name, width), vector(f"{name}b", width), 1e-5), width))

    def _activated(self, ops: Ops, name: str, step: Step) -> None:
        x, width = self._pick(step.pick[0])
        self.live.append((ops.gated(x, None, "relu2" if step.flag else "gelu"), width))

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

    def _columns(self, ops: Ops, name: str, step: Step) -> None:
        x, width = self._pick(step.pick[0])
        heads = 1 + step.pick[1] % 2
        each, least = width // heads, 32 // heads
        start, count = (least, each - least) if step.flag and width > 32 else (0, least)
        self.live.append((ops.columns(x, start, count, 1.5, heads=heads), heads * count))

    def _head_linear(self, ops: Ops, name: str, step: Step) -> None:
        x, width = self._pick(step.pick[0])
        heads = 2 if width > 32 else 1
        each = width // heads
        kept, rows = each % 32, 32 - each % 32
        values = noise(name, (heads, rows, each - kept), (each - kept) ** -0.5)
        type = "F16" if step.flag else "F32"
        self.live.append(
            (ops.head_linear(x, RawTensor(name, type, values.shape, encoded(values, type)), kept=kept), heads * 32)
        )

    def _head_norm(self, ops: Ops, name: str, step: Step) -> None:
        x, width = self._pick(step.pick[0])
        size = width if step.pick[1] % 2 else HEAD_DIM  # weights of each head's own, or the same
        normed = ops.head_norm(x, vector(name, size), 1e-5, width // HEAD_DIM, centered=step.flag)
        self.live.append((normed, width))

    def _gaussian_topk(self, ops: Ops, name: str, step: Step) -> None:
        x, width = self._pick(step.pick[0])
        self.live.append((ops.gaussian_topk(x, 0.7 if step.flag else -0.4), width))

    def _mix_streams(self, ops: Ops, name: str, step: Step) -> None:
        """Of as many streams of 32 columns as the value has, one or two others."""
        x, width = self._pick(step.pick[0])
        streams, made = width // 32, 2 if step.flag else 1
        other, columns = self._pick(step.pick[1])
        coefficients = ops.linear(other, weight(name, made * streams, columns))
        self.live.append((ops.mix_streams(x, coefficients, streams), made * 32))

    def _rope(self, ops: Ops, name: str, step: Step) -> None:
        x, width = self._pick(step.pick[0])
        self.live.append((ops.rope(x, width // HEAD_DIM, ROPE), width))

    def _experts(self, ops: Ops, name: str, step: Step) -> None:
        """`flag`: the router picks all of them. `pick` also says whether there are biases and corrections, what scores
        are, and the activation."""
        x, width = self._pick(step.pick[0])
        router = ops.linear(x, weight(f"{name}r", EXPERTS, width))
        up, down = (32, width), (width, 32)
        gates, ups, downs = (
            tuple(weight(f"{name}{role}{e}", *shape, step.type) for e in range(EXPERTS))
            for role, shape in (("g", up), ("u", up), ("d", down))
        )
        activation: Activation = "clamped_swiglu" if step.pick[2] % 2 else "silu"
        spec = ExpertsSpec(EXPERTS if step.flag else 2, normalize=not step.flag, activation=activation)
        if step.pick[2] % 3:
            spec = replace(spec, scoring="sigmoid", scale=1.5)
        if not step.flag and step.pick[0] % 3 == 0:
            spec = replace(spec, groups=ExpertGroups(EXPERTS // 2, 2, 1 + step.pick[1] % 2))
        corrections = vector(f"{name}c", EXPERTS) if step.pick[2] % 4 > 1 else None
        scales = vector(f"{name}s", EXPERTS) if step.flag else None
        sizes = {"gb": up[0], "ub": up[0], "db": down[0]}
        of_gate, of_up, of_down = (weight(f"{name}{role}", EXPERTS, size) for role, size in sizes.items())
        biases = (of_gate, of_up, of_down) if step.pick[1] % 2 else None
        self.live.append((ops.experts(x, router, gates, ups, downs, spec, scales, biases, corrections), width))

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


OTHERS = st.lists(steps_of("norm", "linear", "linear", "gated", "add", "add", "experts"), max_size=8)


def joined(first: list[Step], attention: Step, second: list[Step], another: Step, third: list[Step]) -> list[Step]:
    return [*first, attention, *second, another, *third]


# and ops that not every backend has
ENCODER_OTHERS = st.lists(
    steps_of(
        *("layer_norm", "activated", "columns", "head_linear", "head_norm", "rope", "gaussian_topk", "mix_streams"),
        *("norm", "linear", "linear", "gated", "add"),
    ),
    max_size=8,
)

ENCODER_STEPS = st.builds(
    joined, ENCODER_OTHERS, steps_of("attention"), ENCODER_OTHERS, steps_of("layer_norm"), ENCODER_OTHERS
)
ALL_STEPS = st.builds(joined, OTHERS, steps_of("attention"), OTHERS, steps_of("attention", "norm"), OTHERS)


def _run(run: PagedRun) -> tuple[np.ndarray, np.ndarray]:
    """Logits of all tokens, and hidden states of some."""
    first = run.step({"a": [3, 1, 4, 1, 5]})["a"]
    second = run.step({"b": [9, 2, 6], "a": [5, 35]}, hidden_rows=[4, 0])
    return np.concatenate([first, second["a"], second["b"]]), run.hidden


def assert_runs_as_stated(graph: Graph, backend: Backend) -> None:
    """The backend's logits and hidden states are the reference's, up to what rounding costs."""
    loaded = backend.load(graph, max_batch_tokens=8, max_batch_seqs=8, kv_type="f32")
    results = zip(_run(PagedRun(graph, loaded)), _run(reference_run(graph)), strict=True)
    loaded.close()
    quantized = any(step.type == "Q8_0" for step in graph.steps)
    for got, expected in results:
        error = np.sqrt(np.square(got - expected).mean() / np.square(expected).mean())
        assert error < (0.1 if quantized else 1e-4), graph.steps


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


class Bent(Graph):
    """A graph of one attention whose parts a test bends."""

    def __init__(
        self, bend: Callable[[Ops, Handle], tuple[Handle, Handle, Handle]], spec: AttentionSpec = SPEC
    ) -> None:
        super().__init__([ATTENTION])
        self.bend, self.spec = bend, spec

    def forward(self, ops: Ops) -> None:
        x = ops.embed(weight("table", VOCAB, 64))
        x = ops.attention(0, *self.bend(ops, x), self.spec)
        ops.logits(x, weight("head", VOCAB, 64))
        ops.hidden_states(x)


class Encoder(Graph):
    """A graph of one attention that ends in hidden states alone."""

    def __init__(self) -> None:
        super().__init__([ATTENTION])

    def forward(self, ops: Ops) -> None:
        x = ops.embed(weight("table", VOCAB, 64))
        x = ops.add(x, ops.attention(0, *plain(ops, ops.rms_norm(x, vector("n", 64), 1e-5)), SPEC))
        ops.hidden_states(ops.rms_norm(x, vector("m", 64), 1e-5))


def hidden_states_of(loaded: LoadedModel, tokens: list[int], rows: list[int], logit_rows: list[int]) -> np.ndarray:
    """Of one sequence, after a single step."""
    count, blocks = np.array([len(tokens)], np.int32), np.zeros((1, 1), np.int32)
    ids, positions = np.array(tokens, np.int32), np.arange(len(tokens), dtype=np.int32)
    wanted = (np.array(logit_rows, np.int32), np.array(rows, np.int32))
    run_batch(loaded, Batch(ids, positions, np.append(np.int32(0), count), count, (blocks,), *wanted))
    return loaded.hidden_states().copy()


def q_of(ops: Ops, x: Handle) -> Handle:
    return ops.linear(x, weight("q", 64, 64))


def k_of(ops: Ops, x: Handle) -> Handle:
    return ops.linear(x, weight("k", 32, 64))


def plain(ops: Ops, x: Handle) -> tuple[Handle, Handle, Handle]:
    return q_of(ops, x), k_of(ops, x), k_of(ops, x)


def assert_encodes(backend: Backend) -> None:
    """A model without logits gives hidden states, as the reference does, and refuses to give logits."""
    from pagoda.backends.reference import ReferenceBackend

    states = []
    for each in (backend, ReferenceBackend()):
        loaded = each.load(Encoder(), max_batch_tokens=8, max_batch_seqs=8, kv_type="f32")
        loaded.allocate_kv((1,))
        states.append(hidden_states_of(loaded, [3, 1, 4, 1, 5], [4, 0, 4], []))
        with pytest.raises(ValueError, match="1 rows of logits are wanted of a model that gives none"):
            hidden_states_of(loaded, [3], [], [0])
        loaded.close()
    np.testing.assert_allclose(*states, atol=1e-5)
    assert states[0].shape == (3, 64)
