"""llama.cpp's samplers in native code against plain numpy that sorts: the same candidates, weights and tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda._native import sampler_isas
from pagoda.sampling import reference, reference_reshape
from pagoda.sampling.base import SamplingBatch, StateSpec
from pagoda.sampling.reference import ReferenceSampler
from pagoda.sampling.sampler import Sampler
from pagoda.types import FloatArray, SamplingParams

VOCAB = 700


def logits_of(seed: int, scale: float = 3.0, vocab_size: int = VOCAB) -> FloatArray:
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=scale, size=vocab_size).astype(np.float32)
    if seed % 4 == 0:
        logits[rng.random(vocab_size) < 0.5] = -np.inf
    return logits


def both(params: SamplingParams, *, seed: int = 0, vocab_size: int = VOCAB, isa: str | None = None, **rest: Any) -> Any:
    spec = StateSpec(params, rest.pop("prompt", ()), 3, seed, **rest)
    return Sampler(vocab_size, isa=isa).open(spec), ReferenceSampler().open(spec)


cuts = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.4, 1.0, 1.7]),
    temperature_last=st.booleans(),
    top_k=st.sampled_from([0, 0, 3, 40]),
    top_p=st.sampled_from([1.0, 1.0, 0.9]),
    min_p=st.sampled_from([0.0, 0.02]),
    top_n_sigma=st.sampled_from([0.0, 1.0, 2.5]),
    typical_p=st.sampled_from([1.0, 0.9, 0.3]),
    xtc_probability=st.sampled_from([0.0, 0.5, 1.0]),
    xtc_threshold=st.sampled_from([0.05, 0.1, 0.3]),
    dynatemp_range=st.sampled_from([0.0, 0.3, 1.0]),
    dynatemp_exponent=st.sampled_from([1.0, 0.5, 2.0]),
)
mirostats = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.5, 1.0, 1.5]),
    mirostat=st.sampled_from([1, 2]),
    mirostat_tau=st.sampled_from([0.5, 3.0, 5.0]),
    mirostat_eta=st.sampled_from([0.1, 0.7]),
)


@pytest.mark.parametrize("isa", sampler_isas())
@given(params=cuts | mirostats, seed=st.integers(0, 10**6), scale=st.sampled_from([0.3, 2.0, 6.0]))
@settings(max_examples=200, deadline=None)
def test_candidates_and_probabilities(isa: str, params: SamplingParams, seed: int, scale: float) -> None:
    logits = logits_of(seed, scale)
    state, truth = both(params, seed=seed, isa=isa)
    ids, probs = Sampler(VOCAB, isa=isa).distribution(logits, state)
    expected_ids, expected = reference.distribution_of(logits, truth)
    if abs(len(ids) - len(expected_ids)) == 1:  # a cut fell between two tokens by rounding
        common = np.intersect1d(ids, expected_ids)
        assert len(common) == min(len(ids), len(expected_ids))
        np.testing.assert_allclose(probs[np.isin(ids, common)], expected[np.isin(expected_ids, common)], rtol=0.4)
        return
    likely = expected > 1e-37
    assert set(expected_ids[likely].tolist()) <= set(ids.tolist()) <= set(expected_ids.tolist())
    np.testing.assert_allclose(probs, expected[np.isin(expected_ids, ids)], rtol=1e-4, atol=1e-37)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(mirostat=1, mirostat_tau=3.0),
        SamplingParams(mirostat=2, mirostat_tau=4.0, temperature=0.8),
        SamplingParams(xtc_probability=0.5),
        SamplingParams(typical_p=0.5, dynatemp_range=0.5, temperature=0.9),
        SamplingParams(dry_multiplier=0.8, top_n_sigma=1.0, temperature=1.5),
    ],
    ids=["mirostat 1", "mirostat 2", "xtc", "typical, dynamic temperature", "dry, top-n-sigma"],
)
def test_long_texts_are_the_same_token_by_token(params: SamplingParams) -> None:
    """Mirostat's aim moves with what was drawn before, XTC's chance and DRY's memory with the position."""
    sampler = Sampler(50)
    state, truth = both(params, seed=11, vocab_size=50, prompt=(1, 2, 3, 1, 2, 3), dry_breakers=((7,),))
    for step in range(200):
        logits = logits_of(1000 + step % 7, scale=1.5, vocab_size=50)
        ours = sampler.sample(SamplingBatch(logits[None], [state])).token_ids[0]
        theirs = ReferenceSampler().sample(SamplingBatch(logits[None], [truth])).token_ids[0]
        assert ours == theirs, step
        state.accept(int(ours))
        truth.accept(int(ours))


