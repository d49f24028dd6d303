"""The oracle's ops against plain arithmetic; paged KV; a token's bits that do not depend on the batch."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from op_graphs import Encoder, hidden_states_of
from paged_run import PagedRun, move_blocks, reference_run
from pagoda.backends import arithmetic, reference
from pagoda.backends.base import run_batch
from pagoda.backends.specs import AttentionSpec, ExpertGroups, ExpertsSpec, RopeSpec, RopeStyle, Scoring
from pagoda.models.registry import load_model
from tiny_models import TINY, VOCAB, memory_checkpoint

RNG = np.random.default_rng(7)


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_rms_norm_of_known_numbers() -> None:
    out = arithmetic.rms_norm(np.array([[3.0, 4.0]], np.float32), np.array([1.0, 2.0], np.float32), 0.0)
    np.testing.assert_allclose(out, [[3 / math.sqrt(12.5), 8 / math.sqrt(12.5)]], rtol=1e-6)


def test_rms_norm_of_zeros_is_zero_thanks_to_eps() -> None:
    assert not arithmetic.rms_norm(np.zeros((1, 8), np.float32), np.ones(8, np.float32), 1e-6).any()


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 40])
def test_a_row_of_linear_does_not_depend_on_the_others(num_tokens: int) -> None:
    x, weight, bias = random(num_tokens, 96), random(50, 96), random(50)
    together = arithmetic.linear(x, weight, bias)
    for t in range(num_tokens):
        np.testing.assert_array_equal(together[t : t + 1], arithmetic.linear(x[t : t + 1], weight, bias))
    np.testing.assert_allclose(together, x.astype(np.float64) @ weight.T + bias, atol=1e-4)


def test_linear_of_no_rows() -> None:
    assert arithmetic.linear(random(0, 4), random(3, 4)).shape == (0, 3)


def spec_of(style: RopeStyle, pairs: int = 4, scale: float = 1.0) -> RopeSpec:
    return RopeSpec(style, (10.0 ** -np.arange(pairs)).astype(np.float32), scale)


def test_rope_turns_pairs_by_position_times_frequency() -> None:
    spec = RopeSpec("interleaved", np.array([0.5], np.float32))
    out = arithmetic.rope(np.array([[1.0, 0.0]], np.float32), np.array([3], np.int32), 1, spec)
    np.testing.assert_allclose(out, [[math.cos(1.5), math.sin(1.5)]], rtol=1e-6)


@pytest.mark.parametrize("style", ["interleaved", "neox"])
def test_rope_scores_depend_on_distance_only(style: RopeStyle) -> None:
    q, k, spec = random(1, 8), random(1, 8), spec_of(style)

    def score(m: int, n: int) -> float:
        at = [np.array([p], np.int32) for p in (m, n)]
        return float((arithmetic.rope(q, at[0], 1, spec) @ arithmetic.rope(k, at[1], 1, spec).T).item())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-3)


def test_rope_styles_differ_by_the_order_of_elements() -> None:
    x, positions = random(5, 2 * 8), np.arange(5, dtype=np.int32)
    side_by_side = x.reshape(5, 2, 2, 4).swapaxes(2, 3).reshape(5, 16)
    turned = arithmetic.rope(side_by_side, positions, 2, spec_of("interleaved"))
    expected = arithmetic.rope(x, positions, 2, spec_of("neox"))
    np.testing.assert_array_equal(turned.reshape(5, 2, 4, 2).swapaxes(2, 3).reshape(5, 16), expected)


def test_rope_leaves_what_lies_beyond_rotary_dim_and_its_argument() -> None:
    x = random(3, 2 * 12)
    before = x.copy()
    out = arithmetic.rope(x, np.arange(3, dtype=np.int32), 2, spec_of("neox", scale=2.0))
    np.testing.assert_array_equal(out.reshape(3, 2, 12)[..., 8:], before.reshape(3, 2, 12)[..., 8:])
    np.testing.assert_array_equal(out.reshape(3, 2, 12)[0, :, :8], 2 * before.reshape(3, 2, 12)[0, :, :8])
    np.testing.assert_array_equal(x, before)


def test_softmax_of_large_scores() -> None:
    np.testing.assert_allclose(arithmetic.softmax(np.array([1e4, 1e4, -1e4], np.float32)), [0.5, 0.5, 0.0])


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_attend_against_loops(softcap: float | None) -> None:
    spec = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8, scale=0.3, softcap=softcap)
    q, k, v = random(32), random(5, 2, 8), random(5, 2, 8)
    out = arithmetic.attend(q, k, v, spec)
    for head in range(4):
        shared = head // 2  # two query heads to a KV head
        scores = [0.3 * sum(float(q[8 * head + d]) * float(k[n, shared, d]) for d in range(8)) for n in range(5)]
        if softcap is not None:
            scores = [softcap * math.tanh(s / softcap) for s in scores]
        weights = [math.exp(s) / sum(map(math.exp, scores)) for s in scores]
        expected = sum(w * v[n, shared].astype(np.float64) for n, w in enumerate(weights))
        np.testing.assert_allclose(out[8 * head : 8 * head + 8], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "at_one", "at_minus_two"),
    [
        ("silu", 0.7310586, -0.2384058),
        ("gelu", 0.8413447, -0.0455003),
        ("gelu_tanh", 0.8411920, -0.0454023),
        ("relu2", 1.0, 0.0),
    ],
)
def test_gated_activations_at_known_points(activation: str, at_one: float, at_minus_two: float) -> None:
    gate, up = np.array([1.0, -2.0, 0.0, 200.0, -200.0], np.float32), np.array([1, 1, 5, 2, 3], np.float32)
    out = arithmetic.gated(gate, up, activation)  # type: ignore[arg-type]
    far = 200**2 * 2 if activation == "relu2" else 400
    np.testing.assert_allclose(out, [at_one, at_minus_two, 0, far, 0], atol=1e-6)


def test_each_head_is_multiplied_by_its_own_matrix() -> None:
    x = np.array([[9.0, 1.0, 2.0, 8.0, 3.0, 4.0]], np.float32)  # two heads, of which a number stays
    weight = np.array([[[1, 0], [1, 1], [0, 2]], [[0, 1], [1, -1], [2, 0]]], np.float32)
    assert arithmetic.head_linear(x, weight, kept=1).tolist() == [[9, 1, 3, 4, 8, 4, -1, 6]]
    assert arithmetic.head_linear(x[:, [1, 2, 4, 5]], weight).tolist() == [[1, 3, 4, 4, -1, 6]]


def test_gaussian_topk_of_known_numbers() -> None:
    """Mean 2, variance 4: one deviation above the mean is 4."""
    x = np.array([[0.0, 0.0, 2.0, 5.0, 3.0, 2.0]], np.float32)
    x = np.concatenate([x, 2 * x])
    spread = statistics.pstdev(x[0].tolist())
    out = arithmetic.gaussian_topk(x, 0.5)
    expected = [max(value - 2 - spread / 2, 0) for value in x[0].tolist()]
    np.testing.assert_allclose(out, [expected, [2 * value for value in expected]], atol=1e-6)
    assert arithmetic.gaussian_topk(x, -9.0).min() > 0  # below the mean all stay


def test_gaussian_topk_leaves_the_share_that_it_is_named_for() -> None:
    kept = arithmetic.gaussian_topk(random(4, 20_000), statistics.NormalDist().inv_cdf(0.95)) > 0
    np.testing.assert_allclose(kept.mean(-1), 0.05, atol=0.01)


@pytest.mark.parametrize(("streams", "made"), [(4, 4), (1, 4), (3, 1)])
def test_mixed_streams_against_loops(streams: int, made: int) -> None:
    x, coefficients = random(5, streams * 6), random(5, made * streams)
    out = arithmetic.mix_streams(x, coefficients, streams)
    for t in range(5):
        for i in range(made):
            parts = [coefficients[t, i * streams + j] * x[t, j * 6 : j * 6 + 6] for j in range(streams)]
            np.testing.assert_allclose(out[t, i * 6 : i * 6 + 6], np.sum(parts, 0), atol=1e-6)


def test_heads_are_centered_and_weighed_each_by_its_own() -> None:
    x, weight = random(3, 4 * 6) + 1, random(4 * 6)
    out = arithmetic.head_norm(x, weight, 1e-5, 4, centered=True)
    for t in range(3):
        for head in range(4):
            values = x[t, head * 6 : head * 6 + 6].astype(np.float64)
            expected = (values - values.mean()) / math.sqrt(values.var() + 1e-5) * weight[head * 6 : head * 6 + 6]
            np.testing.assert_allclose(out[t, head * 6 : head * 6 + 6], expected, atol=1e-5)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalize", [True, False])
def test_experts_are_picked_by_corrected_scores_and_weighed_by_their_own(scoring: Scoring, normalize: bool) -> None:
    router, corrections, scales = random(40, 6), random(6) / 4, 1 + random(6) / 4
    spec = ExpertsSpec(3, normalize, "silu", scoring, scale=2.5)
    out = arithmetic.expert_weights(router, spec, scales, corrections)
    moved = 0
    for logits, got in zip(router.astype(np.float64), out, strict=True):
        scores = 1 / (1 + np.exp(-logits)) if scoring == "sigmoid" else np.exp(logits) / np.exp(logits).sum()
        picked = sorted(range(6), key=lambda e: scores[e] + corrections[e])[-3:]
        moved += set(picked) != set(np.argsort(logits)[-3:].tolist())
        total = scores[picked].sum() if normalize else 1
        expected = [scores[e] / total * 2.5 * scales[e] if e in picked else 0 for e in range(6)]
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert moved > 5


def picked_from_groups(scores: list[float], count: int, groups: ExpertGroups) -> set[int]:
    """Experts as deepseek-ai/DeepSeek-V3's inference/model.py picks them, one token in Python."""
    size = len(scores) // groups.count
    parts = [scores[g * size : (g + 1) * size] for g in range(groups.count)]
    of_group = [sum(sorted(part)[-groups.best :]) for part in parts]
    used = sorted(range(groups.count), key=lambda g: (-of_group[g], g))[: groups.num_used]
    allowed = [e for e in range(len(scores)) if e // size in used]
    return set(sorted(allowed, key=lambda e: (-scores[e], e))[:count])


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("best", [1, 2])
@pytest.mark.parametrize("lowered", [None, 0.0, 2.0], ids=["plain", "corrected", "below zero"])
def test_experts_are_picked_from_the_best_groups(scoring: Scoring, best: int, lowered: float | None) -> None:
    """Also where corrections make all scores negative: experts of other groups do not count as zero."""
    router, corrections = random(60, 12), None if lowered is None else random(12) / 4 - np.float32(lowered)
    groups = ExpertGroups(4, 2, best)
    out = arithmetic.expert_weights(router, ExpertsSpec(3, False, "silu", scoring, groups=groups), None, corrections)
    everywhere = arithmetic.expert_weights(router, ExpertsSpec(3, False, "silu", scoring), None, corrections)
    for logits, got in zip(router.astype(np.float64), out, strict=True):
        scores = 1 / (1 + np.exp(-logits)) if scoring == "sigmoid" else np.exp(logits) / np.exp(logits).sum()
        corrected = scores if corrections is None else scores + corrections
        expected = picked_from_groups(corrected.tolist(), 3, groups)
        assert set(np.flatnonzero(got)) == expected
        np.testing.assert_allclose(got[list(expected)], scores[list(expected)], rtol=1e-5)
    assert (out != everywhere).any(axis=1).sum() > 5


def test_of_equal_groups_the_first_is_picked() -> None:
    spec = ExpertsSpec(2, False, "silu", "sigmoid", groups=ExpertGroups(3, 1, 2))
    out = arithmetic.expert_weights(np.array([[0, 0, 1, -1, 1, -1, 1, -1, 0]], np.float32), spec)
    assert np.flatnonzero(out[0]).tolist() == [0, 2]  # 0.5 and sigmoid(1) in the first and in the last


def test_scores_that_are_all_nothing_weigh_nothing() -> None:
    spec = ExpertsSpec(2, normalize=True, activation="silu", scoring="sigmoid")
    assert not arithmetic.expert_weights(np.full((1, 4), -200, np.float32), spec).any()


def test_paged_kv_reads_back_what_was_stored_through_the_table() -> None:
    pool = reference.PagedKV({3: (2, 4), 5: (2, 4)}, num_blocks=6)
    k, v = random(40, 8), random(40, 8)
    table = np.array([4, 0, 2, -1], np.int32)
    pool.store(5, table, np.arange(40, dtype=np.int32), k, v)
    got_k, got_v = pool.load(5, table, 13, 37)
    np.testing.assert_array_equal(got_k.reshape(-1, 8), k[13:37])
    np.testing.assert_array_equal(got_v.reshape(-1, 8), v[13:37])
    assert not pool.k[3].any(), "another layer was written"


@pytest.mark.parametrize("table", [[-1, 0], [6, 0]])
def test_paged_kv_never_touches_blocks_that_are_not_there(table: list[int]) -> None:
    pool = reference.PagedKV({0: (1, 2)}, num_blocks=6)
    with pytest.raises(AssertionError, match="touched"):
        pool.load(0, np.array(table, np.int32), 3, 20)
    pool.load(0, np.array(table, np.int32), 16, 20)  # the bad block is outside


def run_of(name: str, seed: int = 0) -> PagedRun:
    return reference_run(load_model(memory_checkpoint(TINY[name])), seed=seed)


def tokens(count: int, seed: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, VOCAB, count)]


