"""The native sampler against plain numpy that sorts: same supports, same probabilities, same tokens, same logprobs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda._native import sampler_isas
from pagoda.sampling import reference
from pagoda.sampling.base import SamplingBatch, StateSpec, TokenMasks
from pagoda.sampling.reference import ReferenceSampler, ReferenceState
from pagoda.sampling.sampler import Sampler
from pagoda.types import FloatArray, SamplingParams

VOCAB = 1000
IDS = st.integers(0, VOCAB - 1)

params_strategy = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 5, 17, 400]),
    top_p=st.sampled_from([1.0, 0.99, 0.9, 0.31]),
    min_p=st.sampled_from([0.0, 0.0, 0.013, 0.4]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.2, 0.8]),
    presence_penalty=st.sampled_from([0.0, 0.6, -1.1]),
    frequency_penalty=st.sampled_from([0.0, 0.3]),
    logit_bias=st.dictionaries(IDS, st.floats(-100, 100, width=32), max_size=4),
    min_tokens=st.integers(0, 4),
    allowed_token_ids=st.none() | st.lists(IDS, min_size=1, max_size=300).map(tuple),
    logprobs=st.none() | st.integers(0, 20),
    logprob_token_ids=st.lists(IDS, unique=True, max_size=3).map(tuple),
)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "params": draw(params_strategy),
        "prompt": tuple(draw(st.lists(IDS, max_size=20))),
        "outputs": draw(st.lists(st.integers(0, 30), max_size=8)),
        "stop_token_ids": tuple(draw(st.lists(IDS, max_size=3))),
        "bad_words": tuple(
            map(tuple, draw(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=3), max_size=3)))
        ),
        "seed": draw(st.integers(-(2**63), 2**63 - 1)),
        "choice": draw(st.integers(0, 127)),
        "logits": random_logits(draw(st.integers(0, 10**6)), draw(st.sampled_from([0.1, 1.0, 6.0]))),
        "mask": draw(st.none() | st.integers(0, 10**6).map(random_mask)),
    }


def random_logits(seed: int, scale: float) -> FloatArray:
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=scale, size=VOCAB).astype(np.float32)
    if seed % 3 == 0:
        logits = np.round(logits)  # ties
    if seed % 4 == 0:
        logits[rng.random(VOCAB) < 0.5] = -np.inf
    return logits


def random_mask(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 2**32, size=(VOCAB + 31) // 32, dtype=np.uint32)


def open_both(sampler: Sampler, case: dict[str, Any]) -> tuple[Any, ReferenceState]:
    states = []
    for each in (sampler, ReferenceSampler()):
        spec = StateSpec(
            case["params"],
            case["prompt"],
            case["choice"],
            case["seed"],
            stop_token_ids=case["stop_token_ids"],
            bad_words=case["bad_words"],
        )
        state = each.open(spec)
        for token_id in case["outputs"]:
            state.accept(token_id)
        states.append(state)
    return states[0], states[1]


def near_an_edge(adjusted: FloatArray, params: SamplingParams) -> bool:
    """Whether rounding may decide: a mass within 1e-5 of top_p's, or a weight within 1e-5 of min_p's."""
    weights = np.sort(np.exp((adjusted.astype(np.float64) - adjusted.max()) / params.temperature))[::-1]
    if params.min_p > 0 and np.any(np.abs(weights / params.min_p - 1) < 1e-5):
        return True
    weights = weights[weights >= params.min_p][: params.top_k or None]
    mass = np.cumsum(weights) / weights.sum()
    return params.top_p < 1 and bool(np.any(np.abs(mass - params.top_p) < 1e-5))


@pytest.mark.parametrize("isa", sampler_isas())
@given(case=cases())
@settings(max_examples=250, deadline=None)
def test_support_and_probabilities(isa: str, case: dict[str, Any]) -> None:
    sampler = Sampler(VOCAB, isa=isa)
    state, truth = open_both(sampler, case)
    adjusted = truth.adjust(case["logits"], case["mask"])
    if np.isneginf(adjusted).all():
        with pytest.raises(ValueError, match="ruled out"):
            sampler.distribution(case["logits"], state, mask=case["mask"])
        return
    ids, probs = sampler.distribution(case["logits"], state, mask=case["mask"])
    if case["params"].temperature == 0:
        assert ids.tolist() == [int(adjusted.argmax())]
    elif not near_an_edge(adjusted, case["params"]):
        expected_ids, expected = reference.distribution(adjusted, case["params"])
        likely = expected > 1e-37  # the native sampler takes weights from 2^-127 down for 0, subnormals roughly
        assert set(expected_ids[likely].tolist()) <= set(ids.tolist()) <= set(expected_ids.tolist())
        np.testing.assert_allclose(probs, expected[np.isin(expected_ids, ids)], rtol=2e-5, atol=1e-37)


@given(case=cases())
@settings(max_examples=250, deadline=None)
def test_tokens_and_logprobs(case: dict[str, Any]) -> None:
    sampler = Sampler(VOCAB)
    state, truth = open_both(sampler, case)
    masks = None if case["mask"] is None else TokenMasks(np.zeros(1, dtype=np.int32), case["mask"][None])
    ours = sampler.sample(SamplingBatch(case["logits"][None], [state], masks=masks))
    theirs = ReferenceSampler().sample(SamplingBatch(case["logits"][None], [truth], masks=masks))
    assert ours.errors == theirs.errors
    if ours.errors or near_a_border(truth, case):
        return
    assert ours.token_ids.tolist() == theirs.token_ids.tolist()
    assert_close(ours.logprobs[0], theirs.logprobs[0])


def near_a_border(truth: ReferenceState, case: dict[str, Any]) -> bool:
    """Whether the draw falls within 1e-5 of the border between two tokens, or a cut is near an edge."""
    adjusted, params = truth.adjust(case["logits"], case["mask"]), case["params"]
    if params.temperature == 0:
        return False
    cumulative = np.cumsum(reference.distribution(adjusted, params)[1])
    target = reference.uniform(case["seed"], case["choice"], truth.num_outputs)
    return near_an_edge(adjusted, params) or bool(np.any(np.abs(cumulative[:-1] - target) < 1e-5))


def assert_close(ours: Any, theirs: Any) -> None:
    if theirs is None:
        assert ours is None
        return
    for one, other in zip((ours.chosen, *ours.top), (theirs.chosen, *theirs.top), strict=False):
        assert (one.token_id, one.rank) == (other.token_id, other.rank)
        assert one.logprob == pytest.approx(other.logprob, abs=2e-6)
    finite = [other for other in theirs.top if np.isfinite(other.logprob)]
    assert sum(bool(np.isfinite(one.logprob)) for one in ours.top) == len(finite)


@pytest.mark.parametrize("num_top", [0, 1, 20])
def test_prompt_logprobs(num_top: int) -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(scale=4.0, size=(9, VOCAB)).astype(np.float32)
    targets = rng.integers(0, VOCAB, size=9, dtype=np.int32)
    ours = Sampler(VOCAB).prompt_logprobs(logits, targets, num_top)
    theirs = ReferenceSampler().prompt_logprobs(logits, targets, num_top)
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("params", [{}, {"top_k": 50}, {"top_p": 0.95}, {"top_p": 0.9, "top_k": 3000}, {"min_p": 0.02}])
@pytest.mark.parametrize("scale", [0.5, 3.0, 8.0])
def test_a_real_vocabulary(params: dict[str, Any], scale: float) -> None:
    """Sizes at which blocks, buckets and several thresholds come into play."""
    vocab_size = 49152 + 17
    logits = np.random.default_rng(2).normal(scale=scale, size=vocab_size).astype(np.float32)
    sampler = Sampler(vocab_size)
    settings_ = SamplingParams(**params)
    ids, probs = sampler.distribution(logits, sampler.open(StateSpec(settings_, (), 0, 0)))
    expected_ids, expected = reference.distribution(logits, settings_)
    assert abs(ids.size - expected_ids.size) <= 1e-4 * expected_ids.size  # neighbours are closer than float32 sums
    common = np.intersect1d(ids, expected_ids)
    np.testing.assert_allclose(probs[np.isin(ids, common)], expected[np.isin(expected_ids, common)], rtol=1e-4)
    assert expected[~np.isin(expected_ids, common)].sum() < 1e-6


@pytest.mark.parametrize("params", [{}, {"top_k": 20_000}, {"top_p": 0.95}, {"min_p": 0.02}])
def test_draws_find_their_place_among_thousands(params: dict[str, Any]) -> None:
    """A token is the one at which the running sum, by id, passes the random number; here sums are skipped in chunks."""
    logits = np.random.default_rng(3).normal(scale=0.5, size=49152).astype(np.float32)
    sampler = Sampler(logits.size)
    states = [sampler.open(StateSpec(SamplingParams(**params), (), 0, seed)) for seed in range(300)]
    drawn = sampler.sample(SamplingBatch(logits[None], states, rows=np.zeros(300, dtype=np.int32))).token_ids
    ids, probs = sampler.distribution(logits, states[0])
    assert ids.size > 10_000
    targets = [reference.uniform(seed, 0, 0) for seed in range(300)]
    places = np.minimum(np.searchsorted(np.cumsum(probs), targets, side="right"), ids.size - 1)
    assert (drawn == ids[places]).mean() > 0.97  # rounding moves borders by a hundredth of a token's share