def test_going_back_forgets_what_mirostat_learned() -> None:
    params = SamplingParams(mirostat=2, mirostat_tau=4.5, mirostat_eta=1.0)
    sampler = Sampler(VOCAB)
    state, _ = both(params)
    logits = logits_of(5, scale=1.0)
    before = sampler.distribution(logits, state)[0].tolist()
    for _ in range(4):
        state.accept(int(sampler.sample(SamplingBatch(logits[None], [state])).token_ids[0]))
    assert sampler.distribution(logits, state)[0].tolist() != before
    state.rewind(0)
    assert sampler.distribution(logits, state)[0].tolist() == before


def test_a_token_that_was_not_sampled_teaches_mirostat_nothing() -> None:
    params = SamplingParams(mirostat=2, mirostat_tau=1.0, mirostat_eta=1.0)
    sampler = Sampler(VOCAB)
    state, _ = both(params)
    logits = logits_of(5, scale=1.0)
    before = sampler.distribution(logits, state)[0].tolist()
    state.accept(3)
    assert sampler.distribution(logits, state)[0].tolist() == before


histories = st.lists(st.integers(0, 4), min_size=0, max_size=40)


@given(
    prompt=histories,
    outputs=histories,
    last_n=st.sampled_from([-1, 0, 3, 10, 25]),
    allowed=st.integers(1, 4),
    base=st.sampled_from([1.0, 1.75, 60.0]),
    breakers=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple), max_size=3).map(tuple),
)
@settings(max_examples=500, deadline=None)
def test_dry_penalties(
    prompt: list[int], outputs: list[int], last_n: int, allowed: int, base: float, breakers: tuple[tuple[int, ...], ...]
) -> None:
    params = SamplingParams(
        dry_multiplier=0.5, dry_base=base, dry_allowed_length=allowed, dry_penalty_last_n=last_n, temperature=1.0
    )
    state, _ = both(params, prompt=tuple(prompt), dry_breakers=breakers)
    for token_id in outputs:
        state.accept(token_id)
    ids, probs = Sampler(VOCAB).distribution(np.zeros(VOCAB, np.float32), state)
    penalties = reference_reshape.dry_penalties([*prompt, *outputs], params, breakers)
    logits = np.zeros(VOCAB, np.float32)
    for token_id, penalty in penalties.items():
        logits[token_id] -= np.float32(penalty)
    expected = np.exp(logits.astype(np.float64))[ids]
    np.testing.assert_allclose(probs, expected / expected.sum(), rtol=1e-5)


def test_a_real_vocabulary() -> None:
    vocab_size = 49152 + 17
    logits = logits_of(2, vocab_size=vocab_size)
    for params in (SamplingParams(typical_p=0.8), SamplingParams(mirostat=1), SamplingParams(dynatemp_range=0.5)):
        state, truth = both(params, vocab_size=vocab_size)
        ids, probs = Sampler(vocab_size).distribution(logits, state)
        expected_ids, expected = reference.distribution_of(logits, truth)
        common = np.intersect1d(ids, expected_ids)
        assert len(common) >= 0.999 * max(len(ids), len(expected_ids))
        np.testing.assert_allclose(probs[np.isin(ids, common)], expected[np.isin(expected_ids, common)], rtol=1e-3)