FAMILIES = [
    "llama",
    "mistral",
    "qwen2_windowed",
    "qwen3_yarn",
    "gemma3",
    "phi3_long",
    "ministral3",
    "gemma4",
    "gemma3n",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_the_same_bits_alone_and_in_any_batch(name: str) -> None:
    """Chunked prompts, decodes and other sequences in the step, other blocks: nothing changes a bit."""
    prompts = {"a": tokens(70, 1), "b": tokens(33, 2), "c": tokens(5, 3)}
    alone = {who: run_of(name).step({who: prompt})[who] for who, prompt in prompts.items()}

    run = run_of(name, seed=9)
    parts: dict[str, list[np.ndarray]] = {who: [] for who in prompts}
    schedule = [{"a": 30}, {"a": 1, "b": 17}, {"b": 16, "c": 3, "a": 24}, {"c": 1, "a": 15}, {"c": 1}]
    for step in schedule:
        done = {who: run.lengths.get(who, 0) for who in step}
        logits = run.step({who: prompts[who][done[who] : done[who] + n] for who, n in step.items()})
        for who, rows in logits.items():
            parts[who].append(rows)
    for who in prompts:
        np.testing.assert_array_equal(np.concatenate(parts[who]), alone[who], err_msg=who)


def test_windowed_layers_forget_and_full_ones_do_not() -> None:
    """Two layers with a window of 20 carry news over at most 2 * 19 positions."""
    for name, reaches in [("mistral", False), ("llama", True)]:
        one, other = tokens(60, 4), [5, *tokens(60, 4)[1:]]
        last = [run_of(name).step({"s": prompt})["s"][-1] for prompt in (one, other)]
        assert np.array_equal(*last) is not reaches


def test_a_window_shorter_than_the_text_does_not_show() -> None:
    prompt = tokens(20, 5)
    np.testing.assert_array_equal(run_of("mistral").step({"s": prompt})["s"], run_of("llama").step({"s": prompt})["s"])


def test_copied_blocks_continue_the_sequence() -> None:
    prompt, run = tokens(20, 6), run_of("gemma3")
    run.step({"s": prompt})
    for group, tables in enumerate(run.tables["s"]):
        copies = [run.free[group].pop() for _ in tables]
        run.loaded.copy_blocks(group, np.array(list(zip(tables, copies, strict=True)), np.int32))
        run.tables.setdefault("fork", []).append(copies)
    run.lengths["fork"] = len(prompt)
    run.step({"s": [1]})  # must not show in the fork
    expected = run_of("gemma3").step({"s": [*prompt, 2, 3]})["s"][-2:]
    np.testing.assert_array_equal(run.step({"fork": [2, 3]})["fork"], expected)


def test_blocks_that_were_moved_continue_the_sequence() -> None:
    prompt, run, other = tokens(20, 6), run_of("gemma3"), run_of("gemma3")
    run.step({"s": prompt})
    other.step({"t": tokens(5, 1)})  # so that the blocks are not the same ones
    move_blocks(run, other, "s")
    np.testing.assert_array_equal(run.step({"s": [2, 3]})["s"], other.step({"s": [2, 3]})["s"])


def test_a_batch_may_want_no_logits() -> None:
    run = run_of("llama")
    run._grow("s", 3)
    batch = run._batch({"s": [1, 2, 3]})
    batch = type(batch)(**{f: getattr(batch, f) for f in batch.__slots__} | {"logit_rows": np.zeros(0, np.int32)})
    assert run_batch(run.loaded, batch).shape == (0, VOCAB)


def test_sizes_and_close() -> None:
    spec = TINY["gemma3"]
    loaded = reference.ReferenceBackend().load(
        load_model(memory_checkpoint(spec)), max_batch_tokens=8, max_batch_seqs=2, kv_type="f16"
    )
    stored = sum(t.data.nbytes for t in memory_checkpoint(spec).tensors.values())
    assert loaded.weight_bytes == stored, "a tied head counts once"
    assert [loaded.block_bytes(g) for g in (0, 1)] == [2 * 4 * layers * 16 * 32 for layers in (6, 1)]
    loaded.allocate_kv((2, 1))
    loaded.close()
    loaded.close()


def test_a_model_may_end_in_hidden_states_alone() -> None:
    loaded = reference.ReferenceBackend().load(Encoder(), max_batch_tokens=8, max_batch_seqs=8, kv_type="f32")
    loaded.allocate_kv((1,))
    all_rows = hidden_states_of(loaded, [3, 1, 4], [0, 1, 2], [])
    np.testing.assert_array_equal(hidden_states_of(loaded, [3, 1, 4], [2, 0], []), all_rows[[2, 0]])
    with pytest.raises(ValueError, match="2 rows of logits are wanted of a model that gives none"):
        hidden_states_of(loaded, [3, 1], [], [0, 1])
